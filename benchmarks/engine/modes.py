"""Finds the modes of p(z|x) and measures the errors of an answer's mode masses.

In 2 dimensions, modes are the connected regions of grid cells whose exact density exceeds a share
of the highest one. In more dimensions, they are the points where climbs from reference draws end.
Each point belongs to the nearest mode, so the masses of reference and answer are those of the same
sets. The modes depend on the reference only, never on the answer.
"""

import math

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

import crosscoding as cc
from crosscoding.methods.numerics.gauss_newton import climb

SHARE = 0.05  # of the highest density; cells below separate regions
_NUM_CLIMBS, _CLIMB_STEPS = 16, 30


class Regions:
    """Modes of one query in low dimensions, from the cells of a `Grid` answer."""

    def __init__(self, cells: Tensor, log_weights: Tensor, width: Tensor) -> None:
        real = log_weights > -np.inf
        cells, log_weights, width = (t[real].double().numpy() for t in (cells, log_weights, width))
        log_density = log_weights - cells.shape[-1] * np.log(width)
        high = log_density > log_density.max() + np.log(SHARE)
        points, sizes = cells[high], width[high]
        self.num, self._label = _components(points, sizes)
        self._tree = KDTree(points)
        mass = np.exp(log_weights)
        self.masses = np.bincount(self._which(cells), mass / mass.sum(), self.num)

    def error(self, draws: Tensor) -> float:
        """Largest error of a mode's mass, from draws (S, latent)."""
        found = np.bincount(self._which(draws.double().numpy()), minlength=self.num) / len(draws)
        return float(np.abs(found - self.masses).max())

    def _which(self, points: np.ndarray) -> np.ndarray:
        return self._label[self._tree.query(points)[1]]


def _components(points: np.ndarray, sizes: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of regions of touching cells (corners count), and each cell's region.

    Cells of one size are compared with those that are no larger, which keeps the search local.
    """
    firsts, seconds = [], []
    for size in np.unique(sizes):
        these, finer = np.flatnonzero(sizes == size), np.flatnonzero(sizes <= size)
        near = KDTree(points[these]).sparse_distance_matrix(
            KDTree(points[finer]), 1.01 * size, p=np.inf, output_type="ndarray"
        )
        first, second = these[near["i"]], finer[near["j"]]
        touch = near["v"] < 0.505 * (size + sizes[second])
        firsts.append(first[touch])
        seconds.append(second[touch])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    graph = coo_array((np.ones(len(first)), (first, second)), (len(points), len(points)))
    return connected_components(graph, directed=False)


def mass_errors(target: cc.Target, reference: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Largest error of a mode's mass, and the number of modes, of each query: (B,), (B,).

    Args:
        target: Flat target of B queries.
        reference: Equally weighted draws from p(z|x), (R, B, latent).
        draws: Draws of the answer, (S, B, latent).
    Returns:
        NaN and 0 where there is no reference.
    """
    known = reference.isfinite().all(-1).all(0)
    starts = reference.nan_to_num()[:: max(len(reference) // _NUM_CLIMBS, 1)][:_NUM_CLIMBS]
    modes = climb(target.flatten(), starts, _CLIMB_STEPS)
    _, climbs = modes.log_weights()
    errors, nums = [], []
    for b in range(reference.shape[1]):
        if not known[b]:
            errors.append(torch.tensor(math.nan))
            nums.append(0)
            continue
        centres = modes.z[:, b][climbs[:, b] > 0]
        scale = torch.linalg.cholesky(
            torch.cov(reference[:, b].mT) + 1e-12 * torch.eye(reference.shape[-1])
        )
        shares = [_nearest(points, centres, scale) for points in (reference[:, b], draws[:, b])]
        errors.append((shares[0] - shares[1]).abs().max())
        nums.append(len(centres))
    return torch.stack(errors), torch.tensor(nums)


def _nearest(points: Tensor, centres: Tensor, scale: Tensor) -> Tensor:
    """Share of points nearest to each centre, after whitening with a Cholesky factor."""
    white = [torch.linalg.solve_triangular(scale, p.mT, upper=False).mT for p in (points, centres)]
    which = torch.cdist(*white).argmin(-1)
    return torch.bincount(which, minlength=len(centres)) / len(points)


def half_error(draws: Tensor) -> Tensor:
    """|share of draws on one side of 0 − 1/2|, (B,), for p(z|x) = p(−z|x), draws (S, B, latent).

    The sides are those of the direction in which the draws are farthest from 0, which separates
    mirrored modes if any direction does.
    """
    second = torch.einsum("sbi,sbj->bij", draws, draws)
    direction = torch.linalg.eigh(second).eigenvectors[..., -1]
    side = torch.einsum("sbi,bi->sb", draws, direction) > 0
    return (side.to(draws).mean(0) - 0.5).abs()
