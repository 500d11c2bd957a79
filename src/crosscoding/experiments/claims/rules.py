"""Rules that decide from numbers alone whether a measurement agrees with a claim.

Most take one figure per repeat (evidence set, seed, chain), compute its mean and standard error,
and decide only if the mean is more than two standard errors away from the threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

AGREE, DIFFER, OPEN = "agree", "differ", "not decidable"
LABELS = (AGREE, DIFFER, OPEN)
_LEAST = 3  # fewest repeats for which a standard error is informative
_ERRORS = 2.0  # standard errors


@dataclass(frozen=True)
class Judgement:
    """A rule's verdict on a claim.

    Args:
        label: One of `LABELS`.
        measured: The number and its uncertainty, formatted.
        reason: Why the label follows.
    """

    label: str
    measured: str
    reason: str


def larger(values: ArrayLike, unit: str, *, least: float = 0.0) -> Judgement:
    """Whether the mean is above `least`.

    Args:
        values: One per repeat; NaN is left out.
        unit: Unit of the values.
        least: The threshold.
    """
    mean, error, measured, judgement = _summary(values, unit)
    if judgement is not None:
        return judgement
    wanted = f"{least:g} {unit}".strip()
    if mean - _ERRORS * error > least:
        return Judgement(AGREE, measured, f"above {wanted} by more than 2 standard errors")
    if mean + _ERRORS * error < least:
        return Judgement(DIFFER, measured, f"below {wanted} by more than 2 standard errors")
    return Judgement(OPEN, measured, f"within 2 standard errors of {wanted}")


def alike(values: ArrayLike, unit: str, *, within: float) -> Judgement:
    """Whether the mean is within a margin of 0; other arguments as in `larger`."""
    mean, error, measured, judgement = _summary(values, unit)
    if judgement is not None:
        return judgement
    margin = f"{within:g} {unit}".strip()
    if abs(mean) + _ERRORS * error < within:
        return Judgement(AGREE, measured, f"within {margin} of 0, including 2 standard errors")
    if abs(mean) - _ERRORS * error > within:
        return Judgement(DIFFER, measured, f"beyond {margin} of 0 by more than 2 standard errors")
    return Judgement(OPEN, measured, f"within 2 standard errors of {margin} from 0")


def all_below(values: Sequence[float], unit: str, *, limit: float) -> Judgement:
    """Whether every value is below a limit; DIFFER if most are not."""
    found = np.array([value for value in values if value is not None], float)
    if not len(found):
        return Judgement(OPEN, "—", "nothing was measured")
    low, high = f"{found.min():.3g}", f"{found.max():.3g}"
    measured = f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
    if (found < limit).all():
        return Judgement(AGREE, measured, f"all below {limit:g} {unit}")
    if np.median(found) >= limit:
        return Judgement(DIFFER, measured, f"most are {limit:g} {unit} or more")
    return Judgement(OPEN, measured, f"some are {limit:g} {unit} or more")


def _summary(values: ArrayLike, unit: str) -> tuple[float, float, str, Judgement | None]:
    """Mean, standard error, both formatted, and a judgement if there are too few values."""
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    if not len(found):
        return math.nan, math.nan, "—", Judgement(OPEN, "—", "nothing was measured")
    mean = float(found.mean())
    if len(found) < _LEAST:
        measured = f"{mean:.3g} {unit}".strip() + f", n = {len(found)}"
        few = Judgement(OPEN, measured, f"{len(found)} repeats, but {_LEAST} are needed")
        return mean, math.nan, measured, few
    error = float(found.std(ddof=1)) / math.sqrt(len(found))
    measured = f"{mean:.3g} ± {error:.2g} {unit}".strip() + f", n = {len(found)}"
    return mean, error, measured, None
