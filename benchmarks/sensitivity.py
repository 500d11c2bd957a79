"""Measures how answers change if a numeric constant of the library is halved or doubled.

    python benchmarks/sensitivity.py methods.grid._SMOOTH --method grid --on mnist-2d
    python benchmarks/sensitivity.py methods.cascade.drawing._EVEN,_TELLING --on table densities

Constants are named by module, without `crosscoding.`; several of one module, with commas between
them, are scaled together, as are the numbers of a tuple or dict. Each line has the largest error of
log p(x) where the truth is known, the largest shift from the answers with the constants as they
are, the median stated error and ESS, decodes per query, seconds, and how many answers are trusted
and wrong by more than 0.1 nats. NaN means unknown. The first line of a case has the
decodes per query of each stage that it goes through, and that of another seed shows how large a
shift is noise.

    mnist-2d, mnist-20d   digits (queries.py)
    table, tvae           random networks of 8 and 128 dimensions (price_cases.py)
    far                   digits with all pixels observed, far from the prior in 20 dimensions
    amortised             the random network of 8 dimensions, with an amortised cross-coder
    large                 a random network of 600 dimensions
    steep                 a prior of distant components, with evidence between them
    densities, exact      densities of the tests
    discrete              few discrete latents, answered as if they were too many to enumerate
    wells                 discrete latents with a mode that particles never enter
"""

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parent / "engine"), str(Path(__file__).parents[1] / "tests")]
from densities import MODES, WIDE  # of the tests
from discrete_models import model, pairs_of, priors
from discrete_models import queries as discrete_queries
from discrete_wells import wells
from price_cases import simulated, table, tvae
from queries import digit_queries, digits, problems

import crosscoding as cc
from crosscoding import likelihoods

_WIDE = "Cauchy in 3-d", "product of Cauchy", "banana in 5-d"
_DENSITIES = [WIDE[name] for name in _WIDE] + list(MODES.values())[:3]

# Answers with a seed, and log p(x) of each query, NaN where it is unknown.
Asked = tuple[Callable[[int], list[cc.Posterior]], Sequence[float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("constants", nargs="+", metavar="module.CONSTANT[,CONSTANT]")
    parser.add_argument("--method", default="auto", choices=list(cc.methods.METHODS))
    parser.add_argument("--on", nargs="+", default=["mnist-2d"], choices=list(_CASES))
    arguments = parser.parse_args()
    for on in arguments.on:
        print(on)
        measure(arguments.constants, cc.methods.method(arguments.method), on)


def measure(constants: list[str], method: cc.methods.Method, on: str) -> None:
    asked = _CASES[on](method)
    usual = _figures(asked, 0)
    print(", ".join(f"{name} {count:.4g}" for name, count in usual["stages"].items()))
    _tell("as it is", usual, usual)
    _tell("another seed", _figures(asked, 1), usual)
    for constant in constants:
        module, _, names = constant.rpartition(".")
        for factor in (0.5, 2.0):
            with scaled(module, names.split(","), factor) as values:
                _tell(f"{names} = {values}", _figures(asked, 0), usual)


@contextmanager
def scaled(module: str, names: list[str], factor: float) -> Iterator[str]:
    """Set constants to `factor` times their values, in all modules that import them."""
    home = importlib.import_module(f"crosscoding.{module}")
    old = {name: getattr(home, name) for name in names}
    new = {name: _times(value, factor) for name, value in old.items()}
    users = {name: _users(home, name) for name in names}
    try:
        for name in names:
            for user in users[name]:
                setattr(user, name, new[name])
        yield ", ".join(str(value) for value in new.values())
    finally:
        for name in names:
            for user in users[name]:
                setattr(user, name, old[name])


def _users(home: Any, name: str) -> list[Any]:
    """The modules that have a constant of the module `home`."""
    if name.startswith("_"):  # others may have a private one of the same name
        return [home]
    modules = [module for key, module in sys.modules.items() if key.startswith("crosscoding")]
    return [module for module in modules if vars(module).get(name) is getattr(home, name)]


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_times(each, factor) for each in value)
    if isinstance(value, dict):
        return {key: _times(each, factor) for key, each in value.items()}
    return max(round(value * factor), 1) if isinstance(value, int) else value * factor


# ---- cases ---------------------------------------------------------------------------------------


def _digits_2d(method: cc.methods.Method) -> Asked:
    vae, evidence = cc.zoo.load("mnist-2d"), digit_queries(24)
    truth = cc.condition(vae, evidence, cc.methods.Grid(1e-4), seed=0).log_evidence
    return _ask(vae, evidence, method)[0], truth.tolist()


def _digits_20d(method: cc.methods.Method) -> Asked:
    return _ask(cc.zoo.load("mnist-20d"), digit_queries(12), method)


def _far(method: cc.methods.Method) -> Asked:
    evidence = digit_queries(6)
    whole = cc.Evidence(digits()[:6], torch.ones_like(evidence.mask))
    return _ask(cc.zoo.load("mnist-20d"), whole, method)


def _amortised(method: cc.methods.Method) -> Asked:
    """A briefly trained network, once with twins that vouch for it, and once not tested on them."""
    vae, evidence = table(24)
    vae = cc.amortise(vae, max_seconds=None, max_steps=300, progress=False, seed=0)
    untested = vae.with_amortised(vae.amortised.with_record(None))
    return (
        lambda seed: [cc.condition(each, evidence, method, seed=seed) for each in (vae, untested)],
        [math.nan] * 48,
    )


def _large(method: cc.methods.Method) -> Asked:
    return _ask(*simulated(600, [64], 40, likelihoods.Gaussian(0.05), 4, 0.7), method)


def _ask(vae: cc.VAE, evidence: cc.Evidence, method: cc.methods.Method) -> Asked:
    """Queries whose log p(x) is unknown."""
    unknown = [math.nan] * evidence.values.shape[0]
    return lambda seed: [cc.condition(vae, evidence, method, seed=seed)], unknown


def _steep(method: cc.methods.Method) -> Asked:
    """Components at a distance of 6 and a linear decoder, so that log p(x) is a sum over both."""
    noise, spread = 0.3, 0.5
    means, shares = torch.tensor([[-6.0, 0.0], [6.0, 0.0]]), torch.tensor([0.3, 0.7])
    linear = torch.nn.Linear(2, 4, bias=False)
    weight = 0.5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.weight.copy_(weight)
    prior = cc.priors.Mixture(shares, means, torch.tensor(spread))
    vae = cc.VAE(linear, 2, likelihoods.Gaussian(noise), prior=prior)
    places = torch.tensor([[6.0 * share, 0.3] for share in (-1.0, -0.6, 0.0, 0.2, 0.5, 1.0)])
    data, truth = places @ weight.mT, []
    for num in (4, 1):  # observed elements
        own = weight[:num]
        covariance = spread**2 * own @ own.mT + noise**2 * torch.eye(num)
        each = torch.distributions.MultivariateNormal(means @ own.mT, covariance)
        truth += (each.log_prob(data[:, None, :num]) + shares.log()).logsumexp(-1).tolist()
    mask = torch.arange(4) < torch.tensor([4, 1])[:, None]
    evidence = cc.Evidence(data.repeat(2, 1), mask.repeat_interleave(len(data), 0))
    return _ask(vae, evidence, method)[0], truth


def _densities(method: cc.methods.Method) -> Asked:
    """Bare densities, each of which is one query."""

    def ask(seed: int) -> list[cc.Posterior]:  # of new targets, as targets keep what they found
        targets = [cc.DensityTarget(each.log_density, each.dim) for each in _DENSITIES]
        return [cc.infer(target, method, seed=seed) for target in targets]

    return ask, [each.log_integral for each in _DENSITIES]


def _exact(method: cc.methods.Method) -> Asked:
    def targets() -> list[Any]:
        return [problems().mixture_target(), problems().blocks(4), problems().blocks(8)]

    truth = [target.log_evidence for target in targets()]
    return lambda seed: [cc.infer(target, method, seed=seed) for target in targets()], truth


def _discrete(method: cc.methods.Method) -> Asked:
    """Networks with 2^12 and 4^5 states, and one with isolated groups among 2^14."""
    own = priors()
    isolated = cc.priors.Bernoulli(torch.zeros(14), pairs_of(14, 0, 1.5))
    models = [model(own["pairs"]), model(own["autoregressive"], 8.0), model(isolated, 12.0)]
    asked = [(vae, discrete_queries(vae, 8)) for vae in models]
    exact = [cc.condition(*each, seed=0).log_evidence for each in asked]
    search = cc.methods.Discrete(max_states=1)
    return (
        lambda seed: [cc.condition(*each, search, seed=seed) for each in asked],
        torch.cat(exact).tolist(),
    )


def _wells(method: cc.methods.Method) -> Asked:
    cases = [
        wells(40, (0.8, 1.5 / 0.3), (0.0, 0.7), opposite=True),
        wells(40, (1.5, 2.0), (0.2, 0.4), opposite=True),
    ]
    truth = [log_evidence for _, _, log_evidence in cases]
    return lambda seed: [cc.condition(*case[:2], method, seed=seed) for case in cases], truth


_CASES: dict[str, Callable[[cc.methods.Method], Asked]] = {
    "mnist-2d": _digits_2d,
    "mnist-20d": _digits_20d,
    "table": lambda method: _ask(*table(24), method),
    "tvae": lambda method: _ask(*tvae(0.03, 3), method),
    "far": _far,
    "amortised": _amortised,
    "large": _large,
    "steep": _steep,
    "densities": _densities,
    "exact": _exact,
    "discrete": _discrete,
    "wells": _wells,
}


# ---- figures -------------------------------------------------------------------------------------


def _figures(asked: Asked, seed: int) -> dict[str, Any]:
    ask, truth = asked
    start, found = time.perf_counter(), ask(seed)
    seconds = time.perf_counter() - start
    stages: dict[str, float] = {}  # decodes per query
    for stage in (stage for posterior in found for stage in posterior.trace):
        stages[stage.name] = stages.get(stage.name, 0.0) + stage.decodes.sum().item() / len(truth)
    names = ("log_evidence", "log_evidence_error", "ess", "trusted")
    figures = {name: torch.cat([getattr(p, name).reshape(-1) for p in found]) for name in names}
    decodes = sum(stages.values()) if stages else math.nan
    more = {"decodes": decodes, "stages": stages, "seconds": seconds}
    return figures | more | {"truth": torch.tensor(truth)}


def _tell(name: str, now: dict[str, Any], usual: dict[str, Any]) -> None:
    errors = (now["log_evidence"] - now["truth"]).abs()
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
