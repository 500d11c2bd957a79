"""Measures how answers change if a numeric constant of the library is halved or doubled.

    python benchmarks/sensitivity.py methods.grid._SMOOTH --method grid --on mnist-2d
    python benchmarks/sensitivity.py methods.numerics.mode_search._STEPS --on densities

Constants are named by module, without `crosscoding.`; the numbers of a tuple are scaled together.
Each line has the largest error of log p(x) where the truth is known, the largest shift from the
answers with the constants as they are, the median stated error and ESS, decodes per query, seconds,
and how many answers are trusted and wrong by more than 0.1 nats. NaN means unknown.
"""

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parent / "engine"), str(Path(__file__).parents[1] / "tests")]
from densities import MODES, WIDE  # of the tests
from queries import digit_queries, problems

import crosscoding as cc

_NUM = {"mnist-2d": 24, "mnist-20d": 12}
_WIDE = "Cauchy in 3-d", "product of Cauchy", "banana in 5-d"
_DENSITIES = [WIDE[name] for name in _WIDE] + list(MODES.values())[:3]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("constants", nargs="+", metavar="module.CONSTANT")
    parser.add_argument("--method", default="auto", choices=list(cc.methods.METHODS))
    parser.add_argument("--on", default="mnist-2d", choices=[*_NUM, "densities", "exact"])
    measure(**vars(parser.parse_args()))


def measure(constants: list[str], method: str, on: str) -> None:
    how, ask = cc.methods.method(method), _digits if on in _NUM else _targets
    usual = ask(on, how)
    truth = usual["truth"]
    if on == "mnist-2d":
        truth = ask(on, cc.methods.Grid(1e-4))["log_evidence"]
    _tell("as it is", usual, usual, truth)
    for constant in constants:
        for factor in (0.5, 2.0):
            with scaled(constant, factor) as value:
                _tell(f"{constant.rpartition('.')[2]} = {value}", ask(on, how), usual, truth)


@contextmanager
def scaled(constant: str, factor: float) -> Iterator[Any]:
    """Set a constant to `factor` times its value, in all modules that import it."""
    module_name, _, name = f"crosscoding.{constant}".rpartition(".")
    owners = [importlib.import_module(module_name)]
    old = getattr(owners[0], name)
    if not name.startswith("_"):  # others may have a private one of the same name
        modules = [module for key, module in sys.modules.items() if key.startswith("crosscoding")]
        owners = [module for module in modules if vars(module).get(name) is old]
    try:
        for owner in owners:
            setattr(owner, name, _times(old, factor))
        yield _times(old, factor)
    finally:
        for owner in owners:
            setattr(owner, name, old)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_times(each, factor) for each in value)
    return max(round(value * factor), 1) if isinstance(value, int) else value * factor


def _digits(on: str, method: cc.methods.Method) -> dict[str, Any]:
    vae, evidence = cc.zoo.load(on), digit_queries(_NUM[on])
    return _figures(lambda: [cc.condition(vae, evidence, method, seed=0)], [math.nan] * _NUM[on])


def _targets(on: str, method: cc.methods.Method) -> dict[str, Any]:
    """Bare densities, each of which is one query."""
    targets = [problems().mixture_target(), problems().blocks(4), problems().blocks(8)]
    truth = [target.log_evidence for target in targets]
    if on == "densities":
        targets = [cc.DensityTarget(each.log_density, each.dim) for each in _DENSITIES]
        truth = [each.log_integral for each in _DENSITIES]
    return _figures(lambda: [cc.infer(target, method, seed=0) for target in targets], truth)


def _figures(ask: Callable[[], list[cc.Posterior]], truth: list[float]) -> dict[str, Any]:
    start, found = time.perf_counter(), ask()
    seconds = time.perf_counter() - start
    counts = [stage.decodes.sum().item() for posterior in found for stage in posterior.trace]
    names = ("log_evidence", "log_evidence_error", "ess", "trusted")
    figures = {name: torch.cat([getattr(p, name).reshape(-1) for p in found]) for name in names}
    decodes = sum(counts) / len(truth) if counts else math.nan
    return figures | {"decodes": decodes, "seconds": seconds, "truth": torch.tensor(truth)}


def _tell(name: str, now: dict[str, Any], usual: dict[str, Any], truth: torch.Tensor) -> None:
    errors = (now["log_evidence"] - truth).abs()
    shifts = (now["log_evidence"] - usual["log_evidence"]).abs()
    error, shift = (max(each.tolist(), key=lambda x: (x == x, x)) for each in (errors, shifts))
    stated, ess = (now[figure].nanmedian() for figure in ("log_evidence_error", "ess"))
    print(
        f"{name:32} error {error:.2g}, shift {shift:.2g}, stated {stated:.2g}, ess {ess:.4g}, "
        f"decodes {now['decodes']:.4g}, {now['seconds']:.3g} s, trusted {now['trusted'].sum()} of "
        f"{len(errors)}, wrong: {_wrong(now['trusted'], errors)}",
        flush=True,
    )


def _wrong(trusted: torch.Tensor, errors: torch.Tensor) -> str:
    """How many trusted answers are off by more than 0.1 nats."""
    return "unknown" if errors.isnan().all() else str(int((trusted & (errors > 0.1)).sum()))


if __name__ == "__main__":
    main()
