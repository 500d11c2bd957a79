"""Claims about Figures 5 to 8, 11 and 12: faces, with 64 and 100 latent dimensions."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from crosscoding.experiments.claims.claim import (
    BOUNDS,
    LIMIT_SECONDS,
    Claim,
    Judge,
    Numbers,
    bound_difference,
    query,
)
from crosscoding.experiments.claims.rules import AGREE, DIFFER, OPEN, Judgement, all_below, larger
from crosscoding.experiments.problem import column

_COLLAPSED = 0.5  # share of the proper spread below which draws have "collapsed"
_LEAST_ESS = 25.0  # fewest effective draws from which a spread is estimated
_USABLE = (0.4, 0.95)  # acceptance rates
_NARROW = 5.0  # largest over smallest step size
_VARIES = 0.2  # range of acceptance rates, from the 10th to the 90th percentile of chains
_LEAST_BURN_IN = 1000  # steps
_NO_BAND = Judgement(OPEN, "none", "no step size that was tried is in the band")
_SPREAD = (
    f"spread of the pictures, compared with {_COLLAPSED:g} times that of the cascade, or of the "
    "best Gaussian (fitted by natural gradients) where the cascade has fewer than "
    f"{_LEAST_ESS:g} effective draws"
)


def _by_chains(judge: Callable[[list[float], list[list[float]]], Judgement]) -> Judge:
    """A judge for each model and number of leapfrog steps, provided that the burn-in suffices."""

    def judge_all(numbers: Numbers) -> dict[str, Judgement]:
        found = {}
        for model, lengths in numbers["models"].items():
            for length, rates in lengths.items():
                judged = judge(numbers["step_sizes"], rates["acceptance"])
                if numbers["burn_in"] < _LEAST_BURN_IN:
                    reason = (
                        f"{numbers['burn_in']} steps of burn-in, but {_LEAST_BURN_IN} are needed"
                    )
                    judged = Judgement(OPEN, judged.measured, reason)
                found[f"{model}, L = {length}"] = judged
        return found

    return judge_all


def _narrow_band(sizes: list[float], rates: list[list[float]]) -> Judgement:
    """Judges the range of step sizes whose median acceptance rate is usable."""
    usable = [size for size, each in zip(sizes, rates, strict=True) if _inside(each)]
    if not usable:
        return _NO_BAND
    factor = max(usable) / min(usable)
    label = AGREE if factor <= _NARROW else DIFFER
    reason = f"they span a factor of {factor:g}; narrow means {_NARROW:g} or less"
    return Judgement(label, f"{min(usable):g} to {max(usable):g}", reason)


def _varies_by_chain(sizes: list[float], rates: list[list[float]]) -> Judgement:
    """Judges the range of acceptance rates over chains, at step sizes with a usable median."""
    ranges = [float(np.ptp(np.percentile(each, [10, 90]))) for each in rates if _inside(each)]
    if not ranges:
        return _NO_BAND
    varies = max(ranges) > _VARIES
    reason = f"the largest is above {_VARIES:g}" if varies else f"none is above {_VARIES:g}"
    measured = f"spans {min(ranges):.2f} to {max(ranges):.2f}"
    return Judgement(AGREE if varies else DIFFER, measured, reason)


def _inside(rates: list[float]) -> bool:
    return _USABLE[0] <= float(np.median(rates)) <= _USABLE[1]


def _on_faces(judge: Callable[[Numbers], Judgement], family: str = "") -> Judge:
    """A judge of the methods on faces, for each model of a family."""
    return lambda numbers: {
        model: judge(methods) for model, methods in numbers["models"].items() if family in model
    }


def _hmc_worst(methods: Numbers) -> Judgement:
    others = np.minimum(query(methods, "GVI"), query(methods, "NF"))
    return larger(others - query(methods, "HMC"), "nats")


def _spread(name: str, *, collapsed: bool) -> Callable[[Numbers], Judgement]:
    """Judges whether a method's pictures have less than half of the proper spread."""

    def judge(methods: Numbers) -> Judgement:
        z, ratio = (
            column(methods[name], kind) / _wanted_spread(methods, kind)
            for kind in ("latent_diversity", "picture_diversity")
        )
        rule = larger(_COLLAPSED - ratio if collapsed else ratio - _COLLAPSED, "")
        measured = f"ratio {np.mean(ratio):.2f} (in z: {np.mean(z):.2f}), n = {len(ratio)}"
        return Judgement(rule.label, measured, rule.reason)

    return judge


def _wanted_spread(methods: Numbers, kind: str) -> NDArray[np.floating]:
    """The cascade's spread where it has enough effective draws, else that of the best Gaussian."""
    auto, fallback = (column(methods[name], kind) for name in ("Auto", "NG"))
    return np.where(column(methods["Auto"], "ess") >= _LEAST_ESS, auto, fallback)


def _seconds_of_face(numbers: Numbers) -> dict[str, Judgement]:
    return {
        f"{model}, {name}, effort {fit['effort']:,}, {fit['device']}": all_below(
            [fit["seconds"]], "s", limit=LIMIT_SECONDS
        )
        for model, methods in numbers["models"].items()
        for name, fits in methods.items()
        for fit in fits[-1:]
    }


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "HMC works in a narrow band of step sizes",
        "fig5",
        f"step sizes with a median acceptance rate of {_USABLE[0]:g} to {_USABLE[1]:g} span a "
        f"factor of {_NARROW:g} or less",
        _by_chains(_narrow_band),
    ),
    Claim(
        "even there, acceptance rates vary greatly between chains",
        "fig5",
        f"at some such step size, the middle 80 % of acceptance rates span more than {_VARIES:g}",
        _by_chains(_varies_by_chain),
    ),
    Claim(
        "GVI is above NF in C-ELBO on faces",
        "fig8",
        BOUNDS,
        _on_faces(lambda m: larger(bound_difference(m, "GVI", "NF"), "nats")),
    ),
    Claim(
        "HMC is the worst in log p(y|x) on faces",
        "fig8",
        "the lower of GVI and NF minus HMC, averaged over evidence sets, compared with 0",
        _on_faces(_hmc_worst),
    ),
    *(
        Claim(
            f"{name} {'collapses' if collapsed else 'is diverse'} on {family}",
            "fig8",
            _SPREAD,
            _on_faces(_spread(method, collapsed=collapsed), family.lower()),
        )
        for family, name, method, collapsed in (
            ("Anime", "GVI", "GVI", False),
            ("Anime", "NF", "NF", True),
            ("Anime", "HMC", "HMC, 1 chain", True),
            ("CelebA", "GVI", "GVI", False),
            ("CelebA", "NF", "NF", False),
            ("CelebA", "HMC", "HMC, 1 chain", True),
        )
    ),
    Claim(
        "a single face takes under five minutes",
        "seconds",
        f"seconds of the longest timed fit, below {LIMIT_SECONDS:g}. Effort counts steps, for Auto "
        "decoder evaluations. In the other figures of faces, GVI and NF settled after 1,000 to "
        "2,450 steps",
        _seconds_of_face,
    ),
)
