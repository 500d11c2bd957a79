"""Distributions of masks, which say what elements of a datum are observed.

Each is a small frozen object with `draw`. `mixed` suits most models; a distribution of your own is
a subclass of `MaskDistribution`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.errors import counted
from crosscoding.random import uniform

_LEAST_SIDE = 4  # pixels: data whose last two dimensions are at least this large are pictures
_FAR = 4.0  # standard deviations from the draws' statistics, beyond which a mask is unlike them


class MaskDistribution(ABC):
    """A distribution of masks. True = observed."""

    @abstractmethod
    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        """Independent masks of data of this shape, boolean, (num, *shape)."""

    def holds(self, masks: Tensor) -> Tensor:
        """Which masks look like draws of this distribution, boolean (B,); by default, none.

        An amortised cross-coder is used only for masks like those it was trained on, so override
        this in a distribution of your own that you train one with.

        Args:
            masks: Boolean, shape (B, *data).
        """
        return torch.zeros(len(masks), dtype=torch.bool, device=masks.device)


@dataclass(frozen=True)
class Shares(MaskDistribution):
    """Random elements: each mask has a share, the probability that an element is observed.

    Args:
        least, most: Bounds of the share, 0 ≤ least < most ≤ 1.
        even: Whether shares are uniform between the bounds; otherwise their logarithms are.
    """

    least: float
    most: float
    even: bool = True

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        like = torch.empty(0)
        level = uniform((num,), generator=generator, like=like)
        if self.even:
            share = self.least + (self.most - self.least) * level
        else:
            share = self.least * (self.most / self.least) ** level
        noise = uniform((num, math.prod(shape)), generator=generator, like=like)
        return (noise < share[:, None]).reshape(num, *shape)

    def holds(self, masks: Tensor) -> Tensor:
        num = masks[0].numel() if len(masks) else 1
        share = masks.flatten(1).double().mean(1)
        bounds = share.new_tensor([self.least, self.most])
        low, high = bounds + share.new_tensor([-_FAR, _FAR]) * (bounds * (1 - bounds) / num).sqrt()
        inside = (share >= low) & (share <= high)
        return inside & _is_random(masks) if _is_picture(masks.shape[1:]) else inside


@dataclass(frozen=True)
class Rectangles(MaskDistribution):
    """A rectangle of a picture, in all channels, with sides and position drawn uniformly.

    Args:
        least: Shortest side, as a share of the picture's, > 0 and ≤ 1.
    """

    least: float = 0.15

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        _check_picture(shape)
        rows, columns = (self._spans(num, size, generator) for size in shape[-2:])
        return _of_spans(rows, columns, shape)

    def holds(self, masks: Tensor) -> Tensor:
        if masks.ndim < 3:
            return super().holds(masks)
        flat = masks.flatten(1, -3) if masks.ndim > 3 else masks[:, None]
        rows, columns = flat.any(-1).any(1), flat.any(-2).any(1)
        whole = (flat == (rows[:, :, None] & columns[:, None, :])[:, None]).flatten(1).all(1)
        for side in (rows, columns):
            ends = (side[:, 1:] != side[:, :-1]).sum(1) + side[:, 0] + side[:, -1]
            size = side.shape[1]
            whole &= (ends == 2) & (side.sum(1) >= max(round(self.least * size), 1))
        return whole

    def _spans(self, num: int, size: int, generator: Generator) -> Tensor:
        """Which of `size` rows or columns are inside, (num, size)."""
        level = uniform((2, num), generator=generator, like=torch.empty(0))
        least = max(round(self.least * size), 1)
        length = least + (level[0] * (size - least + 1)).floor()
        first = (level[1] * (size - length + 1)).floor()
        place = torch.arange(size)
        return (place >= first[:, None]) & (place < (first + length)[:, None])


@dataclass(frozen=True)
class Halves(MaskDistribution):
    """A half or a quadrant of a picture, each of the eight equally often."""

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        _check_picture(shape)
        return self._of_kinds(torch.randint(8, (num,), generator=generator), shape)

    def holds(self, masks: Tensor) -> Tensor:
        if masks.ndim < 3:
            return super().holds(masks)
        return Given(self._of_kinds(torch.arange(8), masks.shape[1:])).holds(masks)

    @staticmethod
    def _of_kinds(kind: Tensor, shape: Sequence[int]) -> Tensor:
        """The masks of some of the eight kinds, (num, *shape)."""
        # 0 and 1: rows; 2 and 3: columns; 4 to 7: both
        rows = torch.where(kind < 2, kind, torch.where(kind < 4, 2, kind // 2 % 2))
        columns = torch.where(kind < 2, 2, kind % 2)
        return _of_spans(_half(rows, shape[-2]), _half(columns, shape[-1]), shape)


@dataclass(frozen=True)
class Mixture(MaskDistribution):
    """One of several distributions for each mask.

    Args:
        parts: The distributions.
        weights: How often each is chosen, up to a common factor.
    """

    parts: tuple[MaskDistribution, ...]
    weights: tuple[float, ...]

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        weights = torch.tensor(self.weights)
        chosen = weights.multinomial(num, replacement=True, generator=generator) if num else None
        masks = torch.zeros(num, *shape, dtype=torch.bool)
        for index, part in enumerate(self.parts):
            own = part.draw(num, shape, generator=generator)
            if chosen is not None:
                masks[chosen == index] = own[chosen == index]
        return masks

    def holds(self, masks: Tensor) -> Tensor:
        return torch.stack([part.holds(masks) for part in self.parts]).any(0)


@dataclass(frozen=True)
class Mixed(MaskDistribution):
    """Masks for data of any shape, as `mixed` describes them."""

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        return self._of_shape(shape).draw(num, shape, generator=generator)

    def holds(self, masks: Tensor) -> Tensor:
        return self._of_shape(masks.shape[1:]).holds(masks)

    @staticmethod
    def _of_shape(shape: Sequence[int]) -> MaskDistribution:
        return _OF_PICTURES if _is_picture(shape) else _OF_ROWS


@dataclass(frozen=True, eq=False)
class Given(MaskDistribution):
    """One of given masks, each equally often.

    Args:
        masks: Boolean, shape (M, *data), M ≥ 1.
    """

    masks: Tensor

    def __repr__(self) -> str:
        return counted(len(self.masks), "given mask")

    def draw(self, num: int, shape: Sequence[int], *, generator: Generator) -> Tensor:
        if tuple(self.masks.shape[1:]) != tuple(shape):
            raise ValueError(
                f"expected masks of shape {tuple(shape)}, or several, (M, *{tuple(shape)}), got "
                f"{tuple(self.masks.shape)}"
            )
        return self.masks[torch.randint(len(self.masks), (num,), generator=generator)]

    def holds(self, masks: Tensor) -> Tensor:
        if masks.shape[1:] != self.masks.shape[1:]:
            return super().holds(masks)
        some, own = (part.flatten(1).to(masks.device).double() for part in (masks, self.masks))
        differ = some.sum(1)[:, None] + own.sum(1) - 2 * some @ own.mT
        return (differ == 0).any(1)


_OF_PICTURES = Mixture((Shares(0.01, 0.9, even=False), Rectangles(), Halves()), (0.6, 0.2, 0.2))
_OF_ROWS = Shares(0.0, 1.0)


def mixed() -> MaskDistribution:
    """Masks of many kinds, for models of pictures and of rows.

    For pictures, 60 % of the masks are pixels at random, with a share whose logarithm is uniform
    from 1 % to 90 %; 20 % are rectangles, 20 % halves and quadrants. For other data, elements are
    observed at random, with a share that is uniform from 0 to 1.
    """
    return Mixed()


def shares(least: float, most: float) -> MaskDistribution:
    """Random elements, with a share that is uniform between two bounds.

    Raises:
        ValueError: The bounds are not 0 ≤ least < most ≤ 1.
    """
    if not 0 <= least < most <= 1:
        raise ValueError(f"expected 0 <= least < most <= 1, got {least} and {most}")
    return Shares(least, most)


def rectangles(least: float = 0.15) -> MaskDistribution:
    """Rectangles in pictures, each side at least a share `least` of the picture's.

    Raises:
        ValueError: least is not above 0 and at most 1.
    """
    if not 0 < least <= 1:
        raise ValueError(f"expected least above 0 and at most 1, got {least}")
    return Rectangles(least)


def halves() -> MaskDistribution:
    """Halves and quadrants of pictures, each of the eight equally often."""
    return Halves()


def _check_picture(shape: Sequence[int]) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"expected the shape of a picture, (*channels, height, width), got {tuple(shape)}; "
            "masks.mixed() and masks.shares(...) take data of any shape"
        )


def _is_picture(shape: Sequence[int]) -> bool:
    return len(shape) >= 2 and min(shape[-2:]) >= _LEAST_SIDE


def _is_random(masks: Tensor) -> Tensor:
    """Whether pixels look observed independently, with one probability for all, boolean (B,).

    Neighbours are compared by Moran's I in both directions, one and two pixels apart: with n pairs,
    it has mean 0 and variance 1 / n. The share observed in one half of the picture is compared with
    that of the whole, in both directions.

    Source: Moran (1950), Notes on continuous stochastic phenomena. Differs in: nothing.
    """
    centred = masks.double() - masks.flatten(1).double().mean(1).view(-1, *[1] * (masks.ndim - 1))
    variance = centred.flatten(1).square().mean(1).clamp_min(1e-12)
    random = torch.ones_like(variance, dtype=torch.bool)
    for along in (centred, centred.mT):
        for apart in (1, 2):
            pairs = (along[..., apart:] * along[..., :-apart]).flatten(1)
            random &= pairs.mean(1).abs() <= _FAR * variance / math.sqrt(pairs.shape[1])
        half = along[..., : along.shape[-1] // 2].flatten(1)
        random &= half.mean(1).abs() <= _FAR * (variance / half.shape[1]).sqrt()
    return random


def _half(kind: Tensor, size: int) -> Tensor:
    """The first half, the second, or all of `size` places, for kinds 0, 1 and 2: (num, size)."""
    place, kind = torch.arange(size), kind[:, None]
    return (kind == 2) | ((place >= size // 2) == (kind == 1))


def _of_spans(rows: Tensor, columns: Tensor, shape: Sequence[int]) -> Tensor:
    """Masks of rectangles, (num, *shape), from the rows and columns inside."""
    inside = rows[:, :, None] & columns[:, None, :]
    channels = [1] * (len(shape) - 2)
    return inside.reshape(len(inside), *channels, *shape[-2:]).expand(-1, *shape).clone()
