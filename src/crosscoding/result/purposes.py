"""The purposes that answers are used for, and how many effective draws each purpose needs.

    mean       the error of every missing element's mean is at most 5 % of its standard deviation
    interval   90 % intervals of missing elements cover 90 ± 2 %
    density    log p(x) is right to 0.1 nats, and the masses of modes to 0.05: the label

With n effective draws of z, the variance of E[t|x] is at most Var(t|x) λ / n, where λ is the share
of Var(t|x) = Var(E[t|z]) + E[Var(t|z)] that comes from z: noise adds nothing, as means are averages
of E[t|z]. The coverage of a central 90 % interval between quantiles of n draws of t is
Beta-distributed, as a sum of 0.9 n spacings of uniforms, with a standard deviation of √(0.09 / n).

Source: David and Nagaraja (2003), Order Statistics, section 2.5, on coverages. Differs in: n is an
effective number.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from crosscoding.errors import counted, unknown_name
from crosscoding.result.check import Check, grade

PURPOSES = ("mean", "interval", "density")

NEEDED_DRAWS = {
    "mean": 400.0,  # 1 / 0.05², where all variance comes from z
    "interval": 240.0,  # a standard error of 1.9 points, and quantiles' bias of order 1/n
}
# An error of 0.2 standard deviations lowers the coverage of a 90 % interval by less than one point,
# and coverage within 10 points (2 standard errors) is still of use.
_ROUGH_DRAWS = {"mean": 25.0, "interval": 36.0}
_FEWEST = 50.0  # effective draws below which neither their number nor λ is known well enough
_MARGIN = 1.1  # the ESS of further draws varies by about this factor
# Systematic resampling to S draws adds this share of 1/S to the variance of averages: measured 0.2
# to 0.5, for ESS 450 to 980 and S = 1000.
_ADDED = 0.5


def check_purpose(purpose: object, num_draws: int | None = None) -> None:
    """Raise ValueError unless this is one of `PURPOSES`, and `num_draws` can be enough for it."""
    if purpose not in PURPOSES:
        raise unknown_name("purpose", str(purpose), PURPOSES)
    if num_draws is not None and purpose != "density" and num_draws < NEEDED_DRAWS[str(purpose)]:
        raise ValueError(
            f"expected num_draws >= {NEEDED_DRAWS[str(purpose)]:.0f} for the purpose {purpose!r}, "
            f"got {num_draws}"
        )


def draws_for_averages(ess: Tensor, error: Tensor, resampled: Tensor) -> Tensor:
    """How many independent draws would give averages of the same error, shape (B,).

    Args:
        ess: Effective sample size; infinite where the answer is computed, not sampled.
        error: Standard error of log p(x) in nats. For a computed answer, its accuracy is judged by
            this alone.
        resampled: Number of stored draws where these are resampled from others; NaN elsewhere.
    """
    variance = torch.where(ess == torch.inf, error.square(), 1 / ess)
    few = torch.maximum(1 / resampled, variance + _ADDED / resampled)
    return 1 / torch.where(resampled.isnan(), variance, few)


def draws_to_find(purpose: str, stored: int) -> float:
    """How many effective draws to find for a purpose if `stored` are resampled from them."""
    return _MARGIN / (1 / NEEDED_DRAWS[purpose] - _ADDED / stored)


def most_share(draws: Tensor) -> Tensor:
    """The largest λ at which this many draws are enough for means, (B,); −1: there is none."""
    # A margin for rounding: 1/√400 = 0.05 has no exact float.
    return torch.where(draws >= _FEWEST, draws / NEEDED_DRAWS["mean"] * (1 + 1e-6), -1.0)


def check_of_means(draws: Tensor, latent_share: Tensor) -> Check:
    """The check of the error of means, in standard deviations of the element, from n and λ."""
    enough = latent_share <= most_share(draws)
    return _check(
        torch.where(enough, 0, grade(-draws, -torch.inf, -_ROUGH_DRAWS["mean"])),
        lambda q: (
            f"means have a standard error of {(latent_share[q] / draws[q]).sqrt():.2g} standard "
            "deviations of the element" + ("" if enough[q] else f", from {_counted(draws, q)}")
        ),
        draws,
    )


def check_of_coverage(draws: Tensor) -> Check:
    """The check of the error of the coverage of 90 % intervals, from n."""
    enough = draws >= NEEDED_DRAWS["interval"] * (1 - 1e-6)
    return _check(
        torch.where(enough, 0, grade(-draws, -torch.inf, -_ROUGH_DRAWS["interval"])),
        lambda q: (
            f"the coverage of 90 % intervals has a standard error of "
            f"{30 * float(draws[q]) ** -0.5:.2g} points"
            + ("" if enough[q] else f", from {_counted(draws, q)}")
        ),
        draws,
    )


def _check(grades: Tensor, words: Callable[[int], str], draws: Tensor) -> Check:
    return Check(
        grades,
        lambda q: "the number of effective draws is unknown" if draws[q].isnan() else words(q),
        "raise the method's number of draws, or use {auto}",
        priority=1,
        advice_on_auto="compare it with {large_smc}",
        wants_effort=True,
    )


def _counted(draws: Tensor, query: int) -> str:
    return counted(round(draws[query].item()), "effective draw")
