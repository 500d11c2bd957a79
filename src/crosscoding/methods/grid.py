"""Exact answers for latent ≤ 3: cells over z, made finer where p(z|x) needs it.

    log p(x) = log Σ_c p(z_c, x) · volume_c      (midpoint rule over cells c)

All queries share the coarse cells, which are decoded once. A query then splits cells in 2^latent. A
cell whose mass its parts confirm is done; the others go on. Parts that can hold no mass are left
alone: those whose density, raised by as much as it varies among its siblings, is still negligible.
So a peak that hides between the points of a coarse level is followed to where it is.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Generator, Tensor

from crosscoding.errors import BudgetError
from crosscoding.findings import Findings
from crosscoding.methods.base import Method, Report, silent
from crosscoding.target import Target

_COARSE_CELLS = {1: 512, 2: 128, 3: 40}
_NEGLIGIBLE = 1e-4  # of the tolerance: share of p(x) that a cell may hold and be left alone
_CELLS_EXPECTED = 100  # cells that share the error that `tolerance` allows
_MAX_LEVELS = 30


@dataclass(frozen=True)
class Grid(Method):
    """Deterministic integration over z; log p(x) is exact to about `tolerance`.

    Args:
        tolerance: Error allowed in log p(x), in nats, > 0.
        radius: Half the side of the box around 0 that is searched, in prior standard deviations.
        max_cells: Most cells a query may have.

    Raises (from `find`):
        ValueError: latent > 3, or the box cuts off mass of some query.
        BudgetError: A query needs more than max_cells.
    """

    tolerance: float = 1e-3
    radius: float = 8.0
    max_cells: int = 200_000
    points_at_once: ClassVar[int] = 65_536

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.radius > 0 or self.max_cells < 1:
            raise ValueError(f"expected tolerance, radius and max_cells > 0, got {self}")

    @property
    def _log_negligible(self) -> float:
        return math.log(_NEGLIGIBLE * self.tolerance)

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        if target.latent_dim > 3:
            raise ValueError(
                f"expected latent <= 3 for Grid, got {target.latent_dim}; use Variational or HMC"
            )
        log_left_out, pending = self._coarse(target)
        settled = pending.take(torch.zeros_like(pending.owner, dtype=torch.bool))
        for level in range(_MAX_LEVELS):
            if not len(pending.owner):
                break
            report(level / (level + 3), f"{len(pending.owner)} cells")
            finished, pending = self._split(target, settled, pending)
            settled = _joined(settled, finished)
            log_evidence = _joined(settled, pending).log_total(target.num_queries)
            matters = settled.log_mass > log_evidence[settled.owner] + self._log_negligible
            dropped = settled.take(~matters).log_total(target.num_queries)
            log_left_out = torch.logaddexp(log_left_out, dropped)
            settled = settled.take(matters)
            self._check_budget(target, _joined(settled, pending))
        else:
            raise BudgetError(
                f"expected p(z|x) to be resolved after {_MAX_LEVELS} levels of cells, and some "
                "are not; raise tolerance"
            )
        return _findings(target, _joined(settled, pending), log_left_out)

    def _coarse(self, target: Target) -> tuple[Tensor, "_Cells"]:
        """The whole box: log of the mass of cells to leave alone, (B,), and the cells to split."""
        count, dim = _COARSE_CELLS[target.latent_dim], target.latent_dim
        radius = self.radius * target.prior_scale
        width = 2 * radius / count
        axis = ((torch.arange(count) + 0.5) * width - radius).to(target.like)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        log_joint = target.pairwise_log_likelihood(points) + target.log_prior(points)[:, None]
        log_mass = log_joint + dim * math.log(width)
        highest = log_mass + _neighbour_spread(log_joint, count, dim)
        log_evidence = log_mass.logsumexp(0)
        on_edge = (points.abs().amax(-1) > radius - width)[:, None]
        if (on_edge & (log_mass > log_evidence + self._log_negligible)).any():
            raise ValueError(
                f"expected p(z|x) within {self.radius} prior standard deviations of 0, and a query "
                "has mass at the edge of that box; use Grid(radius=...) with a larger radius"
            )
        matters = highest > log_evidence + self._log_negligible
        point, owner = matters.nonzero(as_tuple=True)
        size = torch.full_like(point, 1).to(log_joint) * width
        log_left_out = log_mass.masked_fill(matters, -math.inf).logsumexp(0)
        return log_left_out, _Cells(points[point], owner, log_mass[point, owner], size)

    def _split(
        self, target: Target, settled: "_Cells", parents: "_Cells"
    ) -> tuple["_Cells", "_Cells"]:
        """The parts of every cell: those that are done, and those to split again."""
        dim = target.latent_dim
        corners = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25])] * dim).reshape(-1, 1, dim)
        points = (parents.points + parents.width[:, None] * corners.to(parents.points)).flatten(
            0, 1
        )
        num_parts = len(corners)
        owner, width = parents.owner.repeat(num_parts), 0.5 * parents.width.repeat(num_parts)
        log_joint = target.log_prior(points) + target.log_likelihood_at(points, owner)
        log_mass = log_joint + dim * width.log()
        parts = _Cells(points, owner, log_mass, width)
        by_parent = log_mass.unflatten(0, (num_parts, -1))
        log_evidence = _joined(settled, parts).log_total(target.num_queries)
        share = (by_parent.logsumexp(0) - log_evidence[parents.owner]).exp()
        share_before = (parents.log_mass - log_evidence[parents.owner]).exp()
        unsure = (share - share_before).abs() > self.tolerance / _CELLS_EXPECTED
        spread = by_parent.amax(0) - by_parent.amin(0)
        highest = log_mass + 0.5 * spread.repeat(num_parts) - log_evidence[owner]
        again = (unsure | (spread > 2.0)).repeat(num_parts) & (highest > self._log_negligible)
        return parts.take(~again), parts.take(again)

    def _check_budget(self, target: Target, cells: "_Cells") -> None:
        counts = torch.bincount(cells.owner, minlength=target.num_queries)
        if len(counts) and counts.max() > self.max_cells:
            raise BudgetError(
                f"expected at most {self.max_cells} cells a query, and query "
                f"{target.name(counts.argmax())} has {int(counts.max())}; raise max_cells or "
                "tolerance"
            )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells in no order: centre (C, latent), owner, log of the mass and side, each (C,)."""

    points: Tensor
    owner: Tensor
    log_mass: Tensor
    width: Tensor

    def take(self, which: Tensor) -> "_Cells":
        return _Cells(*(getattr(self, f.name)[which] for f in fields(self)))

    def log_total(self, num_queries: int) -> Tensor:
        """log of the mass of each query's cells, (B,); −inf where it has none."""
        best = self.log_mass.new_full((num_queries,), -math.inf)
        best = best.scatter_reduce(0, self.owner, self.log_mass, "amax")
        relative = (self.log_mass - best[self.owner]).double().exp()
        mass = torch.zeros_like(best, dtype=torch.double).index_add_(0, self.owner, relative)
        return (mass.log() + best).to(best.dtype)


def _joined(first: _Cells, second: _Cells) -> _Cells:
    return _Cells(
        *(torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(_Cells))
    )


def _neighbour_spread(log_joint: Tensor, count: int, dim: int) -> Tensor:
    """Half the largest less the smallest of each cell and its neighbours, as log_joint (N, B)."""
    grid = log_joint.mT.reshape(-1, 1, *[count] * dim)
    pool = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}[dim]
    spread = pool(grid, 3, 1, 1) + pool(-grid, 3, 1, 1)
    return 0.5 * spread.reshape(log_joint.mT.shape).mT


def _findings(target: Target, cells: _Cells, log_left_out: Tensor) -> Findings:
    """The cells of every query side by side, (K, B), those with fewer filled up with weight 0."""
    num_queries, like = target.num_queries, target.like
    log_evidence = torch.logaddexp(cells.log_total(num_queries), log_left_out)
    cells = cells.take(cells.owner.argsort(stable=True))
    counts = torch.bincount(cells.owner, minlength=num_queries)
    first = torch.searchsorted(cells.owner, cells.owner)
    place = torch.arange(len(first), device=first.device) - first
    size = max(int(counts.max()) if num_queries else 0, 1)
    draws = like.new_zeros(size, num_queries, target.latent_dim)
    log_weights = like.new_full((size, num_queries), -math.inf)
    cell_width = like.new_zeros(size, num_queries)
    draws[place, cells.owner] = cells.points
    log_weights[place, cells.owner] = cells.log_mass
    cell_width[place, cells.owner] = cells.width
    log_weights = log_weights - log_weights.logsumexp(0)
    zero = torch.zeros_like(log_evidence)
    return Findings(
        draws=draws,
        log_weights=log_weights,
        cell_width=cell_width,
        exact_density=True,
        log_evidence=log_evidence,
        log_evidence_error=zero,
        c_elbo=log_evidence,
        c_elbo_error=zero,
        ess=torch.full_like(zero, math.inf),  # sums, not draws: there is no sampling error
        stats={"cells": counts.to(like.dtype), "missed": zero},
    )
