"""What the figures of answers are worth: grades and reasons for each purpose.

"trusted": log p(x) and the shares of the modes are right to a few hundredths, as far as the checks
can tell. "approximate": usable, but some check is missing or missed its mark. "unreliable": the
figures contradict the answer. No answer is trusted without an error of log p(x) and a search for
what it may lack. Pareto k is checked where there are weights, R-hat where there are chains.

That is the grade for the purpose "density". For means and intervals, `purposes` says how many
effective draws are enough, whatever the error of log p(x); all other checks are the same.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosscoding.diagnostics import pareto_k_limit
from crosscoding.errors import counted
from crosscoding.result.check import LABELS, Check, against, fault, grade
from crosscoding.result.purposes import (
    check_of_coverage,
    check_of_means,
    draws_for_averages,
    most_share,
)

__all__ = ["LABELS", "LOST", "MISSED", "SEARCHED_DIM", "Figures", "k_limits"]

_ERROR, _ROUGH_ERROR = 0.04, 0.5  # nats: 98.8 % of errors are below 0.1; p(x) to a factor of 1.6
_ESS, _ROUGH_ESS = 600.0, 50.0  # the error of log p(x) is about 1/√ESS: 0.04 and 0.14 nats
_R_HAT, _ROUGH_R_HAT = 1.01, 1.1  # Vehtari et al. (2021), and Gelman and Rubin's older limit
MISSED, _ROUGH_MISSED = 0.02, 0.1  # share of p(z|x): worth 0.02 and 0.1 nats of log p(x)
# Nats of error per missed share m of p(z|x): more than −log(1 − m), by which log p(x) is too low,
# up to m = 0.79.
ERROR_PER_MISSED = 2.0
SEARCHED_DIM = 3  # up to this, no mode of a bare density was lost unnoticed (docs/densities.md)
LOST, _ROUGH_LOST = 0.01, 0.5  # share of the draws: half of `MISSED`, and most of them
_SHORT, _ROUGH_SHORT = 0.1, 3.0  # nats of KL(q || p): for normal log-weights, ESS / N = e^(−2 KL)
_EXCESS = 0.1  # nats: twice the rounding error that `likelihoods.rounding` lets pass


@dataclass(frozen=True, eq=False)
class Figures:
    """What is known about B answers; NaN where a figure does not exist.

    Args:
        log_evidence_error: Standard error of log p(x) in nats, shape (B,).
        ess: Effective sample size of the draws, shape (B,).
        pareto_k: Pareto k of the importance weights, shape (B,).
        r_hat: R-hat of the chains, shape (B,).
        missed: Share of p(z|x) that the answer lacks, as found by a search, shape (B,); NaN where
            there was no search.
        finished: Whether the method ran to its end, shape (B,).
        num_draws: Number of weighted draws behind the figures, shape (B,).
        lost: Share of the draws at which the decoder's output has lost log p of an observed
            element, shape (B,); None: at none.
        lost_element: The element lost at most of them, as an index into the flattened datum, shape
            (B,).
        collapsed: Whether importance weights left only a handful of draws, so that the weights of
            the fit replace them, boolean, shape (B,); None: nowhere.
        unsearchable: Whether the target is a bare density of too many dimensions for a search to
            find every narrow mode, boolean, shape (B,); None: nowhere.
        vouched: Whether `missed` is a bound from simulated twins of an amortised cross-coder and
            not from a search, boolean, shape (B,); None: nowhere.
        short: By how many nats the C-ELBO of the fit that was drawn from is below log p(x), shape
            (B,); NaN or None where the draws do not come from a fit.
        excess: By how many nats the C-ELBO is above log p(x) beyond both errors, shape (B,); or
            None.
        resampled: Number of stored draws where these are resampled from the draws that `ess` is
            about, shape (B,); NaN or None elsewhere.
        latent_share: Largest share of a missing element's predictive variance that comes from z,
            shape (B,); None: 1, as it may be.
        twins: Number of simulated twins that vouch for means and intervals, shape (B,); NaN or
            None where none do.
        twins_p: p-value of the uniformity of their ranks, shape (B,).
        twins_coverage: Coverage of their 90 % intervals, shape (B,).
    """

    log_evidence_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    r_hat: Tensor
    missed: Tensor
    finished: Tensor
    num_draws: Tensor
    lost: Tensor | None = None
    lost_element: Tensor | None = None
    collapsed: Tensor | None = None
    unsearchable: Tensor | None = None
    vouched: Tensor | None = None
    short: Tensor | None = None
    excess: Tensor | None = None
    resampled: Tensor | None = None
    latent_share: Tensor | None = None
    twins: Tensor | None = None
    twins_p: Tensor | None = None
    twins_coverage: Tensor | None = None

    @property
    def grades(self) -> Tensor:
        """`grades_for` "density", the most demanding purpose, shape (B,)."""
        return self.grades_for("density")

    def grades_for(self, purpose: str) -> Tensor:
        """Each answer's index into `LABELS`, by its worst check for a purpose, shape (B,)."""
        return torch.stack([check.grades for check in self.checks(purpose)]).amax(0)

    @property
    def depends_on_share(self) -> Tensor:
        """For which answers a smaller `latent_share` improves the grade of means, boolean (B,)."""
        best = replace(self, latent_share=torch.zeros_like(self.ess))
        return best.grades_for("mean") < self.grades_for("mean")

    @property
    def most_share(self) -> Tensor:
        """The largest `latent_share` with which means may be trusted, (B,)."""
        return most_share(self._draws)

    def select(self, index: Tensor) -> "Figures":
        """The figures of some answers."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[index] for name, value in known.items()})

    def checks(self, purpose: str) -> list[Check]:
        """All checks for a purpose; where grades are equal, reasons are given in this order."""
        own = {
            "mean": lambda: [check_of_means(self._draws, self._or(self.latent_share, 1.0))],
            "interval": lambda: [check_of_coverage(self._draws)],
            "density": lambda: [self._of_log_evidence(), self._of_ess()],
        }
        return [
            self._of_possibility(),
            self._of_end(),
            *own[purpose](),
            self._of_weights(),
            self._of_chains(),
            self._of_search(vouched=purpose != "density"),
            self._of_dimension(),
            self._of_losses(),
            self._of_collapse(),
            self._of_fit(),
            self._of_bound(),
        ]

    @property
    def _draws(self) -> Tensor:
        resampled = self._or(self.resampled, math.nan)
        return draws_for_averages(self.ess, self.log_evidence_error, resampled)

    def _of_end(self) -> Check:
        return fault(
            torch.where(self.finished, 0, 1),
            lambda q: "it was stopped before it was finished",
            "raise max_seconds or max_decodes if one is set; otherwise look at vae.check(data) or, "
            "for a bare density, try another prior_scale",
            priority=9,
        )

    def _of_possibility(self) -> Check:
        return fault(
            torch.where(self.log_evidence_error == math.inf, 2, 0),
            lambda q: (
                "log p(x|z) is -inf at every z that was tried: the evidence is impossible, or too "
                "improbable for the model's precision"
            ),
            "check the values and bounds of the evidence and their units, or use a model in double",
            priority=10,
        )

    def _of_log_evidence(self) -> Check:
        # Without an estimate of log p(x), nothing vouches for the shares of the modes.
        error = self.log_evidence_error
        return Check(
            torch.where(error.isnan(), 1, grade(error, _ERROR, _ROUGH_ERROR)),
            lambda q: (
                "log p(x) is not estimated"
                if error[q].isnan()
                else f"log p(x) has a standard error of {error[q]:.2g} nats"
                + against(error[q].item(), _ERROR)
            ),
            "use {auto}, which continues until log p(x) is known well enough",
            priority=2,
            advice_on_auto="compare it with {large_smc}",
            wants_effort=True,
        )

    def _of_ess(self) -> Check:
        ess = self.ess
        return Check(
            grade(-self.ess, -_ESS, -_ROUGH_ESS),
            lambda q: (
                "it is computed, not sampled"
                if ess[q] == math.inf
                else "the number of effective draws is unknown"
                if ess[q].isnan()
                else counted(round(ess[q].item()), "effective draw")
                + ("" if ess[q] >= _ESS else f", fewer than {_ESS:.0f}")
            ),
            "raise the method's number of draws, or use {auto}",
            priority=1,
            advice_on_auto="compare it with {large_smc}",
            wants_effort=True,
        )

    def _of_weights(self) -> Check:
        k_limit = k_limits(self.num_draws)
        # Equal weights have no tail to fit Pareto k to.
        even = self.ess.isfinite() & (self.ess >= 0.95 * self.num_draws) & ~self.pareto_k.isnan()
        k, silent = self.pareto_k, even | self.pareto_k.isnan()
        grades = grade(self.pareto_k, k_limit, k_limit)
        return Check(
            torch.where(silent, 0, grades),
            lambda q: (
                ""
                if silent[q]
                else f"the weights have a Pareto k of {k[q]:.2f}"
                + against(k[q].item(), k_limit[q].item())
            ),
            "use {auto} or {smc}, which does not rely on such weights",
            priority=3,
            advice_on_auto="compare its draws with those of {hmc} or {smc}",
            wants_effort=True,
        )

    def _of_chains(self) -> Check:
        r_hat = self.r_hat
        return Check(
            torch.where(r_hat.isnan(), 0, grade(r_hat, _R_HAT, _ROUGH_R_HAT)),
            lambda q: (
                ""
                if r_hat[q].isnan()
                else f"the chains have an R-hat of {r_hat[q]:.3f}"
                + against(r_hat[q].item(), _R_HAT)
            ),
            "run longer chains (num_warmup, num_draws), or use {auto}",
            priority=4,
        )

    def _of_search(self, *, vouched: bool) -> Check:
        """The search for modes; where there was none, twins replace it if `vouched`."""
        missed, exact = self.missed, (self.ess == math.inf) & (self.missed == 0)
        twins = self._or(self.twins if vouched else None, math.nan)
        bounded = (self._or(self.vouched, 0.0) > 0) & (missed <= MISSED)

        def reason(q: int) -> str:
            if exact[q]:
                return ""
            if bounded[q]:
                return (
                    f"on average over simulated twins, at most {missed[q]:.1%} of p(z|x) lies "
                    "outside of the amortised proposals"
                )
            if not missed[q].isnan():
                return f"a search from the prior leaves {missed[q]:.1%} of p(z|x) unaccounted for"
            return "nothing has searched for modes that it may lack" + self._of_twins(twins, q)

        unknown = torch.where(twins.isnan(), 1, 0)
        return Check(
            torch.where(missed.isnan(), unknown, grade(missed, MISSED, _ROUGH_MISSED)),
            reason,
            "use {auto}, which searches for what an answer lacks",
            priority=6,
            advice_on_auto="ask again with {seed}, and compare the answers",
            wants_effort=True,
        )

    def _of_twins(self, twins: Tensor, query: int) -> str:
        """The figures of the twins that vouch for an answer; "" if none do."""
        if twins[query].isnan() or self.twins_p is None or self.twins_coverage is None:
            return ""
        p, coverage = self.twins_p[query], self.twins_coverage[query]
        return (
            f"; twins: the ranks of {int(twins[query])} simulated twins are uniform (p = {p:.2g}), "
            f"and their 90 % intervals cover {coverage:.1%}"
        )

    def _of_dimension(self) -> Check:
        return fault(
            torch.where(self._or(self.unsearchable, 0.0) > 0, 1, 0),
            lambda q: (
                f"the target is a bare density in more than {SEARCHED_DIM} dimensions, where no "
                "search finds every narrow mode"
            ),
            "nothing more can be checked: use it if you know that no mode is much narrower than "
            "another",
            priority=0,
        )

    def _of_losses(self) -> Check:
        lost, element = self._or(self.lost, 0.0), self._or(self.lost_element, -1.0)
        return fault(
            grade(lost, LOST, _ROUGH_LOST),
            lambda q: (
                f"the decoder's output for observed element {int(element[q])} (of the flattened "
                "datum, counted from 0) is clamped or has lost its precision at "
                f"{lost[q]:.0%} of the draws"
            ),
            "let the decoder output logits or logarithms instead of probabilities or rates, or run "
            "it in double precision: decoder.double()",
            priority=10,
        )

    def _of_collapse(self) -> Check:
        return fault(
            torch.where(self._or(self.collapsed, 0.0) > 0, 2, 0),
            lambda q: (
                "a few draws have almost all the importance weight, so the draws are the fit's, "
                "without it"
            ),
            "use {auto}, which adapts its proposal",
            priority=7,
            advice_on_auto="treat it as the best fit found, and compare it with {hmc}",
        )

    def _of_fit(self) -> Check:
        short = self._or(self.short, math.nan)
        return fault(
            torch.where(short.isnan(), 0, grade(short, _SHORT, _ROUGH_SHORT)),
            lambda q: (
                f"the C-ELBO of the fit is {short[q]:.3g} nats below log p(x), so some of its "
                "draws are where p(z|x) is low"
            ),
            "fit {mixture}, or use {auto}",
            priority=5,
            advice_on_auto="treat it as the best fit found, and compare it with {hmc}",
        )

    def _of_bound(self) -> Check:
        excess = self._or(self.excess, math.nan)
        return fault(
            torch.where(excess > _EXCESS, 2, 0),
            lambda q: f"the C-ELBO, a lower bound, is {excess[q]:.3g} nats above log p(x)",
            "raise the method's number of draws, or use {auto}",
            priority=8,
            advice_on_auto="ask again with {seed}, and compare log p(x)",
        )

    def _or(self, figure: Tensor | None, value: float) -> Tensor:
        """A figure or, if it does not exist, the same value for all answers, shape (B,)."""
        return torch.full_like(self.ess, value) if figure is None else figure


def k_limits(num_draws: Tensor) -> Tensor:
    """`pareto_k_limit` for each number of draws, of which at least two are assumed."""
    limits = [pareto_k_limit(max(int(num), 2)) for num in num_draws.unique().tolist()]
    return num_draws.new_tensor(limits)[num_draws.unique(return_inverse=True)[1]]
