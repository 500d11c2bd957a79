"""A likelihood of rounded numbers: the mass of a logistic density over each interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.likelihoods.finitely_many import FinitelyMany
from crosscoding.likelihoods.fisher_sums import expected_products
from crosscoding.likelihoods.location_dispersion import LocationDispersion
from crosscoding.random import uniform

_ON_GRID = 0.01  # of an interval: how far a value may be from the grid


@dataclass(frozen=True, eq=False)
class DiscretizedLogistic(LocationDispersion, FinitelyMany):
    """Intensities on an even grid, such as the 256 of a picture, with rounded logistic noise.

        p(t|z) = σ((t + ½w − μ) / s) − σ((t − ½w − μ) / s),   w = (high − low) / (bins − 1)

    The interval of the lowest value extends to −∞ and that of the highest to +∞, so that the
    probabilities of the grid sum to 1.

    Args:
        scale: s > 0 in the data's units, as for a `Gaussian`: a number, a tensor, or None if the
            decoder outputs it after μ.
        bins: Number of values, ≥ 2.
        low, high: Lowest and highest value, such as 0 and 1, or −1 and 1: as in the training data.

    Source: Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, section 2.1; Kingma et al.
        (2016) for the distribution. Differs in: one component; the decoder outputs s, not log s;
        the probability has no floor and is computed as σ(a) σ(−b) (1 − e^(b − a)); in Kingma et
        al. the intervals begin at t and the outer ones are closed.
    """

    scale: float | Tensor | None = None
    bins: int = 256
    low: float = 0.0
    high: float = 1.0
    coupled: ClassVar[bool] = True
    kind = "real"
    uncertain = ("interval", "noise")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bins, bool) or not isinstance(self.bins, int):
            raise TypeError(f"expected bins to be an int, got {type(self.bins).__name__}")
        if self.bins < 2:
            raise ValueError(f"expected bins >= 2, got {self.bins}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected finite low < high, got {self.low} and {self.high}")
        words = f"on the grid of {self.bins} values from {self.low:g} to {self.high:g}"
        object.__setattr__(self, "support", words)

    @property
    def width(self) -> float:
        """The distance w between neighbouring values."""
        return (self.high - self.low) / (self.bins - 1)

    def all_values(self, like: Tensor) -> Tensor:
        k = torch.arange(self.bins, dtype=torch.double, device=like.device)
        return self.low + k * self.width

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return self._log_prob(*self.split(params), (values - self.low) / self.width)

    def _log_prob(self, mean: Tensor, scale: Tensor, k: Tensor) -> Tensor:
        """log p of the value low + k w, for k between 0 and bins − 1."""
        above, below = self._edges(mean, scale, k)
        return log_interval(above, below, self.width / scale, k < 0.5, k > self.bins - 1.5)

    def _edges(self, mean: Tensor, scale: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        offset = self.low + k * self.width - mean
        return (offset + 0.5 * self.width) / scale, (offset - 0.5 * self.width) / scale

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return super().lost(params, values) | self.is_coarse(params)

    def mean(self, params: Tensor) -> Tensor:
        return (self.low + self.width * self._moments(params)[0]).to(params.dtype)

    def variance(self, params: Tensor) -> Tensor:
        first, second = self._moments(params)
        return (self.width**2 * (second - first.square()).clamp_min(0)).to(params.dtype)

    def _moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """E[k] and E[k²], as Σ P(t > k) and Σ (2k + 1) P(t > k)."""
        mean, scale = (part.double() for part in self.split(params))
        first, second = torch.zeros_like(mean), torch.zeros_like(mean)
        for k in range(self.bins - 1):
            more = ((mean - self.low - (k + 0.5) * self.width) / scale).sigmoid()
            first, second = first + more, second + (2 * k + 1) * more
        return first, second

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        """Sums over values, computed by `expected_products`."""
        mean, scale = torch.broadcast_tensors(*(part.double() for part in self.split(params)))

        def scores(k: Tensor) -> tuple[Tensor, Tensor]:
            above, below = self._edges(mean, scale, k)
            lowest, highest = k < 0.5, k > self.bins - 1.5
            under = torch.where(highest, 0.0, (-above).sigmoid())
            over = torch.where(lowest, 0.0, below.sigmoid())
            width = self.width / scale
            shrinks = torch.where(lowest | highest, 0.0, width / width.expm1())
            by_scale = -torch.where(highest, 0.0, above * under)
            by_scale = by_scale + torch.where(lowest, 0.0, below * over) - shrinks
            return (over - under) / scale, by_scale / scale

        products = expected_products(
            lambda k: self._log_prob(mean, scale, k),
            scores,
            torch.full((), self.bins - 1.0, dtype=mean.dtype, device=mean.device),
            (mean - self.low) / self.width,
            20 * scale / self.width + 2,
        )
        location, off, dispersion = (product.to(params.dtype) for product in products)
        return location, dispersion, off

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like.double())

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A draw from the logistic density, rounded to the grid."""
        mean, scale = (part.double() for part in self.split(params))
        k = ((mean + scale * noise.logit(1e-16) - self.low) / self.width).round()
        return (self.low + k.clamp(0, self.bins - 1) * self.width).to(params.dtype)

    def in_support(self, values: Tensor) -> Tensor:
        k = (values - self.low) / self.width
        nearest = k.round()
        return ((k - nearest).abs() < _ON_GRID) & (nearest >= 0) & (nearest <= self.bins - 1)


def log_interval(
    above: Tensor, below: Tensor, width: Tensor, lowest: Tensor, highest: Tensor
) -> Tensor:
    """log(σ(above) − σ(below)) without cancellation, for above = below + width.

        σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a))

    Where `lowest`, below is read as −∞; where `highest`, above as +∞.
    """
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + (-(-width).expm1()).log()
    ends = torch.where(lowest, F.logsigmoid(above), F.logsigmoid(-below))
    return torch.where(lowest | highest, ends, inside)
