"""Different ways to complete a datum: groups of latent draws with a gap between them.

If there is a direction along which the draws of p(z|x) have two peaks and hardly anything between
them, they are divided in two there, and the parts are divided in the same way. Directions are found
on one half of the draws and judged on the other, as in many dimensions chance makes gaps. A
group is what a person would call a different answer; a mode without a gap around it is not one.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

MOST_GROUPS = 4
_LEAST_SHARE = 0.05  # of all draws in a group; a tail of a few draws does not count
_FEWEST = 40  # draws that are divided; with fewer, two peaks may be chance
_VALLEY = 0.35  # most density between two groups, as a share of the lower peak
_DIRECTIONS = 8  # principal directions in which groups are sought
_ROUNDS = 20  # of k-means, which settles long before
_LEAST_APART = 0.5  # standard deviations between the means of an element in two groups
_GRID = 128  # points at which the density along a direction is computed


def groups(z: Tensor, *, generator: Generator) -> Tensor:
    """The group of each draw: 0 for the largest, then 1 and so on, shape (S,).

    Args:
        z: Equally weighted draws of one query, (S, latent).
        generator: Halves the draws.
    """
    label = torch.zeros(len(z), dtype=torch.long)
    order = torch.randperm(len(z), generator=generator)
    fitted = torch.zeros(len(z), dtype=torch.bool)
    fitted[order[: len(z) // 2]] = True
    least = max(_LEAST_SHARE * len(z), 2)
    waiting = [torch.arange(len(z))]
    while waiting and int(label.max()) < MOST_GROUPS - 1:
        members = waiting.pop(0)
        right = _divided(z[members].double(), fitted[members], least)
        if right is not None:
            label[members[right]] = int(label.max()) + 1
            waiting += [members[~right], members[right]]
    return _by_size(label)


def with_different_data(label: Tensor, means: Tensor) -> Tensor:
    """The groups, with those merged that differ in z but not in the data.

    Args:
        label: The group of each draw, (S,).
        means: The decoder's mean at each draw, (S, *data).
    """
    flat = means.flatten(1).double()
    spread = flat.std(0)
    centres = torch.stack([flat[label == group].mean(0) for group in range(int(label.max()) + 1)])
    kept: list[int] = []
    found = label.clone()
    for group, centre in enumerate(centres):
        apart = ((centres[kept] - centre).abs() > _LEAST_APART * spread).any(-1)
        same = [k for k, is_apart in zip(kept, apart.tolist(), strict=True) if not is_apart]
        kept += [] if same else [group]
        found[label == group] = (same or [group])[0]
    return _by_size(found)


def _by_size(label: Tensor) -> Tensor:
    """The groups numbered from the largest."""
    _, own, sizes = label.unique(return_inverse=True, return_counts=True)
    rank = sizes.argsort(descending=True, stable=True).argsort()
    return rank[own]


def _divided(z: Tensor, fitted: Tensor, least: float) -> Tensor | None:
    """Which draws are beyond a gap that leaves enough on each side, boolean (S,); or None."""
    if len(z) < _FEWEST:
        return None
    centred = z - z[fitted].mean(0)
    axes = torch.linalg.svd(centred[fitted], full_matrices=False)[2][:_DIRECTIONS]
    points = centred @ axes.mT
    for direction in _directions(points[fitted]):
        along = points @ direction
        cut = _valley(along[fitted])
        if cut is not None and _is_gap(along[~fitted], cut):
            right = along > cut
            if min(right.sum(), (~right).sum()) >= least:
                return right
    return None


def _directions(points: Tensor) -> Iterator[Tensor]:
    """Directions between two groups of points (N, D), from 2-means started along each axis."""
    for axis in range(points.shape[1]):
        yield torch.eye(points.shape[1], dtype=points.dtype)[axis]
        right = points[:, axis] > points[:, axis].median()
        for _ in range(_ROUNDS):
            if not right.any() or right.all():
                break
            low, high = points[~right].mean(0), points[right].mean(0)
            nearer = (points - high).square().sum(-1) < (points - low).square().sum(-1)
            if bool((nearer == right).all()):
                break
            right = nearer
        if right.any() and not right.all():
            within = torch.where(
                right[:, None], points - points[right].mean(0), points - points[~right].mean(0)
            )
            spread = within.mT @ within / len(points)
            ridge = 1e-3 * spread.diagonal().mean() * torch.eye(len(spread), dtype=points.dtype)
            difference = points[right].mean(0) - points[~right].mean(0)
            found = torch.linalg.solve(spread + ridge, difference)
            if bool(found.isfinite().all()):
                yield found


def _density(along: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel density of numbers at points of a grid."""
    low, high = along.min(), along.max()
    spread = (along.quantile(0.9) - along.quantile(0.1)).clamp(min=1e-12)
    width = 0.12 * torch.minimum(spread, along.std()) + 1e-12
    grid = torch.linspace(0, 1, _GRID, dtype=along.dtype) * (high - low) + low
    kernels = torch.exp(-0.5 * ((grid[:, None] - along) / width) ** 2)
    return grid, kernels.sum(1)


def _valley(along: Tensor) -> Tensor | None:
    """Where the density is lowest compared with a peak on each side; None if there is no valley."""
    grid, density = _density(along)
    left = density.cummax(0).values
    right = density.flip(0).cummax(0).values.flip(0)
    depth = density / torch.minimum(left, right)
    place = int(depth.argmin())
    return grid[place] if depth[place] <= _VALLEY else None


def _is_gap(along: Tensor, cut: Tensor) -> bool:
    """Whether the density of other draws has a gap at the same place."""
    grid, density = _density(along)
    place = int((grid - cut).abs().argmin())
    if place in (0, _GRID - 1):
        return False
    lower = torch.minimum(density[:place].max(), density[place:].max())
    return bool(density[place] <= _VALLEY * lower)
