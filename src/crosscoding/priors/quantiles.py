"""Quantiles of one-dimensional Gaussian mixtures, and their inverse, far into both tails.

F(x) = Σ_k w_k Φ((x − m_k) / s_k) is kept as log F and log (1 − F), and whichever of the two is the
smaller is matched to that of a standard normal variable. Derivatives are those of the exact map, by
Newton steps at the solution, and not those of the search for it.

Points x have shape (*sample), log-weights (*sample, K), means and scales (K,).

Source: the search is that of `rtsafe` in Press et al. (2007), Numerical Recipes, section 9.4.
Differs in: all points at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_STEPS = 100  # Newton and bisection together; ten are usual
_SCORE_STEPS = 8  # of a concave function from the left, quadratic: to rounding in double
_ORDER = 2  # Newton steps with derivatives: those of z are exact to the third order
_FLATTEST = -40.0  # log of a slope, below which a gap between components is too empty to cross


class Components(NamedTuple):
    """The components of a mixture in one dimension."""

    log_weights: Tensor
    mean: Tensor
    scale: Tensor

    def tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log F and log (1 − F) at x."""
        gaps = self._gaps(x)
        below = (self.log_weights + torch.special.log_ndtr(gaps)).logsumexp(-1)
        above = (self.log_weights + torch.special.log_ndtr(-gaps)).logsumexp(-1)
        return below, above

    def log_densities(self, x: Tensor) -> Tensor:
        """log of each weighted component's density at x, (*sample, K)."""
        normaliser = self.scale.log() + 0.5 * math.log(2 * math.pi)
        return self.log_weights - 0.5 * self._gaps(x).square() - normaliser

    def _gaps(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) - self.mean) / self.scale


def quantile(noise: Tensor, mixture: Components) -> Tensor:
    """The x with F(x) = Φ(noise)."""
    x = _searched(noise.detach(), Components(*(part.detach() for part in mixture)))
    return _polished(x, lambda at: _miss_and_slope(at, noise, mixture))


def normal_score(x: Tensor, mixture: Components) -> Tensor:
    """The ε with Φ(ε) = F(x)."""
    below, above = mixture.tails(x)
    tail = torch.minimum(below, above)
    score = -(-2 * (tail.detach() + math.log(2))).clamp_min(0.0).sqrt()
    for _ in range(_SCORE_STEPS):
        miss, slope = _score_miss_and_slope(score, tail.detach())
        score = score - miss / slope
    score = _polished(score, lambda at: _score_miss_and_slope(at, tail))
    return torch.where(below <= above, score, -score)


def _polished(x: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """A root x of a function, with the derivatives of the root."""
    for _ in range(_ORDER):
        miss, slope = function(x)
        step = miss / slope
        x = x - (step - step.detach())
    return x


def _score_miss_and_slope(score: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """log Φ(ε) − tail and its derivative in ε."""
    log_cdf = torch.special.log_ndtr(score)
    slope = (-0.5 * score.square() - 0.5 * math.log(2 * math.pi) - log_cdf).exp()
    return log_cdf - tail, slope


def _miss_and_slope(x: Tensor, noise: Tensor, mixture: Components) -> tuple[Tensor, Tensor]:
    """How far F(x) is above Φ(noise), as logarithms of the smaller tail; and its derivative."""
    below, above = mixture.tails(x)
    log_density = mixture.log_densities(x).logsumexp(-1)
    low = noise <= 0
    wanted = torch.special.log_ndtr(-noise.abs())
    miss = torch.where(low, below - wanted, wanted - above)
    slope = (log_density - torch.where(low, below, above)).clamp_min(_FLATTEST).exp()
    return miss, slope


@torch.no_grad()
def _searched(noise: Tensor, mixture: Components) -> Tensor:
    """The root by Newton steps within a bracket that they or bisection narrow."""
    of_each = mixture.mean + mixture.scale * noise.unsqueeze(-1)
    low, high = of_each.amin(-1), of_each.amax(-1)
    x = (mixture.log_weights.exp() * of_each).sum(-1).clamp(low, high)
    before = high - low
    tolerance = 2 * torch.finfo(x.dtype).eps * of_each.abs().amax(-1).maximum(mixture.scale.amin())
    for _ in range(_MOST_STEPS):
        miss, slope = _miss_and_slope(x, noise, mixture)
        low, high = torch.where(miss < 0, x, low), torch.where(miss < 0, high, x)
        newton = x - miss / slope
        good = (newton >= low) & (newton <= high) & ((newton - x).abs() <= 0.5 * before)
        following = torch.where(good, newton, 0.5 * (low + high))
        before, x = (following - x).abs(), following
        if (before <= tolerance).all():
            break
    return x
