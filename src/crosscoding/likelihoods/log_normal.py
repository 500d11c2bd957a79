"""Positive numbers whose logarithms are normal.

Between two bounds, E[t^k; a < t < b] = exp(kμ + k²σ²/2) P(log a < u < log b),   u ~ N(μ + kσ², σ²).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crosscoding.likelihoods.continuous import NormalNoise
from crosscoding.likelihoods.laws import Known, Law, TruncatedNormal

_CANCELS = 1e-7  # variance over squared mean below which the difference of moments loses digits


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

    def law(self, params: Tensor, known: Known) -> Law:
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


class LogNormalLaw(Law):
    """exp(N(mean, scale²)) between low and high.

    Args:
        mean, scale: Of the logarithm, shape (*sample, B, P).
        low, high: Bounds, broadcastable to that; ±∞ where there are none. A low ≤ 0 is no bound.
    """

    def __init__(self, mean: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> None:
        self._mean, self._scale = mean, scale
        self._low, self._high = low, high
        self._bounds = low.clamp_min(0.0).log(), high.clamp_min(0.0).log()
        self._logarithm = TruncatedNormal(mean, scale, *self._bounds)
        self.log_mass = self._logarithm.log_mass

    def _moment(self, power: int) -> Tensor:
        variance = self._scale.square()
        shifted = TruncatedNormal(self._mean + power * variance, self._scale, *self._bounds)
        log_ratio = shifted.log_mass - self.log_mass
        return (power * self._mean + 0.5 * power**2 * variance + log_ratio).exp()

    def mean(self) -> Tensor:
        return self._moment(1).maximum(self._low).minimum(self._high)

    def variance(self) -> Tensor:
        """Var[t|z, known]; where E[t²] and E[t]² nearly cancel, Var[log t] times E[t]²."""
        square = self.mean().square()
        variance = self._moment(2) - square
        narrow = variance < _CANCELS * square
        return torch.where(narrow, self._logarithm.variance() * square, variance)

    def draw(self, uniforms: Tensor) -> Tensor:
        """The quantile of the uniform numbers."""
        return self._logarithm.draw(uniforms).exp().maximum(self._low).minimum(self._high)
