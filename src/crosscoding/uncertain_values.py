"""What is known of elements whose values are not known exactly: noise, intervals and sets.

They are a part of `Evidence`, whose constructors make them with the functions here, which check
them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscoding.arrays import Numbers, as_tensor, numbers_in
from crosscoding.errors import counted

_NUMBER = (int, float, np.number)


@dataclass(frozen=True, eq=False)
class UncertainValues:
    """Noise, bounds and sets of elements, each with a neutral value where nothing is known.

    Args:
        noise: Standard deviation of the noise in each element's value, shape (*batch, *data); 0
            where the element has no value, or one that is exact.
        low, high: Bounds of each element, both included, shape (*batch, *data); ±∞ where there is
            none.
        allowed: The classes that each element may have, shape (*batch, *data, K); all True where
            there is no set; None without any set.
    """

    noise: Tensor
    low: Tensor
    high: Tensor
    allowed: Tensor | None = None

    @classmethod
    def nothing(cls, like: Tensor) -> "UncertainValues":
        """Nothing known of data like these."""
        return cls(
            torch.zeros_like(like),
            torch.full_like(like, -torch.inf),
            torch.full_like(like, torch.inf),
        )

    @property
    def is_bounded(self) -> Tensor:
        """Which elements have an interval."""
        return (self.low > -torch.inf) | (self.high < torch.inf)

    @property
    def has_set(self) -> Tensor:
        """Which elements have a set of classes."""
        if self.allowed is None:
            return torch.zeros_like(self.noise, dtype=torch.bool)
        return ~self.allowed.all(-1)

    @property
    def known(self) -> Tensor:
        """Which elements have noise, an interval or a set."""
        return (self.noise > 0) | self.is_bounded | self.has_set

    def reshape(self, shape: torch.Size) -> "UncertainValues":
        """The same in another shape of batch and data."""
        allowed = self.allowed
        return UncertainValues(
            self.noise.reshape(shape),
            self.low.reshape(shape),
            self.high.reshape(shape),
            None if allowed is None else allowed.reshape(*shape, allowed.shape[-1]),
        )

    def expand(self, shape: torch.Size) -> "UncertainValues":
        """The same for a larger batch."""
        allowed = self.allowed
        return UncertainValues(
            self.noise.expand(shape),
            self.low.expand(shape),
            self.high.expand(shape),
            None if allowed is None else allowed.expand(*shape, allowed.shape[-1]),
        )

    def to(self, dtype: torch.dtype) -> "UncertainValues":
        """The same in another dtype."""
        noise, low, high = self.noise.to(dtype), self.low.to(dtype), self.high.to(dtype)
        return UncertainValues(noise, low, high, self.allowed)

    def __getitem__(self, index: int | slice | Tensor) -> "UncertainValues":
        """Entries of the batch, indexed along the first dimension."""
        allowed = self.allowed
        return UncertainValues(
            self.noise[index],
            self.low[index],
            self.high[index],
            None if allowed is None else allowed[index],
        )

    def without(self, exact: Tensor) -> "UncertainValues":
        """The same without bounds and sets of elements whose values are known exactly."""
        allowed = self.allowed
        return UncertainValues(
            self.noise,
            self.low.masked_fill(exact, -torch.inf),
            self.high.masked_fill(exact, torch.inf),
            None if allowed is None else allowed | exact[..., None],
        )

    def excludes(self, values: Tensor) -> Tensor:
        """Which values (*batch, *data) are outside their element's interval or set."""
        outside = (values < self.low) | (values > self.high)
        if self.allowed is None:
            return outside
        index = values.clamp(0, self.allowed.shape[-1] - 1).long()[..., None]
        known = (values >= 0) & (values < self.allowed.shape[-1])
        member = self.allowed.gather(-1, index)[..., 0] & known
        return outside | (self.has_set & ~member)

    def combined(self, other: "UncertainValues") -> "UncertainValues":
        """Both combined, for data of one shape; no element may have noise in both.

        Raises:
            ValueError: They contradict each other.
        """
        low, high = torch.maximum(self.low, other.low), torch.minimum(self.high, other.high)
        apart = low > high
        if apart.any():
            raise ValueError(
                "expected evidence that agrees, got intervals that do not overlap for "
                f"{_first(apart)}"
            )
        allowed = self._both_allowed(other)
        return UncertainValues(torch.maximum(self.noise, other.noise), low, high, allowed)

    def _both_allowed(self, other: "UncertainValues") -> Tensor | None:
        if self.allowed is None or other.allowed is None:
            return other.allowed if self.allowed is None else self.allowed
        most = max(self.allowed.shape[-1], other.allowed.shape[-1])
        allowed = _wider(self, most) & _wider(other, most)
        empty = ~allowed.any(-1)
        if empty.any():
            raise ValueError(
                "expected evidence that agrees, got sets without a common class for "
                f"{_first(empty)}"
            )
        return allowed


def _wider(values: UncertainValues, num: int) -> Tensor:
    """Which of `num` classes are allowed; those beyond K only for elements without a set."""
    assert values.allowed is not None
    more = num - values.allowed.shape[-1]
    free = ~values.has_set[..., None].expand(*values.noise.shape, more)
    return torch.cat([values.allowed, free], -1)


def _first(where: Tensor) -> str:
    """How many elements, and the index of the first, in words."""
    index = tuple(where.nonzero()[0].tolist())
    return f"{counted(int(where.sum()), 'element')}, the first at index {index}"


def noise_of(noise: Numbers, values: Tensor) -> Tensor:
    """Standard deviations of the shape of values.

    Raises:
        TypeError: They are not numbers.
        ValueError: One is negative or not finite, or they do not fit the values.
    """
    if isinstance(noise, bool):
        raise TypeError(f"expected noise as a standard deviation, got {noise}")
    if isinstance(noise, _NUMBER):
        scale = torch.full_like(values, float(noise))
    else:
        scale = as_tensor(noise, "noise").detach()
        if scale.dtype != values.dtype or scale.device != values.device:
            raise ValueError(
                f"expected noise of the values' dtype {values.dtype} on {values.device}, got "
                f"{scale.dtype} on {scale.device}"
            )
        try:
            scale = scale.expand(values.shape)
        except RuntimeError:
            raise ValueError(
                f"expected noise that broadcasts to the values' shape {tuple(values.shape)}, got "
                f"{tuple(scale.shape)}"
            ) from None
    wrong = ~(scale.isfinite() & (scale >= 0))
    if wrong.any():
        raise ValueError(
            f"expected noise >= 0, the standard deviation of each value's error, got "
            f"{scale[wrong][0].item():.6g}"
        )
    return scale


def intervals_of(low: Numbers, high: Numbers) -> UncertainValues:
    """Intervals with these bounds; raises what `Evidence.interval` raises."""
    low, high = _bounds_of(low, high)
    low = torch.where(low.isnan(), -torch.inf, low)
    high = torch.where(high.isnan(), torch.inf, high)
    empty = (low > high) | (low == torch.inf) | (high == -torch.inf)
    if empty.any():
        index = tuple(empty.nonzero()[0].tolist())
        raise ValueError(
            "expected intervals with low <= high, got "
            f"{counted(int(empty.sum()), 'empty one')}, the first "
            f"{low[index].item():.6g} to {high[index].item():.6g} at index {index}"
        )
    return UncertainValues(torch.zeros_like(low), low, high)


def sets_of(allowed: Tensor) -> UncertainValues:
    """Sets of allowed classes (*shape, K); raises what `Evidence.one_of` raises."""
    if allowed.dtype != torch.bool:
        raise TypeError(
            f"expected a boolean tensor of allowed classes, got {allowed.dtype}; write the "
            "condition explicitly, for example allowed = allowed > 0"
        )
    if allowed.ndim < 2 or allowed.shape[-1] < 2:
        raise ValueError(
            "expected allowed classes of shape (*batch, *data, K) with K >= 2, got "
            f"{tuple(allowed.shape)}"
        )
    empty = ~allowed.any(-1)
    if empty.any():
        raise ValueError(
            f"expected sets of at least one class, got {int(empty.sum())} without any, first "
            f"at index {tuple(empty.nonzero()[0].tolist())}"
        )
    like = torch.zeros(allowed.shape[:-1], dtype=torch.float32, device=allowed.device)
    nothing = UncertainValues.nothing(like)
    return UncertainValues(like, nothing.low, nothing.high, allowed.clone())


def _bounds_of(low: Numbers, high: Numbers) -> tuple[Tensor, Tensor]:
    """Both bounds as tensors of one shape.

    Raises:
        TypeError: Neither is a tensor, or one is not floating point.
        ValueError: They differ in dtype, device or shape.
    """
    bounds = [
        float(bound) if isinstance(bound, _NUMBER) else numbers_in(bound, name).detach()
        for name, bound in (("low", low), ("high", high))
    ]
    given = [bound for bound in bounds if isinstance(bound, Tensor)]
    if not given:
        raise TypeError(
            f"expected low or high as a tensor of shape (*batch, *data), got {low!r} and {high!r}"
        )
    for bound in given:
        if not bound.is_floating_point():
            raise TypeError(f"expected bounds of a floating-point dtype, got {bound.dtype}")
        if bound.dtype != given[0].dtype or bound.device != given[0].device:
            raise ValueError("expected low and high of one dtype and on one device")
    like = given[0]
    both = [torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in bounds]
    try:
        lower, upper = torch.broadcast_tensors(*both)
    except RuntimeError:
        raise ValueError(
            "expected low and high that broadcast, got "
            f"{tuple(both[0].shape)} and {tuple(both[1].shape)}"
        ) from None
    return lower, upper
