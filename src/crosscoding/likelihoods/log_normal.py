"""Positive numbers whose logarithms are normal."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crosscoding.likelihoods.continuous import NormalNoise
from crosscoding.likelihoods.laws import Known, LogNormalLaw


@dataclass(frozen=True, eq=False, repr=False)
class LogNormal(NormalNoise):
    """Positive values whose logarithm has independent normal noise of scale σ.

        log p(t|z) = −(log t − μ)² / 2σ² − log σ − ½ log 2π − log t

    The decoder outputs μ(z), the mean of log t; the mean of t is exp(μ + σ² / 2).

    Args:
        scale: σ > 0 of the logarithm: a number, a tensor that broadcasts to the data's shape, or
            None if the decoder outputs it too, as for a `Gaussian`.
        log_variance: With scale=None, whether the decoder outputs log σ² instead of σ.
    """

    support: ClassVar[str] = "numbers > 0"
    placeholder: ClassVar[float] = 1.0
    advice_on_output: ClassVar[str] = (
        "output the standard deviation itself, not its logarithm; if it is the logarithm of the "
        "variance, use LogNormal(None, log_variance=True)"
    )
    uncertain: ClassVar[tuple[str, ...]] = ("interval",)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        logarithms = values.log()
        return super().log_prob(params, logarithms) - logarithms

    def mean(self, params: Tensor) -> Tensor:
        return (super().mean(params) + 0.5 * super().variance(params)).exp()

    def variance(self, params: Tensor) -> Tensor:
        variance = super().variance(params)
        return (2 * super().mean(params) + variance).exp() * variance.expm1()

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """At least the smallest normal number, as 0 is not in the support."""
        return super().draw(params, noise).exp().clamp_min(torch.finfo(params.dtype).tiny)

    def in_support(self, values: Tensor) -> Tensor:
        return values.isfinite() & (values > 0)

    def law(self, params: Tensor, known: Known) -> LogNormalLaw:
        mean, scale = torch.broadcast_tensors(*self.split(params.double()))
        return LogNormalLaw(mean, scale, known.low, known.high)

    def possible(self, known: Known) -> Tensor:
        return super().possible(known) & (known.high > 0)

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        logarithms = torch.where(mask, values, 1.0).log()
        return super().masked_log_prob(params, logarithms, mask) - logarithms.sum(-1)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        logarithms = torch.where(mask, values, 1.0).log()
        return super().pairwise_log_prob(kept, logarithms, mask) - logarithms.sum(-1)
