"""What simulated twins of queries say about answers that were not searched for lost modes.

`calibrate` makes it (`calibration.twins`), and `Auto(calibration=…)` uses it. Ranks and coverage
say whether draws are right on average over queries, so they may vouch for means and intervals of
a query like the twins, but never for its log p(x).
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscoding.model.model_print import ModelPrint
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target
from crosscoding.target.vae_target import VAETarget

_FEWEST_TWINS = 100  # with which the standard error of 90 % coverage is 3 points
_LEAST_P = 0.01  # so that one calibrated report in a hundred does not vouch
_OFF = 0.02  # largest error of coverage, as in `purposes`, beyond two standard errors
_SIMILAR = 0.1  # most elements that only one of two masks observes, as a share of the twins' mask


@dataclass(frozen=True, eq=False)
class Vouching:
    """What twins whose answers were not searched say about other answers like theirs.

    Args:
        method: The method that answered the twins, with its settings.
        model: The model.
        masks: The twins' masks, flattened, boolean, shape (M, D).
        num: Number of those twins whose other checks were good.
        p_value: Of the uniformity of all their ranks together, corrected for their number.
        coverage: Coverage of 90 % intervals of their missing elements; NaN if there are none.
        coverage_error: Its standard error.
    """

    method: str
    model: ModelPrint
    masks: Tensor
    num: int
    p_value: float
    coverage: float
    coverage_error: float

    @property
    def passed(self) -> bool:
        """Whether there are enough twins, and nothing shows that they were answered wrongly."""
        off = abs(self.coverage - 0.9) > _OFF + 2 * self.coverage_error
        return self.num >= _FEWEST_TWINS and self.p_value >= _LEAST_P and not off

    def for_answers(self, findings: Findings, target: Target, method: str) -> Findings:
        """The findings for a flat target, with what the twins say about queries like them."""
        if not self.passed or method != self.method or not isinstance(target, VAETarget):
            return findings
        if target.vae.given is not None:  # the twins' covariates may differ
            return findings
        if not self.model.same_as(ModelPrint.of(target.vae)):
            return findings
        similar = torch.zeros_like(findings.ess, dtype=torch.bool)
        mask = target.evidence.exact.reshape(len(similar), -1)
        if target.partial is not None:  # the twins have exact values only
            return findings
        for known in self.masks.to(mask.device):
            similar |= (mask ^ known).sum(-1) <= _SIMILAR * known.sum()
        figures = {
            "twins": self.num,
            "twins_p": self.p_value,
            "twins_coverage": self.coverage,
        }
        return replace(
            findings,
            **{
                name: torch.full_like(findings.ess, value).where(similar, math.nan)
                for name, value in figures.items()
            },
        )


@runtime_checkable
class HasVouching(Protocol):
    """Something with a `vouching`, such as the report of `calibrate`."""

    @property
    def vouching(self) -> Vouching: ...
