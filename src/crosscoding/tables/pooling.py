"""Rubin's rules: one estimate, with its error, from the analyses of several completed tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Pooled:
    """The pooled estimate from several completed tables; each array has the estimates' shape.

    Attributes:
        estimate: The mean of the estimates.
        variance: Its variance, W + (1 + 1/m) B: within tables and between them.
        within: W, the mean of the variances.
        between: B, the sample variance of the estimates.
        df: Degrees of freedom of the t distribution that (Q − estimate) / error follows; ∞ where
            the estimates agree.
        missing_information: Share of information that the missing cells have cost, about
            (r + 2 / (df + 3)) / (r + 1) with r = (1 + 1/m) B / W.
    """

    estimate: Any
    variance: Any
    within: Any
    between: Any
    df: Any
    missing_information: Any

    @property
    def error(self) -> Any:
        """The standard error of the estimate."""
        return np.sqrt(self.variance)

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval of this level, low and high, of the estimates' shape."""
        from scipy import stats

        reach = stats.t.ppf(0.5 + level / 2, np.asarray(self.df)) * self.error
        return self.estimate - reach, self.estimate + reach


def rubin(estimates: Sequence[Any], variances: Sequence[Any], *, df: float = np.inf) -> Pooled:
    """Pool the estimates from m completed tables, by Rubin's rules.

    With statsmodels: `rubin([fit.params for fit in fits], [fit.bse**2 for fit in fits],
    df=fits[0].df_resid)`.

    Args:
        estimates: One per table, m ≥ 2 in all: numbers, arrays or Series, of one shape.
        variances: The squared standard error of each estimate, ≥ 0, of the same shape.
        df: Degrees of freedom of an analysis of complete data; ∞ for large tables.
    Returns:
        The pooled estimate; Series keep their index.
    Raises:
        ValueError: There are fewer than two tables, shapes differ, or a variance is negative or not
            finite.

    Source: Rubin (1987), eqs. 3.1.2 to 3.1.10; Barnard and Rubin (1999) for finite df. Differs in:
        nothing.

    Example:
        >>> pooled = rubin([1.0, 1.2, 0.8], [0.04, 0.04, 0.04])
        >>> round(float(pooled.estimate), 3), round(float(pooled.error), 3)
        (1.0, 0.306)
    """
    num = len(estimates)
    if num < 2 or len(variances) != num:
        raise ValueError(
            f"expected estimates and variances of the same m >= 2 tables, got {num} and "
            f"{len(variances)}"
        )
    values, own = (
        np.stack([np.asarray(part, dtype="float64") for part in parts])
        for parts in (_aligned(estimates), _aligned(variances))
    )
    if values.shape != own.shape:
        raise ValueError(f"expected variances of shape {values.shape[1:]}, got {own.shape[1:]}")
    if not (np.isfinite(values).all() and np.isfinite(own).all() and (own >= 0).all()):
        raise ValueError("expected finite estimates, and variances >= 0, the squares of errors")
    within, between = own.mean(0), values.var(0, ddof=1)
    added = (1 + 1 / num) * between
    variance = within + added
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(variance > 0, added / variance, 0.0)
        freedom = np.where(share > 0, (num - 1) / np.square(share), np.inf)
        if np.isfinite(df):
            observed = (df + 1) / (df + 3) * df * (1 - share)
            freedom = 1 / (1 / freedom + 1 / observed)
        ratio = np.where(within > 0, added / within, np.inf)
        missing = np.where(np.isinf(ratio), 1.0, (ratio + 2 / (freedom + 3)) / (ratio + 1))
    missing = np.where(added > 0, missing, 0.0)
    found = (values.mean(0), variance, within, between, freedom, missing)
    return Pooled(*(_like(estimates[0], part) for part in found))


def _aligned(parts: Sequence[Any]) -> Sequence[Any]:
    """Series in the order of the first; others as they are.

    Raises:
        ValueError: They have different labels or shapes.
    """
    first = parts[0]
    if hasattr(first, "index") and hasattr(first, "reindex"):
        for part in parts:
            if not hasattr(part, "index") or set(part.index) != set(first.index):
                raise ValueError("expected estimates with the same names in all tables")
        return [part.reindex(first.index) for part in parts]
    if len({np.shape(part) for part in parts}) > 1:
        raise ValueError("expected estimates of one shape in all tables")
    return parts


def _like(first: Any, values: np.ndarray) -> Any:
    """An array in the type of the first estimate: a Series, a number or an array."""
    if hasattr(first, "index") and hasattr(first, "reindex"):
        return type(first)(values, index=first.index)
    return float(values) if not np.ndim(values) else values
