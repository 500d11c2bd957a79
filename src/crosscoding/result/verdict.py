"""The verdict on an answer: a label, the reasons for it, and advice, from the answer's figures.

"trusted": log p(x) and the shares of the modes are right to a few hundredths, as far as the checks
can tell. "approximate": usable, but some check is missing or missed its mark. "unreliable": the
figures contradict the answer. No answer is trusted without an error of log p(x) and a search for
what it may lack. Pareto k is checked where there are weights, R-hat where there are chains.

Each check is a `_Check`: a grade for every answer, a reason in words, and advice.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crosscoding.diagnostics import pareto_k_limit
from crosscoding.errors import counted
from crosscoding.result.advice import IN_PYTHON, last_resort

LABELS = ("trusted", "approximate", "unreliable")

_ERROR, _ROUGH_ERROR = 0.04, 0.5  # nats: 98.8 % of errors are then below 0.1; p(x) to a factor 1.6
_ESS, _ROUGH_ESS = 600.0, 50.0  # the error of log p(x) is about 1/√ESS: 0.04 and 0.14 nats
_R_HAT, _ROUGH_R_HAT = 1.01, 1.1  # Vehtari et al. (2021), and Gelman and Rubin's older limit
MISSED, _ROUGH_MISSED = 0.02, 0.1  # share of p(z|x): worth 0.02 and 0.1 nats of log p(x)
SEARCHED_DIM = 3  # up to which no mode of a bare density was lost unnoticed (docs/methods.md)
LOST, _ROUGH_LOST = 0.01, 0.5  # share of the draws: half of `MISSED`, and most of them
_SHORT, _ROUGH_SHORT = 0.1, 3.0  # nats of KL(q || p): for normal log-weights, ESS / N = e^(−2 KL)
_EXCESS = 0.1  # nats: twice the rounding error that `likelihoods.rounding` lets pass


@dataclass(frozen=True)
class Verdict:
    """The verdict on one query's answer.

    Attributes:
        label: "trusted", "approximate" or "unreliable".
        reasons: Why, in words and figures, starting with what speaks against the answer.
        advice: What to do next, in one sentence; "" if the answer is trusted.
        template: The advice with names in braces for what it suggests, as in `result.advice`.
    """

    label: str
    reasons: tuple[str, ...]
    advice: str = ""
    template: str = field(default="", repr=False)

    def advice_in(self, words: Mapping[str, str]) -> str:
        """The advice in other words, given words for each name in `advice.IN_PYTHON`."""
        return self.template.format_map(words)


@dataclass(frozen=True, eq=False)
class _Check:
    """One check of B answers.

    Args:
        grades: Index into `LABELS` of each answer, shape (B,).
        reason: Gives the reason for an answer, by its index; "" if there is nothing to say.
        advice: What to do if the check speaks against an answer, as in `result.advice`.
        priority: Among equally bad checks, the one with the highest priority gives the advice.
        advice_on_auto: Advice on an answer of `methods.Auto`; "": the same as `advice`.
        wants_effort: Whether only another method or more computation helps.
    """

    grades: Tensor
    reason: Callable[[int], str]
    advice: str
    priority: int
    advice_on_auto: str = ""
    wants_effort: bool = False


@dataclass(frozen=True, eq=False)
class Figures:
    """What is known about B answers; NaN where a figure does not exist.

    Args:
        log_evidence_error: Standard error of log p(x) in nats, shape (B,).
        ess: Effective sample size of the draws, shape (B,).
        pareto_k: Pareto k of the importance weights, shape (B,).
        r_hat: R-hat of the chains, shape (B,).
        missed: Share of p(z|x) that a search found the answer to lack, shape (B,); NaN where
            nothing has searched.
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
        short: By how many nats the C-ELBO of the fit that was drawn from is below log p(x), shape
            (B,); NaN or None where the draws come from no fit.
        excess: By how many nats the C-ELBO is above log p(x) beyond both errors, shape (B,); or
            None.
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
    short: Tensor | None = None
    excess: Tensor | None = None

    @property
    def grades(self) -> Tensor:
        """Index into `LABELS` of each answer, by its worst check, shape (B,)."""
        return torch.stack([check.grades for check in self._checks()]).amax(0)

    def verdicts(self, method: str = "", density_dim: int | None = None) -> list[Verdict]:
        """A verdict for each answer.

        Args:
            method: Name of the method that answered; advice depends on it.
            density_dim: Size of z if the target is a bare density; None if it is a VAE.
        """
        checks = self._checks()
        graded = [check.grades.tolist() for check in checks]
        verdicts = []
        for query in range(len(self.ess)):
            order = sorted(range(len(checks)), key=lambda i: -graded[i][query])
            reasons = tuple(filter(None, (checks[i].reason(query) for i in order)))
            worst = max(grades[query] for grades in graded)
            template = _advice(checks, graded, query, method, density_dim)
            advice = template.format_map(IN_PYTHON)
            verdicts.append(Verdict(LABELS[worst], reasons, advice, template))
        return verdicts

    def _checks(self) -> list[_Check]:
        """All checks; where grades are equal, reasons are given in this order."""
        return [
            self._of_end(),
            self._of_log_evidence(),
            self._of_ess(),
            self._of_weights(),
            self._of_chains(),
            self._of_search(),
            self._of_dimension(),
            self._of_losses(),
            self._of_collapse(),
            self._of_fit(),
            self._of_bound(),
        ]

    def _of_end(self) -> _Check:
        return _fault(
            torch.where(self.finished, 0, 1),
            lambda q: "it was stopped before it was finished",
            "raise max_seconds or max_decodes if one is set; otherwise look at vae.check(data) or, "
            "for a bare density, try another prior_scale",
            priority=9,
        )

    def _of_log_evidence(self) -> _Check:
        # Without an estimate of log p(x), nothing vouches for the shares of the modes.
        error, values = self.log_evidence_error, self.log_evidence_error.tolist()
        return _Check(
            torch.where(error.isnan(), 1, _grade(error, _ERROR, _ROUGH_ERROR)),
            lambda q: (
                "log p(x) is not estimated"
                if math.isnan(values[q])
                else f"log p(x) has a standard error of {values[q]:.2g} nats"
                + _against(values[q], _ERROR)
            ),
            "use {auto}, which continues until log p(x) is known well enough",
            priority=2,
            advice_on_auto="compare it with {large_smc}",
            wants_effort=True,
        )

    def _of_ess(self) -> _Check:
        ess = self.ess.tolist()
        return _Check(
            _grade(-self.ess, -_ESS, -_ROUGH_ESS),
            lambda q: (
                "it is computed, not sampled"
                if ess[q] == math.inf
                else "the number of effective draws is unknown"
                if math.isnan(ess[q])
                else counted(round(ess[q]), "effective draw")
                + ("" if ess[q] >= _ESS else f", fewer than {_ESS:.0f}")
            ),
            "raise the method's number of draws, or use {auto}",
            priority=1,
            advice_on_auto="compare it with {large_smc}",
            wants_effort=True,
        )

    def _of_weights(self) -> _Check:
        k_limit = k_limits(self.num_draws)
        # Equal weights have no tail to fit Pareto k to.
        even = self.ess.isfinite() & (self.ess >= 0.95 * self.num_draws) & ~self.pareto_k.isnan()
        k, limits = self.pareto_k.tolist(), k_limit.tolist()
        silent = (even | self.pareto_k.isnan()).tolist()
        grades = _grade(self.pareto_k, k_limit, k_limit)
        return _Check(
            torch.where(even | self.pareto_k.isnan(), 0, grades),
            lambda q: (
                ""
                if silent[q]
                else f"the weights have a Pareto k of {k[q]:.2f}" + _against(k[q], limits[q])
            ),
            "use {auto} or {smc}, which does not rely on such weights",
            priority=3,
            advice_on_auto="compare its draws with those of {hmc} or {smc}",
            wants_effort=True,
        )

    def _of_chains(self) -> _Check:
        r_hat = self.r_hat.tolist()
        return _Check(
            torch.where(self.r_hat.isnan(), 0, _grade(self.r_hat, _R_HAT, _ROUGH_R_HAT)),
            lambda q: (
                ""
                if math.isnan(r_hat[q])
                else f"the chains have an R-hat of {r_hat[q]:.3f}" + _against(r_hat[q], _R_HAT)
            ),
            "run longer chains (num_warmup, num_draws), or use {auto}",
            priority=4,
        )

    def _of_search(self) -> _Check:
        missed = self.missed.tolist()
        exact = ((self.ess == math.inf) & (self.missed == 0)).tolist()
        return _Check(
            torch.where(self.missed.isnan(), 1, _grade(self.missed, MISSED, _ROUGH_MISSED)),
            lambda q: (
                ""
                if exact[q]
                else "nothing has searched for modes that it may lack"
                if math.isnan(missed[q])
                else f"a search from the prior leaves {missed[q]:.1%} of p(z|x) unaccounted for"
            ),
            "use {auto}, which searches for what an answer lacks",
            priority=6,
            advice_on_auto="ask again with {seed}, and compare the answers",
            wants_effort=True,
        )

    def _of_dimension(self) -> _Check:
        return _fault(
            torch.where(self._or(self.unsearchable, 0.0) > 0, 1, 0),
            lambda q: (
                f"it is of a bare density in more than {SEARCHED_DIM} dimensions, where no search "
                "finds every narrow mode"
            ),
            "nothing more can be checked: use it if you know that no mode is much narrower than "
            "another",
            priority=0,
        )

    def _of_losses(self) -> _Check:
        lost, element = self._or(self.lost, 0.0), self._or(self.lost_element, -1.0)
        return _fault(
            _grade(lost, LOST, _ROUGH_LOST),
            lambda q: (
                f"observed element {int(element[q])} (of the flattened datum, counted from 0) "
                "is where the decoder's output is clamped or has lost its precision, at "
                f"{lost[q]:.0%} of the draws"
            ),
            "let the decoder output logits or logarithms instead of probabilities or rates, or run "
            "it in double precision: decoder.double()",
            priority=10,
        )

    def _of_collapse(self) -> _Check:
        return _fault(
            torch.where(self._or(self.collapsed, 0.0) > 0, 2, 0),
            lambda q: "a few draws have almost all the importance weight, so draws come without it",
            "use {auto}, which adapts its proposal",
            priority=7,
            advice_on_auto="treat it as the best fit found, and compare it with {hmc}",
        )

    def _of_fit(self) -> _Check:
        short = self._or(self.short, math.nan)
        return _fault(
            torch.where(short.isnan(), 0, _grade(short, _SHORT, _ROUGH_SHORT)),
            lambda q: (
                f"the C-ELBO of the fit is {short[q]:.3g} nats below log p(x), so some of its "
                "draws are where p(z|x) is low"
            ),
            "fit {mixture}, or use {auto}",
            priority=5,
            advice_on_auto="treat it as the best fit found, and compare it with {hmc}",
        )

    def _of_bound(self) -> _Check:
        excess = self._or(self.excess, math.nan)
        return _fault(
            torch.where(excess > _EXCESS, 2, 0),
            lambda q: f"the C-ELBO, a lower bound, is {excess[q]:.3g} nats above log p(x)",
            "raise the method's number of draws, or use {auto}",
            priority=8,
            advice_on_auto="ask again with {seed}, and compare log p(x)",
        )

    def _or(self, figure: Tensor | None, value: float) -> Tensor:
        """A figure or, if it does not exist, the same value for all answers, shape (B,)."""
        return torch.full_like(self.ess, value) if figure is None else figure


def _fault(
    grades: Tensor,
    words: Callable[[int], str],
    advice: str,
    priority: int,
    advice_on_auto: str = "",
) -> _Check:
    """A check that gives a reason only where it speaks against an answer."""
    found = grades.tolist()
    return _Check(grades, lambda q: words(q) if found[q] else "", advice, priority, advice_on_auto)


def _advice(
    checks: list[_Check],
    graded: list[list[int]],
    query: int,
    method: str,
    density_dim: int | None,
) -> str:
    """The advice of an answer's worst check."""
    worst = max(range(len(checks)), key=lambda i: (graded[i][query], checks[i].priority))
    if not graded[worst][query]:
        return ""
    check = checks[worst]
    if check.wants_effort and (advice := last_resort(method, density_dim)):
        return advice
    return (method == "Auto" and check.advice_on_auto) or check.advice


def k_limits(num_draws: Tensor) -> Tensor:
    """`pareto_k_limit` for each number of draws, of which at least two are assumed."""
    limits = [pareto_k_limit(max(int(num), 2)) for num in num_draws.unique().tolist()]
    return num_draws.new_tensor(limits)[num_draws.unique(return_inverse=True)[1]]


def _grade(value: Tensor, good: float | Tensor, rough: float | Tensor) -> Tensor:
    """0 up to good, 1 up to rough, 2 above that and for NaN."""
    return 2 - (value <= good).int() - (value <= rough).int()


def _against(value: float, limit: float) -> str:
    return "" if value <= limit else f", above {limit:.3g}"
