"""Log-normal variables between two bounds: exponentials of bounded normal variables.

E[t^k; a < t < b] = exp(kμ + k²σ²/2) P(log a < u < log b),   u ~ N(μ + kσ², σ²)
"""

import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.normal import TruncatedNormal

_CANCELS = 1e-7  # variance over squared mean below which the difference of moments loses digits


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
