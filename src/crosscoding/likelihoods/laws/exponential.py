"""Exponential densities e^(slope t) between two bounds, the pieces of a Laplace density."""

import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law

_NEARLY_FLAT = 0.03  # slope times width below which a series is more accurate


class TruncatedExponential(Law):
    """exp(slope t + offset) between low and high, not normalised.

    Args:
        slope, offset: Shape (*sample, B, P).
        low, high: Bounds, broadcastable to that; only the bound towards which the density falls may
            be infinite. Where low ≥ high the mass is 0.
    """

    def __init__(self, slope: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> None:
        slope, offset, low, high = torch.broadcast_tensors(slope, offset, low, high)
        self._empty = low >= high
        rising = slope > 0
        # distances are measured from the bound at which the density is highest
        self._sign = torch.where(rising, -1.0, 1.0)
        start = torch.where(rising, high, low)
        self._start = torch.where(self._empty | start.isinf(), 0.0, start)
        width = torch.where(self._empty, 1.0, high - low)
        infinite = width.isinf()
        self._rate = torch.where(infinite & (slope == 0), 1.0, torch.where(rising, slope, -slope))
        self._width = torch.where(infinite, 1.0, width)
        self._falls = torch.where(infinite, torch.inf, self._rate * self._width)  # in logarithms
        inside = slope * self._start + offset + self._log_integral(infinite)
        self.log_mass = torch.where(self._empty, -torch.inf, inside)

    def _log_integral(self, infinite: Tensor) -> Tensor:
        """log ∫₀ʷ e^(−rate x) dx = log w + log((1 − e^(−f)) / f), with f = rate w."""
        falls = torch.where(infinite, 1.0, self._falls)
        flat = falls < _NEARLY_FLAT
        f = torch.where(flat, 1.0, falls)
        series = 1 - falls / 2 + falls**2 / 6 - falls**3 / 24 + falls**4 / 120
        share = torch.where(flat, series, -(-f).expm1() / f)
        rate = torch.where(infinite, self._rate, 1.0)
        return torch.where(infinite, -rate.log(), self._width.log() + share.log())

    def mean(self) -> Tensor:
        return self._start + self._sign * self._scaled(self._moments()[0])

    def variance(self) -> Tensor:
        return self._scaled(self._scaled(self._moments()[1]))

    def _scaled(self, share: Tensor) -> Tensor:
        """Distances from the start, given in widths, or in 1 / rate where the width is infinite."""
        return share * torch.where(self._falls.isinf(), 1 / self._rate, self._width)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the distance from the start, in the units that `_scaled` takes."""
        infinite = self._falls.isinf()
        falls = torch.where(infinite, 1.0, self._falls)
        flat = falls < _NEARLY_FLAT
        f = torch.where(flat, 1.0, falls)
        mean = torch.where(flat, 0.5 - falls / 12 + falls**3 / 720, 1 / f - 1 / f.expm1())
        shrunk = (-f).exp()
        exact = f.pow(-2) - shrunk / (1 - shrunk).square()
        variance = torch.where(flat, 1 / 12 - falls**2 / 240 + falls**4 / 6048, exact)
        return torch.where(infinite, 1.0, mean), torch.where(infinite, 1.0, variance)

    def draw(self, uniforms: Tensor) -> Tensor:
        """The quantile of the uniform numbers."""
        rest = 1 - uniforms.double()  # so that draws rise with the uniform numbers
        u = torch.where(self._sign > 0, uniforms.double(), rest).clamp(0, 1 - 1e-16)
        infinite = self._falls.isinf()
        falls = torch.where(infinite, 1.0, self._falls)
        flat = falls < 1e-9
        f = torch.where(flat, 1.0, falls)
        share = torch.where(flat, u, -(u * (-f).expm1()).log1p() / f)
        distance = torch.where(infinite, -(-u).log1p(), share)
        return self._start + self._sign * self._scaled(distance)
