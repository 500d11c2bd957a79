"""Elements of known sums that have intervals as well: a normal law in a box.

Given z and the sums, the k bounded elements of a query are jointly normal, y ~ N(m, V). For k = 1
the probability of the interval is exact. For more, the box's is an average over 128 quasi-random
points of a product of k one-dimensional masses:

    y = m + L u,  V = L Lᵀ:   P(box) = E ∏ᵢ [Φ(βᵢ) − Φ(αᵢ)],   uᵢ drawn between αᵢ and βᵢ

with bounds α, β that depend on the uⱼ, j < i.

Source: Genz (1992), the separation of variables. Differs in: nothing.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from crosscoding.likelihoods.laws import TruncatedNormal
from crosscoding.likelihoods.laws.normal import normal_quantile
from crosscoding.likelihoods.samplers import substream

_NUM_POINTS = 128  # twice as many change log p(x) by 1e-3
_NUMBERS_A_POINT = 8  # in memory at once
_JITTER = 1e-12  # of a variance, added to it: sums may determine an element completely
_DETERMINED = 1e-5  # standard deviations that are left of an element that sums determine


@dataclass(frozen=True, eq=False)
class BoundedElements:
    """Up to k elements of each query's sums that have an interval.

    Args:
        columns: Which of the T summed elements they are, shape (B, k).
        low, high: Bounds, in double, shape (B, k); ±∞ where there is none.
        valid: Which of them there are, shape (B, k).
    """

    columns: Tensor
    low: Tensor
    high: Tensor
    valid: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> "BoundedElements | None":
        """Those among T summed elements with bounds (B, T); None if there are none."""
        bounded = low.isfinite() | high.isfinite()
        most = int(bounded.sum(1).max())
        if not most:
            return None
        columns = bounded.to(torch.int8).sort(dim=1, descending=True, stable=True)[1][:, :most]
        bounds = (part.gather(1, columns).double() for part in (low, high))
        return cls(columns, *bounds, bounded.gather(1, columns))  # pyright: ignore[reportCallIssue]

    @property
    def numbers(self) -> int:
        """About how many numbers are in memory for each query while a mass is computed."""
        num = self.columns.shape[1]
        return _NUMBERS_A_POINT * (1 if num == 1 else num * _NUM_POINTS)

    def select(self, index: Tensor | slice) -> "BoundedElements":
        """Those of some of the queries."""
        low, high = self.low[index], self.high[index]
        return BoundedElements(self.columns[index], low, high, self.valid[index])

    def chosen(self, vectors: Tensor) -> Tensor:
        """Their entries of vectors (*sample, B or 1, T): (*sample, B, k), 0 for missing ones."""
        sample = vectors.shape[:-2]
        vectors = vectors.expand(*sample, len(self.columns), vectors.shape[-1])
        own = vectors.gather(-1, self.columns.expand(*sample, *self.columns.shape))
        return torch.where(self.valid, own, 0.0)

    def law(self, means: Tensor, white: Tensor, variances: Tensor) -> "BoundedLaw":
        """Their law given the sums.

        Args:
            means: Of the T elements given the sums, shape (S, B, T).
            white: L⁻¹ A Σ, shape (*sample, R, m, T), with L of the sums' covariance.
            variances: σ², broadcastable to (*sample, B, T).
        """
        own = self.chosen(variances)
        sample, num = white.shape[:-3], len(self.columns)
        white = white.expand(*sample, num, *white.shape[-2:])
        index = self.columns[:, None].expand(*sample, num, white.shape[-2], -1)
        columns = torch.where(self.valid[:, None], white.gather(-1, index), 0.0)
        taken = white.mT @ columns  # (*sample, B, T, k)
        units = torch.nn.functional.one_hot(self.columns, white.shape[-1]).mT.to(own)
        units = torch.where(self.valid[:, None], units, 0.0)
        spread = units * own[..., None, :] - taken
        variance = own.diag_embed() - columns.mT @ columns
        extra = torch.where(self.valid, _JITTER * own, 1.0)
        variance = variance + extra.diag_embed()
        return BoundedLaw(self, self.chosen(means), variance, own, spread)


class BoundedLaw:
    """y ~ N(mean, variance) within the bounds.

    Args:
        elements: The bounds.
        mean: Shape (S, B, k).
        variance: Shape (*sample, B, k, k).
        variance_before: σ² of each, without the sums, shape (*sample, B, k).
        spread: The covariance of all summed elements with y, shape (*sample, B, T, k).
    """

    def __init__(
        self,
        elements: BoundedElements,
        mean: Tensor,
        variance: Tensor,
        variance_before: Tensor,
        spread: Tensor,
    ) -> None:
        self._elements, self._mean, self.variance = elements, mean, variance
        self._root = torch.linalg.cholesky(variance)
        self.gain = torch.cholesky_solve(spread.mT, self._root).mT  # (*sample, B, T, k)
        self._num = mean.shape[-1]
        size = self._root.abs() > _DETERMINED * variance_before[..., None].sqrt()
        order = torch.arange(1, self._num + 1, device=mean.device)
        self._settled_by = (size * order).amax(-1) - 1  # −1: by the sums alone

    def log_mass(self) -> Tensor:
        """log P(box) in nats, (S, B)."""
        if self._num == 1:
            return torch.where(self._elements.valid, self._single().log_mass, 0.0).sum(-1)
        log_weights = self._walk(_points(self._num, self._mean)[:, None, None])[1]
        return log_weights.logsumexp(0) - math.log(_NUM_POINTS)

    def _single(self) -> TruncatedNormal:
        scale = self.variance[..., 0].sqrt()
        return TruncatedNormal(self._mean, scale, self._elements.low, self._elements.high)

    def _walk(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """y, and the logarithm of its weight: uniforms (N, *sample, k) -> (N, S, B, k), (N, S, B).

        One element after the other is drawn between its bounds given those before it.
        """
        log_weight = torch.zeros_like(self._mean[..., 0])
        shape = torch.broadcast_shapes(uniforms.shape, self._mean.shape)
        values, drawn = self._mean.expand(shape), []
        for index in range(self._num):
            law = self._given_others(index, values)
            log_weight = log_weight + law.log_mass
            u = normal_quantile(uniforms[..., index], *law.standard_bounds)
            values = values + self._root[..., index] * u[..., None]
            drawn.append(u)
        return values, log_weight

    def _given_others(self, index: int, values: Tensor) -> TruncatedNormal:
        """The law of uᵢ given those before it: within the bounds of all y that it settles.

        An element that the sums and those before it determine is settled with the last uⱼ that
        it depends on.
        """
        low, high = (
            torch.full_like(values[..., 0], -torch.inf),
            torch.full_like(values[..., 0], torch.inf),
        )
        for place in range(index, self._num):
            settled = self._settled_by[..., place] == index
            settled = settled & self._elements.valid[:, place]
            factor = torch.where(settled, self._root[..., place, index], 1.0)
            ends = [
                torch.where(
                    end.isinf(),
                    end * factor.sign(),
                    (end.nan_to_num(0, 0, 0) - values[..., place]) / factor,
                )
                for end in (self._elements.low[:, place], self._elements.high[:, place])
            ]
            low = torch.where(settled, low.maximum(torch.minimum(*ends)), low)
            high = torch.where(settled, high.minimum(torch.maximum(*ends)), high)
        return TruncatedNormal(torch.zeros_like(low), torch.ones_like(low), low, high)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean, (S, B, k), and covariance, (S, B, k, k), of y in the box."""
        if self._num == 1:
            law = self._single()
            return law.mean(), law.variance()[..., None]
        values, log_weights = self._walk(_points(self._num, self._mean)[:, None, None])
        weights = log_weights.softmax(0)[..., None]
        mean = (weights * values).sum(0)
        gaps = values - mean
        return mean, torch.einsum("nsbi,nsbj->sbij", weights * gaps, gaps)

    def mean_shift(self) -> Tensor:
        """What the box adds to the mean of all summed elements, (S, B, T)."""
        return self.shift(self.moments()[0])

    def shift(self, values: Tensor) -> Tensor:
        """By how much all summed elements move if y is `values` and not the mean, (S, B, T)."""
        return (self.gain @ (values - self._mean)[..., None])[..., 0]

    def variance_change(self) -> Tensor:
        """What the box adds to the variances of all summed elements, (S, B, T)."""
        change = self.moments()[1] - self.variance
        return torch.einsum("...ti,...ij,...tj->...t", *self._with_gain(change))

    def information(self) -> Tensor:
        """−∂² log P(box) / ∂m², (S, B, k, k)."""
        left = self.variance - self.moments()[1]
        return torch.cholesky_solve(torch.cholesky_solve(left, self._whole).mT, self._whole)

    def draw(self, uniforms: Tensor) -> Tensor:
        """A draw of y in the box, (S, B, k), from uniform numbers of that shape."""
        uniforms = uniforms.clamp(1e-12, 1 - 1e-12)
        if self._num == 1:
            return self._single().draw(uniforms)
        shifted = (_points(self._num, self._mean)[:, None, None] + uniforms).frac()
        values, log_weights = self._walk(shifted.clamp(1e-12, 1 - 1e-12))
        ends = log_weights.softmax(0).cumsum(0)
        chosen = (substream(uniforms[..., 0], 0) * ends[-1] >= ends).sum(0).clamp_max(len(ends) - 1)
        index = chosen[None, ..., None].expand(1, *values.shape[1:])
        return values.gather(0, index)[0].maximum(self._elements.low).minimum(self._elements.high)

    @property
    def _whole(self) -> Tensor:
        return self._root.expand(*self._mean.shape[:-1], *self._root.shape[-2:])

    def _with_gain(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = self.gain.expand(*change.shape[:-2], *self.gain.shape[-2:])
        return gain, change, gain


def _points(num: int, like: Tensor) -> Tensor:
    """Fixed quasi-random points in the unit cube, (N, k)."""
    return _sobol(num).to(like)


@cache
def _sobol(num: int) -> Tensor:
    engine = SobolEngine(num, scramble=True, seed=0)
    return engine.draw(_NUM_POINTS, dtype=torch.double).clamp(1e-9, 1 - 1e-9)
