"""Student-t variables between two bounds.

Distribution functions and quantiles are SciPy's, computed on the CPU.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.normal import gauss_legendre

_NARROW = 1e-6  # width below which the density is as good as constant


class TruncatedStudent(Law):
    """A Student-t variable between low and high.

    Args:
        df, location, scale: Shape (*sample, B, P).
        low, high: Bounds, low < high, broadcastable to that; ±∞ where there are none.
    """

    def __init__(
        self, df: Tensor, location: Tensor, scale: Tensor, low: Tensor, high: Tensor
    ) -> None:
        self._df, self._location, self._scale, low, high = torch.broadcast_tensors(
            df, location, scale, low, high
        )
        self._low, self._high = low, high
        self._open = low.isinf() | high.isinf()
        below, above = (self._standardized(bound) for bound in (low, high))
        flipped = below + above > 0
        self._sign = torch.where(flipped, -1.0, 1.0)
        self._below = torch.where(flipped, -above, below)
        self._above = torch.where(flipped, -below, above)
        self.log_mass = _LogMass.apply(self._below, self._above, self._df)  # pyright: ignore[reportAttributeAccessIssue]

    def _standardized(self, bound: Tensor) -> Tensor:
        finite = torch.where(bound.isinf(), 0.0, bound)
        return torch.where(bound.isinf(), bound, (finite - self._location) / self._scale)

    def mean(self) -> Tensor:
        mean = self._location + self._sign * self._scale * self._moments()[0]
        return torch.where(self._open & (self._df <= 1), torch.nan, mean)

    def variance(self) -> Tensor:
        variance = self._scale.square() * self._moments()[1]
        variance = torch.where(self._open & (self._df <= 2), torch.inf, variance)
        return torch.where(self._open & (self._df <= 1), torch.nan, variance)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance in units of the scale, by quadrature in θ, x = √ν tan θ."""
        below, above, df = self._below.detach(), self._above.detach(), self._df
        nearest = torch.zeros_like(below).maximum(below).minimum(above)
        reach = ((df + nearest.square()) * (80 / (df + 1)).exp() - df).sqrt()  # e^(−40) is left
        ends = (below.maximum(-reach), above.minimum(reach))
        start, end = ((bound / df.sqrt()).atan() for bound in ends)
        nodes, weights = gauss_legendre(df)
        theta = start[..., None] + (end - start)[..., None] * nodes
        log_density = (df[..., None] - 1) * theta.cos().clamp_min(1e-300).log()
        log_density = log_density - log_density.amax(-1, keepdim=True)
        density = log_density.exp() * weights
        density = density / density.sum(-1, keepdim=True)
        x = df.sqrt()[..., None] * theta.tan()
        mean = (density * x).sum(-1)
        return mean, (density * (x - mean[..., None]).square()).sum(-1)

    def draw(self, uniforms: Tensor) -> Tensor:
        """The quantile of the uniform numbers."""
        lower, upper = (_cdf(self._df, bound) for bound in (self._below, self._above))
        level = lower + uniforms.double() * (upper - lower)
        x = _of_scipy("stdtrit", self._df, level)
        x = x.maximum(self._below).minimum(self._above)
        drawn = self._location + self._sign * self._scale * x
        return drawn.maximum(self._low).minimum(self._high)


class _LogMass(torch.autograd.Function):
    """log(F(above) − F(below)) for bounds with a centre ≤ 0, and its gradient in the bounds."""

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, df: Tensor) -> Tensor:
        mass = (_cdf(df, above) - _cdf(df, below)).log()
        narrow = (above - below) / (1 + below.abs()) < _NARROW
        by_density = _log_density(0.5 * (above + below), df) + (above - below).log()
        result = torch.where(narrow, by_density, mass)
        ctx.save_for_backward(below, above, df, result)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        below, above, df, result = ctx.saved_tensors
        by_below, by_above = (
            torch.where(bound.isinf(), 0.0, (_log_density(bound, df) - result).exp())
            for bound in (below, above)
        )
        narrow = (above - below) / (1 + below.abs()) < _NARROW
        middle = 0.5 * torch.where(narrow, above + below, 0.0)
        bend = -0.5 * (df + 1) * middle / (df + middle.square())  # half of the slope of log p
        width = torch.where(narrow, above - below, 1.0)
        by_below = torch.where(narrow, 1 / width - bend, by_below)
        by_above = torch.where(narrow, 1 / width + bend, by_above)
        return -upstream[0] * by_below, upstream[0] * by_above, None


def _cdf(df: Tensor, x: Tensor) -> Tensor:
    return _of_scipy("stdtr", df, x)


def _of_scipy(name: str, df: Tensor, x: Tensor) -> Tensor:
    """A special function of SciPy, which is not loaded before it is needed."""
    from scipy import special

    found = getattr(special, name)(*(part.detach().cpu().numpy() for part in (df, x)))
    return torch.as_tensor(np.asarray(found), dtype=x.dtype, device=x.device)


def _log_density(x: Tensor, df: Tensor) -> Tensor:
    constant = (0.5 * (df + 1)).lgamma() - (0.5 * df).lgamma() - 0.5 * (math.pi * df).log()
    finite = torch.where(x.isinf(), 0.0, x)
    return constant - 0.5 * (df + 1) * (finite.square() / df).log1p()
