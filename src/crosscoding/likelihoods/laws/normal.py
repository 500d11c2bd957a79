"""Normal variables between two bounds, exact in the tails.

    log(Φ(b) − Φ(a)) = log Φ(b) + log(1 − Φ(a) / Φ(b)),   a < b

with both bounds mirrored if they are mostly above 0, where Φ would round to 1.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.likelihoods.laws.base import Law
from crosscoding.likelihoods.laws.known import Known

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_ROOT_HALF = math.sqrt(0.5)
_TAIL = -35.0  # below, five terms of the asymptotic series of log Φ are right to 1e-12
_END = 1e100  # replaces an infinite bound: beyond it log Φ is 0 or, in effect, −∞
# Logarithms are used where a difference of two erfc leaves less than the first as a share of the
# larger, or where the larger is below the second.
_CANCELS, _UNDERFLOWS = 1e-5, 1e-280
_NARROW = 1e-5  # width times slope of log φ below which the density is as good as linear
_NEWTON_STEPS = 8
_NODES = 48


class TruncatedNormal(Law):
    """N(t; mean, scale²) between low and high, times a constant factor.

    Args:
        mean, scale: Shape (*sample, B, P).
        low, high: Bounds, broadcastable to that; ±∞ where there are none. Where low ≥ high the mass
            is 0.
        log_factor: Added to the logarithm of the mass.
    """

    def __init__(
        self, mean: Tensor, scale: Tensor, low: Tensor, high: Tensor, log_factor: Tensor | float = 0
    ) -> None:
        self._mean, self._scale = torch.broadcast_tensors(mean, scale)
        empty = low >= high
        low, high = (torch.where(empty, end, bound) for end, bound in ((0.0, low), (1.0, high)))
        self._low, self._high = low, high
        below, above = (_bound(self._mean, self._scale, bound) for bound in (low, high))
        self._below, self._above = below, above
        width = (high - low).clamp_max(_END) / self._scale
        log_mass = log_normal_mass(below, above, width) + log_factor
        self.log_mass = torch.where(empty, -torch.inf, log_mass)

    @property
    def standard_bounds(self) -> tuple[Tensor, Tensor]:
        """(low − mean) / scale and (high − mean) / scale, large numbers where there is no bound."""
        return self._below, self._above

    def mean(self) -> Tensor:
        return self._mean + self._scale * self._moments()[0]

    def variance(self) -> Tensor:
        return self._scale.square() * self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance in units of the scale, by Gauss–Legendre quadrature.

        The usual formulas subtract nearly equal numbers in the tails and between close bounds.
        """
        nearest = torch.zeros_like(self._below).maximum(self._below).minimum(self._above)
        reach = 80 / (nearest.abs() + (nearest.square() + 80).sqrt())  # where e^(−40) is left
        start, end = self._below.maximum(nearest - reach), self._above.minimum(nearest + reach)
        nodes, weights = gauss_legendre(start)
        offset = start - nearest
        x = offset[..., None] + (end - start)[..., None] * nodes  # from the nearest point
        density = (-x * (nearest[..., None] + 0.5 * x)).exp() * weights
        density = density / density.sum(-1, keepdim=True)
        mean = (density * x).sum(-1)
        variance = (density * (x - mean[..., None]).square()).sum(-1)
        return nearest + mean, variance

    def draw(self, uniforms: Tensor) -> Tensor:
        """The quantile of the uniform numbers."""
        standard = normal_quantile(uniforms.double(), self._below, self._above)
        return (self._mean + self._scale * standard).maximum(self._low).minimum(self._high)


def log_normal_mass(below: Tensor, above: Tensor, width: Tensor) -> Tensor:
    """log(Φ(above) − Φ(below)) in double; width is above − below to all digits."""
    return _LogMass.apply(*torch.broadcast_tensors(below, above, width))  # pyright: ignore[reportReturnType]


class _LogMass(torch.autograd.Function):
    """`log_normal_mass` and its gradient, φ(bound) / mass for each bound, without a long graph.

    In tails, where erfc underflows, and between close bounds, both come from `_by_logarithms`.
    """

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, width: Tensor) -> Tensor:
        low, high = _mostly_negative(below, above)
        upper = torch.erfc(high * -_ROOT_HALF)
        mass = upper - torch.erfc(low * -_ROOT_HALF)
        rough = ~((mass > _CANCELS * upper) & (upper > _UNDERFLOWS))
        result = mass.mul_(0.5).log_()
        if bool(rough.any()):
            own = (part[rough] for part in (below, above, width))
            result[rough] = _by_logarithms(*own)
        ctx.save_for_backward(below, above, width, result, rough)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *bounds, result, rough = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of the gradient
            bounds = [bound.view_as(bound) for bound in bounds]  # one may depend on another
            value, needed = _by_logarithms(*bounds), [b for b in bounds if b.requires_grad]
            options = {"create_graph": True, "materialize_grads": True}
            found = iter(torch.autograd.grad(value, needed, upstream[0], **options))
            return tuple(next(found) if bound.requires_grad else None for bound in bounds)
        slopes = [
            sign * (-0.5 * bound.square() - _HALF_LOG_2PI - result).exp_()
            for sign, bound in zip((-1, 1), bounds, strict=False)
        ]
        slopes.append(torch.zeros_like(result))
        if bool(rough.any()):
            with torch.enable_grad():
                own = [bound[rough].requires_grad_() for bound in bounds]
                value = _by_logarithms(*own).sum()
                exact = torch.autograd.grad(value, own, materialize_grads=True)
            for slope, part in zip(slopes, exact, strict=True):
                slope[rough] = part
        return tuple(upstream[0] * slope for slope in slopes)


def _by_logarithms(below: Tensor, above: Tensor, width: Tensor) -> Tensor:
    """`log_normal_mass`, computed in logarithms only."""
    below, above = _mostly_negative(below, above)
    upper, ratio = log_ndtr(above), log_ndtr(below)
    ratio = ratio - upper
    middle = 0.5 * (above + below)
    narrow = width * (1 + middle.abs()) < _NARROW
    some_narrow = bool(narrow.any())
    if some_narrow:
        ratio = torch.where(narrow, -1.0, ratio)
    wide = upper + torch.where(ratio > -0.6931, (-ratio.expm1()).log(), (-ratio.exp()).log1p())
    if not some_narrow:
        return wide
    height = -0.5 * torch.where(narrow, middle, 0.0).square() - _HALF_LOG_2PI
    return torch.where(narrow, height + torch.where(narrow, width, 1.0).log(), wide)


def normal_quantile(uniforms: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """x with Φ(x) = Φ(below) + u (Φ(above) − Φ(below)), also in the tails."""
    flipped = below + above > 0
    low, high = _mostly_negative(below, above)
    share = torch.where(flipped, 1 - uniforms, uniforms)
    upper, lower = log_ndtr(high), log_ndtr(low)
    ratio = (lower - upper).exp()
    x = log_ndtr_inverse(upper + (ratio + share * (1 - ratio)).log())
    close = low + share * (high - low)  # as good as uniform
    x = torch.where((high - low) * (1 + low.abs()) < _NARROW, close, x)
    x = x.maximum(low).minimum(high)
    return torch.where(flipped, -x, x)


def log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x) in double, with a finite gradient everywhere.

    torch's own is slower, and its gradient overflows far out.
    """
    tail = x < _TAIL
    inside = torch.where(tail, 0.0, x).clamp_max(-_TAIL)
    above = inside > 0
    smaller = 0.5 * torch.erfc(torch.where(above, inside, -inside) * _ROOT_HALF)  # Φ(−|x|)
    near = torch.where(above, (-smaller).log1p(), smaller.log())
    if not bool(tail.any()):
        return near
    far = torch.where(tail, x, _TAIL)
    y = far.pow(-2)
    series = -y * (1 - y * (3 - y * (15 - y * 105)))
    by_series = -0.5 * far.square() - (-far).log() - _HALF_LOG_2PI + series.log1p()
    return torch.where(tail, by_series, near)


def log_ndtr_inverse(y: Tensor) -> Tensor:
    """x with log Φ(x) = y ≤ 0: Newton's method on the concave log Φ."""
    near = torch.special.ndtri(y.clamp_min(-30).exp().clamp_max(1 - 1e-16))
    if bool((y > -30).all()):
        return near
    x = torch.where(y > -30, near, -(-2 * y).clamp_min(1.0).sqrt())
    for _ in range(_NEWTON_STEPS):
        value = log_ndtr(x)
        log_slope = -0.5 * x.square() - _HALF_LOG_2PI - value
        step = (value - y) * (-log_slope).exp()
        x = torch.where(y > -30, x, x - step)
    return x


def _bound(mean: Tensor, scale: Tensor, bound: Tensor) -> Tensor:
    """(bound − mean) / scale, with ±_END for infinite bounds, whose gradient is 0."""
    infinite = bound.isinf()
    if not bool(infinite.any()):
        return (bound - mean) / scale
    finite = torch.where(infinite, 0.0, bound)
    return torch.where(infinite, _END * bound.sign(), (finite - mean) / scale)


def _mostly_negative(below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds, or their mirror image, with a centre ≤ 0."""
    flipped = below + above > 0
    return torch.where(flipped, -above, below), torch.where(flipped, -below, above)


def gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    both = torch.from_numpy(np.stack([0.5 * (nodes + 1), 0.5 * weights])).to(like)
    return both[0], both[1]


def tilted_normal(
    slope: Tensor, offset: Tensor, low: Tensor, high: Tensor, known: Known
) -> TruncatedNormal:
    """exp(slope t + offset) between bounds, times the density N(v; t, s²) of a noisy value.

    e^(c t) N(v; t, s²) = e^(c v + ½ c² s²) N(t; v + c s², s²)
    """
    noise = torch.where(known.noise > 0, known.noise, 1.0)
    shift = slope * noise.square()
    log_factor = slope * (known.value + 0.5 * shift) + offset
    return TruncatedNormal(known.value + shift, noise, low, high, log_factor)
