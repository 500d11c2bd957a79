"""Grid: integration over cells of z for latent ≤ 3, refined where p(z|x) needs it and then checked.

    log p(x) = log Σ_c p(z_c, x) · volume_c      (midpoint rule over cells c)

All queries share the coarse cells, which are decoded once. Each query then splits cells into
2^latent parts. If these confirm the mass of the cell, they are done; otherwise they are split
again. A part is left alone if its density is negligible even after adding the most by which it may
rise within the part. That rise is estimated from how the density varies between a cell and its
neighbours, and is at least a quarter of the rise of the cell that was split: along a ridge, all
parts may happen to be equally far from it.

A midpoint rule misses some things, such as a ripple with the period of the cells. So draws check
it: most come from the cells by their mass, and some from cells left alone. Weighted by importance,
they give a second, unbiased estimate of p(x).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.diagnostics import importance_ess, log_mean_exp, pareto_smooth
from crosscoding.errors import BudgetError, counted
from crosscoding.methods.base import Method, Report, silent
from crosscoding.random import uniform
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# Cells per side by latent dimension: not powers of 2, as periods in networks often are.
_COARSE_CELLS = {1: 509, 2: 125, 3: 41}
# Halving or doubling `_CELLS_EXPECTED` moves log p(x) on mnist-2d by at most 6e-4 nats, and changes
# the time by 15 %; any of the others moves it by at most 5e-5 nats.
_NEGLIGIBLE = 1e-4  # of the tolerance: share of p(x) below which a cell is left alone
_CELLS_EXPECTED = 100  # cells assumed to share the error that `tolerance` allows
_MAX_LEVELS = 30  # halvings of a side: 16 prior standard deviations to 1.5e-8
_LEAST_EXPONENT = -40.0  # e⁻⁴⁰ of the largest share is below rounding; denormals are slow
_SMOOTH = 2.0  # nats by which the density may vary over the parts of a finished cell
_SHARE_LEFT = 0.2  # share of the checking draws that come from cells left alone
# The stated error relative to the tolerance, and checking draws per effective one, above which
# their own error is added. On 24 queries of mnist-2d, `Grid` is off by at most 0.0004 nats and
# states 0.0004, or 0.0002 and 0.0007 with half and double of the first; the second changes nothing.
_OF_TOLERANCE, _DRAWS_PER_ESS = 0.05, 10
_DONE, _BEYOND_BOX, _TOO_MANY = 0, 1, 2  # outcomes


@dataclass(frozen=True)
class Grid(Method):
    """Deterministic integration over z; log p(x) is exact to about `tolerance`.

    `log_evidence_error` is a twentieth of the tolerance, or more if there are many cells or the
    checking draws disagree. `pareto_k` is that of the checking draws, and `stats["missed"]` the
    share of p(z|x) that they found in cells left alone.

    Args:
        tolerance: Error allowed in log p(x), in nats, > 0.
        radius: Half the side of the box around 0 that is integrated, in prior standard deviations.
        max_cells: Most cells per query.
        num_checks: Checking draws per query, ≥ 2.

    Raises (from `find`):
        ValueError: latent > 3, or the box cuts off mass of some query.
        BudgetError: A query needs more than max_cells.
    """

    tolerance: float = 1e-3
    radius: float = 8.0
    max_cells: int = 200_000
    num_checks: int = 1000
    points_at_once: ClassVar[int] = 65_536

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.radius > 0 or self.max_cells < 1:
            raise ValueError(f"expected tolerance, radius and max_cells > 0, got {self}")
        if self.num_checks < 2:
            raise ValueError(f"expected num_checks >= 2, got {self.num_checks}")

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        findings, outcome = self.integrate(target, generator=generator, report=report)
        if (outcome == _BEYOND_BOX).any():
            raise ValueError(
                f"expected p(z|x) within {self.radius} prior standard deviations of 0, but query "
                f"{target.name((outcome == _BEYOND_BOX).int().argmax())} has mass at the edge of "
                "that box; use Grid(radius=...) with a larger radius"
            )
        if (outcome == _TOO_MANY).any():
            raise BudgetError(
                f"expected at most {self.max_cells} cells a query, but query "
                f"{target.name((outcome == _TOO_MANY).int().argmax())} needs more; raise "
                "max_cells or tolerance"
            )
        return findings

    @torch.no_grad()
    def integrate(
        self,
        target: Target,
        *,
        generator: Generator,
        report: Report = silent,
        most: Tensor | None = None,
    ) -> tuple[Findings, Tensor]:
        """Findings, and the outcome of each query, (B,): 0 for success, or the kind of failure.

        `most` limits the decodes of each query, (B,), besides the coarse cells, which all share.
        """
        if target.latent_dim > 3:
            raise ValueError(
                f"expected latent <= 3 for Grid, got {target.latent_dim}; use Variational or HMC"
            )
        outcome, log_left_out, pending = self._coarse(target)
        settled = pending.take(torch.zeros_like(pending.owner, dtype=torch.bool))
        left, decodes = settled, torch.zeros_like(outcome)
        for level in range(_MAX_LEVELS):
            more = 2**target.latent_dim * pending.num_of(target.num_queries)
            if most is not None and (beyond := (decodes + more > most) & (more > 0)).any():
                outcome[beyond], more = _TOO_MANY, torch.where(beyond, 0, more)
                settled, pending, left = (
                    cells.take(~beyond[cells.owner]) for cells in (settled, pending, left)
                )
            if not len(pending.owner):
                break
            decodes += more
            report(level / (level + 3), counted(len(pending.owner), "cell"))
            finished, pending = self._split(target, settled, pending)
            settled = _joined(settled, finished)
            log_evidence = _joined(settled, pending).log_total(target.num_queries)
            matters = settled.log_mass > log_evidence[settled.owner] + self._log_negligible
            left, settled = _joined(left, settled.take(~matters)), settled.take(matters)
            held = _joined(settled, pending).num_of(target.num_queries)
            too_many = held > self.max_cells
            if too_many.any():
                outcome[too_many] = _TOO_MANY
                settled, pending, left = (
                    cells.take(~too_many[cells.owner]) for cells in (settled, pending, left)
                )
        outcome[pending.owner] = _TOO_MANY
        log_left_out = torch.logaddexp(log_left_out, left.log_total(target.num_queries))
        figures = self._check(target, settled, left, generator)
        found = _findings(target, settled, log_left_out, self.tolerance, figures)
        found.stats["decodes"] = (decodes + self.num_checks).to(target.like.dtype)
        return found, outcome

    def _coarse(self, target: Target) -> tuple[Tensor, Tensor, "_Cells"]:
        """Decode the box: outcomes, log mass left alone, both (B,), and coarse cells to split."""
        count, dim = _COARSE_CELLS[target.latent_dim], target.latent_dim
        radius = self.radius * target.prior_scale
        width = 2 * radius / count
        index = torch.arange(count, dtype=torch.double, device=target.device)
        axis = ((index + 0.5) * width - radius).to(target.like)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        log_joint = target.pairwise_log_likelihood(points) + target.log_prior(points)[:, None]
        highest_of_all = log_joint.amax(0)
        relative = log_joint - highest_of_all  # differences keep the digits that large numbers lose
        shares = F.threshold(relative, _LEAST_EXPONENT, -math.inf).exp_()
        log_total = shares.sum(0).log() + self._log_negligible
        highest, spread = _of_neighbours(relative, count, dim)
        on_edge = points.abs().amax(-1) > radius - width
        beyond = (relative[on_edge] > log_total).any(0) | ~highest_of_all.isfinite()
        matters = (_at_most(relative, spread, highest) > log_total) & ~beyond
        point, owner = matters.nonzero(as_tuple=True)
        log_volume = dim * math.log(width)
        log_left_out = shares.masked_fill_(matters, 0.0).sum(0).log() + highest_of_all
        cells = _Cells(
            points[point],
            owner,
            log_joint[point, owner].double() + log_volume,
            torch.full_like(point, 1).to(log_joint) * width,
            0.5 * spread[point, owner].nan_to_num(nan=0.0, posinf=0.0),
        )
        outcome = torch.where(beyond, _BEYOND_BOX, _DONE)
        return outcome, log_left_out.double() + log_volume, cells

    def _split(
        self, target: Target, settled: "_Cells", parents: "_Cells"
    ) -> tuple["_Cells", "_Cells"]:
        """The parts of every cell: the finished ones, and those to split again."""
        dim = target.latent_dim
        quarters = parents.points.new_tensor([-0.25, 0.25])
        corners = torch.cartesian_prod(*[quarters] * dim).reshape(-1, 1, dim)
        points = (parents.points + parents.width[:, None] * corners).flatten(0, 1)
        num_parts = len(corners)
        owner, width = parents.owner.repeat(num_parts), 0.5 * parents.width.repeat(num_parts)
        log_joint = target.log_prior(points) + target.log_likelihood_at(points, owner)
        log_mass = log_joint.double() + dim * width.log()
        by_parent = log_mass.unflatten(0, (num_parts, -1))
        spread = (by_parent.amax(0) - by_parent.amin(0)).to(parents.rise).nan_to_num(nan=0.0)
        known = torch.where(spread.isinf(), 0.0, spread)
        rise = torch.maximum(0.5 * known, 0.25 * parents.rise).repeat(num_parts)
        parts = _Cells(points, owner, log_mass, width, rise)
        log_evidence = _joined(settled, parts).log_total(target.num_queries)
        share = (by_parent.logsumexp(0) - log_evidence[parents.owner]).exp()
        share_before = (parents.log_mass - log_evidence[parents.owner]).exp()
        unsure = (share - share_before).abs() > self.tolerance / _CELLS_EXPECTED
        unsure |= spread > _SMOOTH
        highest = by_parent.amax(0).repeat(num_parts)
        may_hold = _at_most(log_mass, rise, highest) - log_evidence[owner] > self._log_negligible
        again = unsure.repeat(num_parts) & may_hold
        # The midpoint rule's error falls with width²: a third of what splitting gained is left.
        gained = (1 - (parents.log_mass - by_parent.logsumexp(0)).exp()).nan_to_num(nan=0.0)
        left = torch.where(unsure, 0.0, gained.clamp(-1.0, 1.0) / 3)
        parts = replace(parts, log_mass=log_mass + left.log1p().repeat(num_parts))
        return parts.take(~again), replace(parts, log_mass=log_mass).take(again)

    @property
    def _log_negligible(self) -> float:
        return math.log(_NEGLIGIBLE * self.tolerance)

    def _check(
        self, target: Target, settled: "_Cells", left: "_Cells", generator: Generator
    ) -> "_Recount":
        """Importance sampling from cells by their mass, and evenly from cells left alone."""
        num_queries, dim = target.num_queries, target.latent_dim
        cells = _joined(_joined(settled, left), _Cells.empty(target))
        is_left = torch.zeros_like(cells.owner, dtype=torch.bool)
        is_left[len(settled.owner) : len(settled.owner) + len(left.owner)] = True
        order = cells.owner.argsort(stable=True)
        cells, is_left = cells.take(order), is_left[order]
        q = _shares(cells, is_left, num_queries)
        # Each query's shares sum to 1, so in one running sum query b goes from b to b + 1.
        start, steps = torch.arange(num_queries).to(order)[:, None], torch.arange(self.num_checks)
        offset = uniform((1,), generator=generator, like=target.like).double()
        wanted = start + (steps.to(order) + offset) / self.num_checks
        chosen = torch.searchsorted(q.cumsum(0), wanted).mT  # (num_checks, B)
        last = torch.searchsorted(cells.owner, start[:, 0], right=True) - 1
        first = torch.searchsorted(cells.owner, start[:, 0])
        chosen = torch.minimum(torch.maximum(chosen, first), last)
        place = uniform((self.num_checks, 1, dim), generator=generator, like=target.like)
        z = cells.points[chosen] + (place - 0.5) * cells.width[chosen][..., None]
        log_q = q[chosen].log() - dim * cells.width[chosen].double().log()
        log_weights = target.log_joint(z, checked=False).double().nan_to_num(nan=-math.inf) - log_q
        log_evidence, error = log_mean_exp(log_weights)
        shares = log_weights.softmax(0)
        return _Recount(
            log_evidence=log_evidence,
            error=error,
            ess=importance_ess(log_weights),
            pareto_k=pareto_smooth(log_weights)[1],
            missed=torch.where(is_left[chosen], shares, 0.0).sum(0),
            num=self.num_checks,
        )


@dataclass(frozen=True, eq=False)
class _Recount:
    """Estimates by the checking draws, (B,), in double; `missed`: the share in cells left alone."""

    log_evidence: Tensor
    error: Tensor
    ess: Tensor
    pareto_k: Tensor
    missed: Tensor
    num: int

    def error_of(self, log_evidence: Tensor) -> Tensor:
        """Error of log p(x) beyond 2 standard errors of the draws, in nats, (B,)."""
        gap = (log_evidence - self.log_evidence).square() - (2 * self.error).square()
        off = gap.clamp_min(0.0).sqrt()
        return torch.where(self.ess >= self.num / _DRAWS_PER_ESS, off, torch.hypot(off, self.error))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of all queries, in any order.

    Attributes:
        points: Centres, shape (C, latent).
        owner: The query that each belongs to, shape (C,).
        log_mass: log of density times volume, in double, shape (C,).
        width: Side, shape (C,).
        rise: By how much the log-density may exceed that at the centre, shape (C,).
    """

    points: Tensor
    owner: Tensor
    log_mass: Tensor
    width: Tensor
    rise: Tensor

    @classmethod
    def empty(cls, target: Target) -> "_Cells":
        """A cell without mass for each query, so that every query has one."""
        like = target.like.new_ones(target.num_queries)
        owner = torch.arange(target.num_queries, device=like.device)
        points = like.new_zeros(target.num_queries, target.latent_dim)
        return cls(points, owner, torch.full_like(like, -math.inf).double(), like, like)

    def take(self, which: Tensor) -> "_Cells":
        """Some of the cells."""
        return _Cells(*(getattr(self, f.name)[which] for f in fields(self)))

    def num_of(self, num_queries: int) -> Tensor:
        """Number of each query's cells, (B,)."""
        return torch.bincount(self.owner, minlength=num_queries)

    def log_total(self, num_queries: int) -> Tensor:
        """log of the mass of each query's cells, in double, (B,); −inf where it has none."""
        best = self.log_mass.new_full((num_queries,), -math.inf)
        best = best.scatter_reduce(0, self.owner, self.log_mass, "amax")
        relative = (self.log_mass - best[self.owner]).exp().nan_to_num(nan=0.0)
        return torch.zeros_like(best).index_add_(0, self.owner, relative).log() + best


def _shares(cells: _Cells, is_left: Tensor, num_queries: int) -> Tensor:
    """Shares of the checking draws, (C,): by mass and, of cells left alone, some evenly."""
    by_mass = (cells.log_mass - cells.log_total(num_queries)[cells.owner]).exp()
    num_left = torch.bincount(cells.owner[is_left], minlength=num_queries)[cells.owner]
    share_left = _SHARE_LEFT * (num_left > 0).double()
    evenly = is_left.double() / num_left.clamp_min(1)
    return (1 - share_left) * by_mass.nan_to_num(nan=1.0) + share_left * evenly


def _joined(first: _Cells, second: _Cells) -> _Cells:
    return _Cells(
        *(torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(_Cells))
    )


def _at_most(log_density: Tensor, rise: Tensor, highest: Tensor) -> Tensor:
    """The highest log-density possible within cells, given how it varies around them.

    If it is −inf at the centre, as at the edge of the support, it may still be as high as nearby.
    """
    return torch.where(log_density == -math.inf, highest, log_density + rise)


def _of_neighbours(log_joint: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Maximum over each cell and its neighbours, and maximum minus minimum; shapes as log_joint."""
    highest = lowest = log_joint.unflatten(0, [count] * dim)
    for axis in range(dim):
        highest = _with_next(highest, axis, torch.maximum)
        lowest = _with_next(lowest, axis, torch.minimum)
    return highest.flatten(0, dim - 1), (highest - lowest).flatten(0, dim - 1)


def _with_next(values: Tensor, axis: int, extreme: Callable[..., Tensor]) -> Tensor:
    """The extreme of each value and of those before and after it along an axis."""
    num, result = values.shape[axis] - 1, values.clone()
    pairs = extreme(values.narrow(axis, 0, num), values.narrow(axis, 1, num))
    result.narrow(axis, 0, num).copy_(pairs)
    after = result.narrow(axis, 1, num)
    extreme(after, pairs, out=after)
    return result


def _findings(
    target: Target, cells: _Cells, log_left_out: Tensor, tolerance: float, check: _Recount
) -> Findings:
    """Findings whose draws are the cells, (K, B); queries with fewer are padded with weight 0."""
    num_queries, like = target.num_queries, target.like
    log_evidence = torch.logaddexp(cells.log_total(num_queries), log_left_out)
    cells = cells.take(cells.owner.argsort(stable=True))
    counts = cells.num_of(num_queries)
    by_cells = _OF_TOLERANCE * tolerance * (counts.double() / _CELLS_EXPECTED).clamp_min(1.0).sqrt()
    error = by_cells + check.error_of(log_evidence)
    first = torch.searchsorted(cells.owner, cells.owner)
    place = torch.arange(len(first), device=first.device) - first
    size = max(int(counts.max()) if num_queries else 0, 1)
    draws = like.new_zeros(size, num_queries, target.latent_dim)
    log_weights = like.new_full((size, num_queries), -math.inf)
    cell_width = like.new_zeros(size, num_queries)
    draws[place, cells.owner] = cells.points
    log_mass = cells.log_mass - cells.log_total(num_queries)[cells.owner]
    log_weights[place, cells.owner] = log_mass.to(like.dtype)
    cell_width[place, cells.owner] = cells.width
    log_weights[0, counts == 0] = 0.0
    log_evidence, error = log_evidence.to(like.dtype), error.to(like.dtype)
    return Findings(
        draws=draws,
        log_weights=log_weights,
        cell_width=cell_width,
        exact_density=True,
        log_evidence=log_evidence,
        log_evidence_error=error,
        c_elbo=log_evidence,
        c_elbo_error=error,
        ess=torch.full_like(error, math.inf),  # sums have no sampling error
        pareto_k=check.pareto_k.to(like.dtype),
        missed=check.missed.to(like.dtype),
        num_weighed=torch.full_like(error, check.num),
        stats={"cells": counts.to(like.dtype)},
    )
