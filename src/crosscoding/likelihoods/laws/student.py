"""Student-t variables between two bounds.

Distribution functions and quantiles are SciPy's, computed on the CPU. Where those underflow, the
tail below x < 0 is, with V = ν + x² and p the density,

    F(x) = p(x) √V / ν · ∫₀^∞ e^(−w) (1 − (ν / V) e^(−2w/ν))^(−½) dw,   w = ½ ν log((ν + t²) / V),

which Gauss–Laguerre quadrature integrates, as its square root is almost constant there.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.normal import gauss_legendre

_NARROW = 1e-6  # width below which the density is as good as constant
_FAR = 1e-280  # F below which its logarithm is computed directly
_LAGUERRE_NODES = 24  # right to 1e-12 where F < _FAR, where x < −35
_NEWTON_STEPS = 12


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
        """Mean and variance in units of the scale, by quadrature in φ, x = −√ν / tan φ."""
        below, above, df = self._below.detach(), self._above.detach(), self._df
        nearest = torch.zeros_like(below).maximum(below).minimum(above)
        reach = ((df + nearest.square()) * (80 / (df + 1)).exp() - df).sqrt()  # e^(−40) is left
        ends = (below.maximum(-reach), above.minimum(reach))
        start, end = (torch.atan2(df.sqrt(), -bound) for bound in ends)
        nodes, weights = gauss_legendre(df)
        phi = start[..., None] + (end - start)[..., None] * nodes
        log_density = (df[..., None] - 1) * phi.sin().clamp_min(1e-300).log()
        log_density = log_density - log_density.amax(-1, keepdim=True)
        density = log_density.exp() * weights
        density = density / density.sum(-1, keepdim=True)
        x = -df.sqrt()[..., None] / phi.tan()
        mean = (density * x).sum(-1)
        return mean, (density * (x - mean[..., None]).square()).sum(-1)

    def draw(self, uniforms: Tensor) -> Tensor:
        """The quantile of the uniform numbers."""
        lower, upper = (_cdf(self._df, bound) for bound in (self._below, self._above))
        level = lower + uniforms.double() * (upper - lower)
        x = _of_scipy("stdtrit", self._df, level)
        far = ((upper < _FAR) & (self._above < 0)).expand(x.shape)
        if bool(far.any()):
            parts = (self._df, self._below, self._above, uniforms)
            x[far] = _far_quantile(*(part.expand(x.shape)[far] for part in parts))
        x = x.maximum(self._below).minimum(self._above)
        drawn = self._location + self._sign * self._scale * x
        return drawn.maximum(self._low).minimum(self._high)


class _LogMass(torch.autograd.Function):
    """log(F(above) − F(below)) for bounds with a centre ≤ 0, and its gradient in the bounds."""

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, df: Tensor) -> Tensor:
        upper = _cdf(df, above)
        mass = (upper - _cdf(df, below)).log()
        far = (upper < _FAR) & (above < 0)
        if bool(far.any()):
            low, high = (_log_tail(bound[far], df[far]) for bound in (below, above))
            mass[far] = high + (-(low - high).exp()).log1p()
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


def _log_tail(x: Tensor, df: Tensor) -> Tensor:
    """log F(x) for x far below 0, where F itself may underflow; −∞ at −∞."""
    nodes, weights = np.polynomial.laguerre.laggauss(_LAGUERRE_NODES)
    w, weights = (torch.from_numpy(part).to(x) for part in (nodes, weights))
    finite = torch.where(x.isinf(), -1.0, x)
    log_spread = (finite.abs() / df.sqrt()).square().log1p()  # log V / ν
    shrunk = (-log_spread[..., None] - 2 * w / df[..., None]).exp()
    integral = ((1 - shrunk).rsqrt() * weights).sum(-1)
    found = _log_density(finite, df) + 0.5 * (log_spread - df.log()) + integral.log()
    return torch.where(x.isinf(), -torch.inf, found)


def _far_quantile(df: Tensor, below: Tensor, above: Tensor, uniforms: Tensor) -> Tensor:
    """x with F(x) = F(below) + u (F(above) − F(below)) for bounds far below 0.

    Newton's method on log F, which is nearly linear in log V, from the bound above.
    """
    low, high = (_log_tail(bound, df) for bound in (below, above))
    share = uniforms.double()
    wanted = high + (share + (1 - share) * (low - high).exp()).log()
    spread = (above / df.sqrt()).square().log1p()  # log V / ν
    for _ in range(_NEWTON_STEPS):
        x = -(df * spread.expm1()).sqrt()
        value = _log_tail(x, df)
        slope = (_log_density(x, df) - value).exp() * df * spread.exp() / (2 * x)
        spread = spread + (wanted - value) / slope
    return -(df * spread.expm1()).sqrt()


def _of_scipy(name: str, df: Tensor, x: Tensor) -> Tensor:
    """A special function of SciPy, which is loaded only when it is needed."""
    from scipy import special

    found = getattr(special, name)(*(part.detach().cpu().numpy() for part in (df, x)))
    return torch.as_tensor(np.asarray(found), dtype=x.dtype, device=x.device)


def _log_density(x: Tensor, df: Tensor) -> Tensor:
    constant = (0.5 * (df + 1)).lgamma() - (0.5 * df).lgamma() - 0.5 * (math.pi * df).log()
    finite = torch.where(x.isinf(), 0.0, x)
    return constant - 0.5 * (df + 1) * (finite.square() / df).log1p()
