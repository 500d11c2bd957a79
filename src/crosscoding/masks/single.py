"""Ready-made masks: random elements, a rectangle, a brush stroke. True = observed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

from crosscoding.isolation import isolated
from crosscoding.random import generator_from, uniform


@isolated
def random_mask(
    shape: Sequence[int], fraction: float, *, seed: int | Generator | None = None
) -> Tensor:
    """A mask that observes exactly round(fraction · size) elements, chosen at random.

    Args:
        shape: Shape of the mask.
        fraction: Share of elements to observe, 0 to 1.
        seed: Int ≥ 0 or generator.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}")
    size = torch.Size(shape).numel()
    like = torch.empty(0, dtype=torch.float32)
    noise = uniform((size,), generator=generator_from(seed), like=like)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[noise.argsort()[: round(fraction * size)]] = True
    return mask.reshape(tuple(shape))


@isolated
def rectangle_mask(
    shape: Sequence[int],
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Tensor:
    """A mask that observes a rectangle of an image, every channel of it.

    Args:
        shape: Shape of the image, (*channels, height, width).
        rows: First and last observed row, counted from 0, both included; None for all.
        columns: First and last observed column, counted from 0, both included; None for all.

    Example:
        >>> rectangle_mask((2, 3), columns=(0, 1))
        tensor([[ True,  True, False],
                [ True,  True, False]])
    """
    if len(shape) < 2:
        raise ValueError(f"expected the shape of an image, (*channels, height, width), got {shape}")
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for name, span, dim in (("rows", rows, -2), ("columns", columns, -1)):
        if span is None:
            continue
        first, last = span
        if not 0 <= first <= last < shape[dim]:
            raise ValueError(
                f"expected {name} within 0-{shape[dim] - 1}, first before last, got {first}-{last}"
            )
        inside = torch.zeros(shape[dim], dtype=torch.bool)
        inside[first : last + 1] = True
        mask &= inside[:, None] if dim == -2 else inside
    return mask


@isolated
def stroke_mask(
    shape: Sequence[int], points: Sequence[tuple[float, float]], width: float = 3.0
) -> Tensor:
    """A mask that observes every pixel a brush touches on its way through the points.

    Args:
        shape: Shape of the image, (*channels, height, width).
        points: (row, column) of each corner of the stroke, at least one.
        width: Diameter of the brush in pixels.
    """
    if len(shape) < 2 or not points:
        raise ValueError("expected the shape of an image and at least one (row, column) point")
    height, breadth = shape[-2:]
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(breadth)).double()
    mask = torch.zeros(height * breadth, dtype=torch.bool)
    corners = torch.tensor([points[0], *points], dtype=torch.double)
    for start, end in pairwise(corners):
        along = end - start
        share = ((grid - start) @ along / along.square().sum().clamp_min(1e-12)).clamp(0, 1)
        distance = (grid - start - share[:, None] * along).norm(dim=-1)
        mask |= distance <= width / 2
    return mask.reshape(height, breadth).expand(tuple(shape)).clone()
