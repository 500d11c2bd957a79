"""What an answer is worth, in a word and in reasons, from the figures that came with it.

"trusted": log p(x) and the shares of the modes are right to a few hundredths, as far as anything
here can tell. "approximate": usable, and some check is missing or missed its mark. "unreliable":
the figures contradict the answer. Without an error of log p(x), or a search for what an answer may
lack, nothing is trusted; k and R-hat are of weights and of chains, where there are any.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.diagnostics import pareto_k_limit

LABELS = ("trusted", "approximate", "unreliable")

_ERROR, _ROUGH_ERROR = 0.04, 0.5  # of log p(x), in nats
_ESS, _ROUGH_ESS = 600.0, 50.0
_R_HAT, _ROUGH_R_HAT = 1.01, 1.1
MISSED, _ROUGH_MISSED = 0.02, 0.1
_LOST, _ROUGH_LOST = 0.01, 0.5  # of the draws: an answer's weight; most of it


@dataclass(frozen=True)
class Verdict:
    """What one query's answer is worth.

    Attributes:
        label: "trusted", "approximate" or "unreliable".
        reasons: Why, in words and figures; what speaks against the answer first.
    """

    label: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Figures:
    """What is known of B answers; NaN where a figure does not exist.

    Args:
        log_evidence_error: Standard error of log p(x) in nats, shape (B,).
        ess: Effective sample size of the draws, shape (B,).
        pareto_k: Pareto k of the importance weights, shape (B,).
        r_hat: Of chains, shape (B,).
        missed: Share of p(z|x) that a search for other modes found the answer to lack, shape (B,);
            NaN where nothing has searched.
        finished: Whether the method ran to its end, shape (B,).
        num_draws: Draws that the weights are of, shape (B,).
        lost: Share of the draws where the decoder's output has lost log p of an observed element,
            shape (B,); None: at none.
        lost_element: Which element that is at most of them, of a datum laid out flat, shape (B,).
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

    @property
    def grades(self) -> Tensor:
        """Index into `LABELS` of each answer, the worst of all checks, shape (B,)."""
        return torch.stack([grade for grade, _ in self._checks()]).amax(0)

    def verdicts(self) -> list[Verdict]:
        """A verdict for each answer."""
        checks = [(grade.tolist(), words) for grade, words in self._checks()]
        verdicts = []
        for query, overall in enumerate(self.grades.tolist()):
            graded = [(grade[query], words(query)) for grade, words in checks]
            graded.sort(key=lambda pair: -pair[0])
            reasons = tuple(reason for _, reason in graded if reason)
            verdicts.append(Verdict(LABELS[overall], reasons))
        return verdicts

    def _checks(self):
        """Each check: grades (B,), and a function from a query to words on it."""
        k_limit = k_limits(self.num_draws)
        # Equal weights have no tail to fit.
        even = self.ess.isfinite() & (self.ess >= 0.95 * self.num_draws)
        k = torch.where(even & ~self.pareto_k.isnan(), 0.0, self.pareto_k)
        error, ess, r_hat, missed = self.log_evidence_error, self.ess, self.r_hat, self.missed
        return [
            (
                torch.where(self.finished, 0, 1),
                lambda q: "" if self.finished[q] else "it was stopped before it was done",
            ),
            (
                # Where log p(x) is not estimated at all, nothing vouches for the modes' shares.
                torch.where(error.isnan(), 1, _grade(error, _ERROR, _ROUGH_ERROR)),
                lambda q: (
                    "log p(x) is not estimated"
                    if error[q].isnan()
                    else f"log p(x) has a standard error of {error[q]:.2g} nats"
                    + _against(error[q], _ERROR)
                ),
            ),
            (
                _grade(-ess, -_ESS, -_ROUGH_ESS),
                lambda q: (
                    "it is integrated, not sampled"
                    if ess[q].isinf()
                    else f"{ess[q]:.0f} effective draws"
                    + ("" if ess[q] >= _ESS else f", fewer than {_ESS:.0f}")
                ),
            ),
            (
                torch.where(k.isnan(), 0, _grade(k, k_limit, k_limit)),
                lambda q: (
                    ""
                    if k[q].isnan() or even[q]
                    else f"the weights have a Pareto k of {self.pareto_k[q]:.2f}"
                    + _against(k[q], float(k_limit[q]))
                ),
            ),
            (
                torch.where(r_hat.isnan(), 0, _grade(r_hat, _R_HAT, _ROUGH_R_HAT)),
                lambda q: (
                    ""
                    if r_hat[q].isnan()
                    else f"chains have an R-hat of {r_hat[q]:.3f}" + _against(r_hat[q], _R_HAT)
                ),
            ),
            (
                torch.where(missed.isnan(), 1, _grade(missed, MISSED, _ROUGH_MISSED)),
                lambda q: (
                    "nothing has searched for modes that it lacks"
                    if missed[q].isnan()
                    else f"a search from the prior leaves {missed[q]:.1%} of p(z|x) unaccounted for"
                ),
            ),
            *self._losses(),
        ]

    def _losses(self):
        """The check of what the decoder's output has lost, where that was looked at."""
        if (lost := self.lost) is None:
            return []
        element = torch.full_like(lost, -1) if self.lost_element is None else self.lost_element
        return [
            (
                _grade(lost, _LOST, _ROUGH_LOST),
                lambda q: (
                    ""
                    if lost[q] <= _LOST
                    else f"observed element {int(element[q])} (of the datum laid out flat, from 0) "
                    "sits where the decoder's output is clamped or has lost its precision, at "
                    f"{lost[q]:.0%} of the draws"
                ),
            )
        ]


def k_limits(num_draws: Tensor) -> Tensor:
    """`pareto_k_limit` of each number of draws; where there are none, that of two."""
    limits = [pareto_k_limit(max(int(num), 2)) for num in num_draws.unique().tolist()]
    return num_draws.new_tensor(limits)[num_draws.unique(return_inverse=True)[1]]


def _grade(value: Tensor, good: float | Tensor, rough: float | Tensor) -> Tensor:
    """0 up to good, 1 up to rough, 2 above and for NaN."""
    return 2 - (value <= good).int() - (value <= rough).int()


def _against(value: Tensor, limit: float) -> str:
    return "" if value <= limit else f", above {limit:.3g}"
