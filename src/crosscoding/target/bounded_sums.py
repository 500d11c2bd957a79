"""An element that is in known sums and also has an interval: a normal law between two bounds.

Given z and the sums, the element is normal, y ~ N(m, V), so the probability of the interval and the
moments within it are exact. For several elements they would be integrals over a box, which cannot
be computed with a known error; so a query with more than one such element is refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.likelihoods.laws import TruncatedNormal

_NUMBERS = 8  # in memory at once for each query
_JITTER = 1e-12  # share of a variance added to it: sums may determine an element completely


@dataclass(frozen=True, eq=False)
class BoundedElements:
    """The element of each query's sums that has an interval, if there is one; k = 1.

    Args:
        columns: Which of the T summed elements it is, shape (B, k).
        low, high: Bounds, in double, shape (B, k); ±∞ where there is none.
        valid: Which queries have one, shape (B, k).
    """

    columns: Tensor
    low: Tensor
    high: Tensor
    valid: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> "BoundedElements | None":
        """Those of T summed elements that have bounds (B, T); None if there are none.

        Raises:
            ValueError: A query has several.
        """
        bounded = low.isfinite() | high.isfinite()
        counts = bounded.sum(1)
        if not counts.any():
            return None
        if (counts > 1).any():
            query = int((counts > 1).nonzero()[0, 0])
            raise ValueError(
                "expected an interval for at most one of the elements in a query's sums, got "
                f"{int(counts[query])} for query {query}; leave out the sums or the other intervals"
            )
        columns = bounded.to(torch.int8).argmax(1, keepdim=True)
        bounds = (part.gather(1, columns).double() for part in (low, high))
        return cls(columns, *bounds, bounded.gather(1, columns))  # pyright: ignore[reportCallIssue]

    @property
    def numbers(self) -> int:
        """About how many numbers are in memory for each query while a mass is computed."""
        return _NUMBERS

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
            means: Means of the T elements given the sums, shape (S, B, T).
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

    def log_mass(self) -> Tensor:
        """log P(low ≤ y ≤ high) in nats, (S, B)."""
        return torch.where(self._elements.valid, self._single().log_mass, 0.0).sum(-1)

    def _single(self) -> TruncatedNormal:
        scale = self.variance[..., 0].sqrt()
        return TruncatedNormal(self._mean, scale, self._elements.low, self._elements.high)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean, (S, B, k), and covariance, (S, B, k, k), of y between its bounds."""
        law = self._single()
        return law.mean(), law.variance()[..., None]

    def mean_shift(self) -> Tensor:
        """What the bounds add to the mean of all summed elements, (S, B, T)."""
        return self.shift(self.moments()[0])

    def shift(self, values: Tensor) -> Tensor:
        """How far all summed elements move if y is `values` instead of its mean, (S, B, T)."""
        return (self.gain @ (values - self._mean)[..., None])[..., 0]

    def variance_change(self) -> Tensor:
        """What the bounds add to the variances of all summed elements, (S, B, T)."""
        change = self.moments()[1] - self.variance
        return torch.einsum("...ti,...ij,...tj->...t", *self._with_gain(change))

    def information(self) -> Tensor:
        """−∂² log P / ∂m², (S, B, k, k)."""
        left = self.variance - self.moments()[1]
        return torch.cholesky_solve(torch.cholesky_solve(left, self._whole).mT, self._whole)

    def draw(self, uniforms: Tensor) -> Tensor:
        """A draw of y between its bounds, (S, B, k), from uniform numbers of that shape."""
        uniforms = uniforms.clamp(1e-12, 1 - 1e-12)
        return self._single().draw(uniforms)

    @property
    def _whole(self) -> Tensor:
        return self._root.expand(*self._mean.shape[:-1], *self._root.shape[-2:])

    def _with_gain(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = self.gain.expand(*change.shape[:-2], *self.gain.shape[-2:])
        return gain, change, gain
