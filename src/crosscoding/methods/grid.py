"""Exact answers for latent ≤ 3: a grid over z, made finer where p(z|x) has its mass.

    log p(x) = log Σ_c p(z_c, x) · volume_c      (midpoint rule over cells c)

All queries share the coarse cells, which are decoded once. Each then keeps the cells that can still
matter, splits each of them into 2^latent, and stops when log p(x) has settled. A cell can matter if
its density, raised by as much as the density varies among its siblings, is within e^−25 of the
largest, so a peak that hides between the points of a coarse level is still followed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.errors import BudgetError
from crosscoding.findings import Findings
from crosscoding.methods.base import Method, Report, silent
from crosscoding.target import Target

_NEGLIGIBLE = 25.0
_COARSE_CELLS = {1: 512, 2: 128, 3: 40}
_CHUNK = 20_000


@dataclass(frozen=True)
class Grid(Method):
    """Deterministic integration over z, exact to `tolerance`.

    Args:
        tolerance: Change of log p(x) in nats between two levels at which a query is done, > 0.
        radius: Half the side of the box around 0 that is searched, in prior standard deviations.
        max_cells: Most cells a query may keep at one level.

    Raises (from `find`):
        ValueError: latent > 3, or the box cuts off mass of some query.
        BudgetError: A query needs more than max_cells.
    """

    tolerance: float = 1e-3
    radius: float = 8.0
    max_cells: int = 1_000_000

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.radius > 0 or self.max_cells < 1:
            raise ValueError(f"expected tolerance, radius and max_cells > 0, got {self}")

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        dim = target.latent_dim
        if dim > 3:
            raise ValueError(
                f"expected latent <= 3 for Grid, got {dim}; use Variational, HMC or Importance"
            )
        cells, log_evidence = self._coarse(target)
        done: list[_Cells] = []
        level = 0
        while len(cells.owner):
            level += 1
            cells = self._refined(target, cells)
            latest = cells.log_evidence(target)
            settled = (latest - log_evidence).abs() <= self.tolerance
            log_evidence = torch.where(cells.present(target), latest, log_evidence)
            finished = settled[cells.owner]
            done.append(cells.take(finished))
            cells = cells.take(~finished)
            report(1 - cells.present(target).float().mean().item(), f"level {level}")
        return _findings(target, done, log_evidence)

    def _coarse(self, target: Target) -> tuple["_Cells", Tensor]:
        """The cells of the whole box that matter, and log p(x) from all of them."""
        count, dim = _COARSE_CELLS[target.latent_dim], target.latent_dim
        width = 2 * self.radius * target.prior_scale / count
        axis = (torch.arange(count) + 0.5) * width - self.radius * target.prior_scale
        axis = axis.to(target.like)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        log_joint = target.pairwise_log_likelihood(points) + target.log_prior(points)[:, None]
        log_evidence = log_joint.logsumexp(0) + dim * math.log(width)
        spread = _sibling_spread(log_joint, count, dim)
        best = log_joint.amax(0) if len(log_joint) else log_joint.sum(0)
        keep = log_joint + spread >= best - _NEGLIGIBLE
        point, owner = keep.nonzero(as_tuple=True)
        on_edge = points[point].abs().amax(-1) > (self.radius * target.prior_scale - width)
        relative = log_joint[point, owner] - best[owner]
        if (on_edge & (relative > -_NEGLIGIBLE / 2)).any():
            raise ValueError(
                f"expected p(z|x) within {self.radius} prior standard deviations, and some query "
                "has mass at the edge; use Grid(radius=...) with a larger radius"
            )
        return _Cells(points[point], owner, log_joint[point, owner], width), log_evidence

    def _refined(self, target: Target, cells: "_Cells") -> "_Cells":
        """Every cell split in 2^latent, and of the parts those that can matter."""
        dim = target.latent_dim
        self._check_budget(target, cells)
        width = 0.5 * cells.width
        corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * dim).reshape(-1, dim)
        points = cells.points[:, None] + width * corners.to(cells.points)
        num_parts = points.shape[1]
        owner = cells.owner.repeat_interleave(num_parts)
        log_joint = _log_joint(target, points.flatten(0, 1), owner)
        siblings = log_joint.unflatten(0, (-1, num_parts))
        spread = (siblings.amax(1) - siblings.amin(1)).repeat_interleave(num_parts)
        best = log_joint.new_full((target.num_queries,), -math.inf)
        best = best.scatter_reduce(0, owner, log_joint, "amax")
        keep = log_joint + 0.5 * spread >= best[owner] - _NEGLIGIBLE
        return _Cells(points.flatten(0, 1)[keep], owner[keep], log_joint[keep], width)

    def _check_budget(self, target: Target, cells: "_Cells") -> None:
        counts = torch.bincount(cells.owner, minlength=target.num_queries)
        if len(counts) and counts.max() * 2**target.latent_dim > self.max_cells:
            raise BudgetError(
                f"expected at most {self.max_cells} cells a query, and query "
                f"{int(counts.argmax())} needs {int(counts.max()) * 2**target.latent_dim}; "
                "raise max_cells or tolerance"
            )


class _Cells:
    """Cells of one width, each of one query, in no order: points (C, latent), owner (C,)."""

    def __init__(self, points: Tensor, owner: Tensor, log_joint: Tensor, width: float) -> None:
        self.points, self.owner, self.log_joint, self.width = points, owner, log_joint, width

    def take(self, which: Tensor) -> "_Cells":
        return _Cells(
            self.points[which], self.owner[which], self.log_joint[which], self.width
        )

    def present(self, target: Target) -> Tensor:
        """Which queries have cells here, boolean (B,)."""
        return torch.bincount(self.owner, minlength=target.num_queries) > 0

    def log_evidence(self, target: Target) -> Tensor:
        """log of the mass of each query's cells, (B,); −inf where it has none."""
        best = self.log_joint.new_full((target.num_queries,), -math.inf)
        best = best.scatter_reduce(0, self.owner, self.log_joint, "amax")
        mass = torch.zeros_like(best, dtype=torch.double)
        mass.index_add_(0, self.owner, (self.log_joint - best[self.owner]).double().exp())
        volume = target.latent_dim * math.log(self.width)
        return (mass.log() + best + volume).to(self.log_joint.dtype)


def _sibling_spread(log_joint: Tensor, count: int, dim: int) -> Tensor:
    """Largest less smallest log-joint over each cell and its neighbours, as log_joint (N, B)."""
    grid = log_joint.mT.reshape(-1, 1, *[count] * dim)
    pool = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}[dim]
    largest, smallest = pool(grid, 3, 1, 1), -pool(-grid, 3, 1, 1)
    return (largest - smallest).reshape(log_joint.mT.shape).mT


def _log_joint(target: Target, points: Tensor, owner: Tensor) -> Tensor:
    """log p(z, x) at each point for the query that owns it, in pieces that bound memory."""
    pieces = [
        target.select(owner[rows]).log_joint(points[rows])
        for rows in torch.arange(len(points)).split(_CHUNK)
    ]
    return torch.cat(pieces) if pieces else points.sum(-1)


def _findings(target: Target, done: list[_Cells], log_evidence: Tensor) -> Findings:
    """The cells of every query side by side, (K, B), those with fewer filled up with weight 0."""
    num_queries, dim = target.num_queries, target.latent_dim
    like = target.like
    owner = torch.cat([c.owner for c in done]) if done else torch.zeros(0, dtype=torch.long)
    counts = torch.bincount(owner, minlength=num_queries)
    size = max(int(counts.max()) if num_queries else 0, 1)
    draws = like.new_zeros(size, num_queries, dim)
    log_weights = like.new_full((size, num_queries), -math.inf)
    cell_width = like.new_ones(num_queries)
    for cells in done:
        order = cells.owner.argsort(stable=True)
        sorted_owner = cells.owner[order]
        first = torch.searchsorted(sorted_owner, sorted_owner)
        place = torch.arange(len(order), device=order.device) - first
        draws[place, sorted_owner] = cells.points[order]
        log_weights[place, sorted_owner] = cells.log_joint[order]
        cell_width[sorted_owner] = cells.width
    log_weights = log_weights - log_weights.logsumexp(0)
    ess = torch.exp(-(2 * log_weights).logsumexp(0))
    zero = torch.zeros_like(log_evidence)
    return Findings(
        draws=draws,
        log_weights=log_weights,
        cell_width=cell_width,
        log_evidence=log_evidence,
        log_evidence_error=zero,
        c_elbo=log_evidence,
        c_elbo_error=zero,
        ess=ess,
        stats={"cells": counts.to(like.dtype)},
    )
