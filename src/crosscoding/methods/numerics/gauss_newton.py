"""Climbs to the modes of p(z|x) by damped Gauss–Newton steps, many at once.

    z ← z + (H + λ diag H)⁻¹ ∇ log p(z, x),   H = I + Jᵀ F J

H costs one pass per latent dimension, log p(z, x) a single one, so each step tries several λ.

Source: Marquardt (1963) for the damping. Differs in: several λ at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.crosscoders.precision_factors import precision_root
from crosscoding.errors import counted
from crosscoding.methods.numerics.gradients import Points, evaluated
from crosscoding.methods.numerics.resampling import taken
from crosscoding.progress import Report, silent
from crosscoding.target.base import Target

# Latent dimensions above which latent × latent matrices take too much memory: 2 MiB each in double,
# for each point.
MOST_DIM = 512
# Halving or doubling any of the others changes no answer of `Auto` on mnist-20d, except that half
# of `_NO_MODE` costs 12 % more decodes. `Laplace` has an ESS of 28, or 19 with half of `_DAMPINGS`.
_NO_MODE = 4.0  # nats below all modes together: e⁻⁴ = 0.018 of p(z|x), less than `MISSED` allows
_LEAST_GAIN = 1e-3  # nats that a step must promise, or the climb ends: 1/40 of a trusted error
_SAME = 1.0  # squared distance in standard deviations, within which two modes are one
_NEAR = 0.25  # the same, within which a climb joins the best one of its query
_DAMPINGS = (0.1, 1.0, 10.0, 100.0)  # tried at each step, relative to the best one of the last step
# Factor of the damping if none of them gains, so that the next four continue these, and the damping
# at which a climb ends.
_MORE_DAMPING, _MOST_DAMPING = 500.0, 1e8
_LEAST_DAMPING = 1e-7  # rounding in double: halving or doubling it changes nothing on mnist-20d
# The damping that climbs start with, and the largest squared distance of a mode from the one whose
# bulk it belongs to. Half or double of either moves log p(x) on mnist-20d by at most 0.05 nats,
# less than half as much as another seed; half of the first costs 18 % more decodes.
_FIRST_DAMPING, _MOST_BULK = 0.1, 12.0
# Least curvature where it is not positive, relative to the prior's precision; and share of the
# draws that a mode should have, below which it counts as lacking. Halving or doubling either
# changes no answer on mnist-20d or blocks.
_FLAT, _FEW_DRAWS = 1e-3, 0.2


@dataclass(eq=False)
class Modes:
    """Where climbs ended, K per query.

    Args:
        z: Shape (K, B, latent).
        log_joint: log p(z, x) there, shape (K, B).
        precision: H there, positive definite, in double, shape (K, B, latent, latent).
        steps: Steps taken, shape (K, B).
        decodes: Approximate number of decoder evaluations, shape (B,).
    """

    z: Tensor
    log_joint: Tensor
    precision: Tensor
    steps: Tensor
    decodes: Tensor

    def select(self, index: Tensor) -> "Modes":
        """The modes of some queries."""
        return Modes(
            self.z[:, index],
            self.log_joint[:, index],
            self.precision[:, index],
            self.steps[:, index],
            self.decodes[index],
        )

    @staticmethod
    def joined(parts: "Sequence[Modes]") -> "Modes":
        """The modes of several blocks of queries, one after the other."""
        return Modes(
            torch.cat([part.z for part in parts], 1),
            torch.cat([part.log_joint for part in parts], 1),
            torch.cat([part.precision for part in parts], 1),
            torch.cat([part.steps for part in parts], 1),
            torch.cat([part.decodes for part in parts]),
        )

    def and_more(self, others: "Modes") -> "Modes":
        """The ends of these climbs and of others, of the same queries."""
        return Modes(
            torch.cat([self.z, others.z]),
            torch.cat([self.log_joint, others.log_joint]),
            torch.cat([self.precision, others.precision]),
            torch.cat([self.steps, others.steps]),
            self.decodes + others.decodes,
        )

    @property
    def bulk(self) -> float:
        """Squared distance in widths within which another mode belongs to this one's bulk.

        Draws of a Gaussian lie at a squared distance of about their dimension. But modes more than
        √12 = 3.5 widths apart are separate.
        """
        return min(float(self.z.shape[-1]), _MOST_BULK)

    def log_weights(self, same: float = _SAME) -> tuple[Tensor, Tensor]:
        """log of each mode's normalised share, and the number of climbs that ended in it, (K, B).

        A mode found several times counts where it was found best, and has −inf and 0 elsewhere.

        Args:
            same: Squared distance, in the widths of either mode, below which two modes are one.
        """
        half_log_det = half_log_determinant(self.precision)
        log_mass = self.log_joint - half_log_det.to(self.log_joint)
        order = log_mass.argsort(dim=0, descending=True)
        z, precision = taken(self.z, order), taken(self.precision, order)
        climbs = torch.ones_like(log_mass)  # in this order
        for better in range(len(order) - 1):
            gaps = (z[better + 1 :] - z[better]).double()
            apart = squared_widths(gaps, precision[better], precision[better + 1 :])
            again = (apart < same) & (climbs[better] > 0)
            climbs[better] += torch.where(again, climbs[better + 1 :], 0.0).sum(0)
            climbs[better + 1 :].masked_fill_(again, 0.0)
        climbs = torch.empty_like(climbs).scatter_(0, order, climbs)
        log_mass = torch.where(climbs > 0, log_mass, -math.inf)
        return log_mass.log_softmax(0), climbs


@torch.no_grad()
def climb(
    target: Target,
    starts: Tensor,
    steps: int,
    *,
    every: int = 1,
    report: Report = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Modes:
    """Climb from starts (K, B, latent) by damped Gauss–Newton.

    A climb that comes close to the best one of its query ends where that one ends.

    Args:
        target: A flat target.
        starts: Where to climb from.
        steps: Most steps.
        every: Steps per curvature.
        report: Receives progress.
        stop: Called before each step; if it returns True, the climbs end as they are.
    """
    climbs = _Climbs(target, starts)
    for step in range(steps):
        num = len(climbs.active)
        if not num or stop():
            break
        report(step / steps, f"climbs of {counted(num, 'query', 'queries')}")
        climbs.step(with_curvature=step % every == 0)
    return climbs.ends()


class _Climbs:
    """Where K climbs of each query are, and what they took so far.

    Attributes:
        z: Shape (K, B, latent).
        log_joint: log p(z, x) there, shape (K, B).
        steps: Steps taken, shape (K, B).
        decodes: Approximate number of decoder evaluations, shape (B,).
        active: Indices of the queries with climbs that are not over.
    """

    def __init__(self, target: Target, starts: Tensor) -> None:
        self.z, self.log_joint = starts.clone(), target.log_joint(starts)
        self.steps = torch.zeros_like(self.log_joint)
        self.decodes = torch.zeros_like(self.log_joint[0])
        self.active = torch.arange(starts.shape[1], device=starts.device)
        self._all, self._climbing = target, target
        self._damping = torch.full_like(self.log_joint, _FIRST_DAMPING)
        self._over = torch.zeros_like(self.log_joint, dtype=torch.bool)
        self._own = torch.arange(len(starts), device=starts.device)[:, None]
        self._leader = self._own.repeat(1, starts.shape[1])  # the climb that each ends with
        self._precision = starts.new_zeros(*starts.shape, target.latent_dim, dtype=torch.double)

    def step(self, *, with_curvature: bool) -> None:
        """Take a step in each climb that is not over, with the curvature there or the last one."""
        at, climbing = self._running(), self._climbing
        going = ~self._over[at]
        here = evaluated(climbing, climbing.log_joint, self.z[at])
        if with_curvature:
            curvature = climbing.curvature(here.z)
            climbing.clock.tick()
            self._precision[at] = positive(curvature, climbing.prior_scale)
            self.decodes[self.active] += going.sum(0) * climbing.curvature_decodes
        there, reached, best_damping, promised = _best_step(
            climbing, here, self._precision[at], self._damping[at]
        )
        better = going & (reached > here.log_density)
        self.z[at] = torch.where(better[..., None], there, here.z)
        self.log_joint[at] = torch.where(better, reached, here.log_density)
        self._damping[at] = torch.where(better, best_damping, _MORE_DAMPING * self._damping[at])
        self.steps[at] += going.to(self.z)
        self.decodes[self.active] += going.sum(0) * (len(_DAMPINGS) + 3)
        self._over[at] |= (promised < _LEAST_GAIN) | (self._damping[at] > _MOST_DAMPING)
        self._damping.clamp_min_(_LEAST_DAMPING)
        self._join_best()
        self._drop_finished()

    def ends(self) -> Modes:
        """Where the climbs are now; a climb that joined another one is where that one is."""
        joined = self._leader != self._own
        order, query = _those_first(~joined)
        curvature = self._all.curvature(self.z[order, query])
        self._all.clock.tick()
        self.decodes += (~joined).sum(0) * self._all.curvature_decodes
        self._precision[order, query] = positive(curvature, self._all.prior_scale)
        at = self._leader, torch.arange(joined.shape[1], device=joined.device)
        return Modes(self.z[at], self.log_joint[at], self._precision[at], self.steps, self.decodes)

    def _join_best(self) -> None:
        """Let climbs close to the best one of their query join it: it goes on alone."""
        at = self._running()
        if not len(at[0]):
            return
        ahead = self.log_joint[:, self.active].argmax(0), self.active
        gaps = (self.z[at] - self.z[ahead]).double()
        apart = squared_widths(gaps, self._precision[ahead], self._precision[at])
        joins = (apart < _NEAR) & (at[0] != ahead[0]) & ~self._over[at]
        self._over[at] |= joins
        self._leader[at] = torch.where(joins, ahead[0], self._leader[at])
        self._leader = self._leader.gather(0, self._leader)

    def _running(self) -> tuple[Tensor, Tensor]:
        """Indices (row, query) of the running climbs, padded to as many as any query has."""
        order, place = _those_first(~self._over[:, self.active])
        return order, self.active[place]

    def _drop_finished(self) -> None:
        kept = ~self._over[:, self.active].all(0)
        if not kept.all():
            self.active = self.active[kept]
            self._climbing = self._all.select(self.active)


def _those_first(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Indices into (K, B) of those chosen in each column, padded to as many as any column has."""
    num = int(chosen.sum(0).amax()) if chosen.numel() else 0
    order = (~chosen).to(torch.int8).argsort(dim=0, stable=True)[:num]
    return order, torch.arange(chosen.shape[1], device=chosen.device).expand_as(order)


def _best_step(
    target: Target, here: Points, precision: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best of the steps with each damping: its end, log p(z, x) there, and its damping.

    The last value returned is the largest gain that any of the steps promised.
    """
    diagonal, gradient = precision.diagonal(dim1=-2, dim2=-1), here.gradient.double()
    directions = []
    for factor in _DAMPINGS:
        target.clock.tick()
        ridge = torch.diag_embed((factor * damping)[..., None] * diagonal)
        # by Cholesky, as batched LU on several threads fails from about 256 dimensions on
        root = precision_root(precision + ridge)
        directions.append(torch.cholesky_solve(gradient[..., None], root)[..., 0])
    direction = torch.stack(directions)
    promised = 0.5 * (direction * gradient).sum(-1).amax(0)
    there = here.z + direction.to(here.z)
    reached = target.log_joint(there, checked=False)
    reached = torch.where(reached.isnan(), -math.inf, reached)  # never better than a finite value
    reached, best = reached.max(0)
    there = taken(there, best[None])[0]
    return there, reached, damping * damping.new_tensor(_DAMPINGS)[best], promised.to(damping)


def positive(curvature: Tensor, prior_scale: float) -> Tensor:
    """A curvature (*shape, latent, latent), made positive definite where it is not.

    Negative eigenvalues change sign, and small ones are raised to a thousandth of the prior's
    precision. A curvature that overflows is replaced by the prior's.
    """
    overflown = ~curvature.isfinite().all(-1).all(-1)
    if overflown.any():
        identity = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
        prior = identity / prior_scale**2
        curvature = torch.where(overflown[..., None, None], prior, curvature)
    indefinite = torch.linalg.cholesky_ex(curvature).info > 0
    if not indefinite.any():
        return curvature
    values, vectors = torch.linalg.eigh(curvature[indefinite])
    values = values.abs().clamp_min(_FLAT / prior_scale**2)
    fixed = curvature.clone()
    fixed[indefinite] = (vectors * values[:, None]) @ vectors.mT
    return fixed


def squared_widths(gaps: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of pairs of modes, in the widths of the narrower one, shape (*shape).

    Args:
        gaps: Differences of their positions, in double, shape (*shape, latent).
        first: Precision of one mode of each pair; broadcasts to (*shape, latent, latent).
        second: The same of the other.
    """
    squares = [torch.einsum("...i,...ij,...j->...", gaps, each, gaps) for each in (first, second)]
    return torch.maximum(*squares)


def half_log_determinant(precision: Tensor) -> Tensor:
    """½ log |P| for positive definite P (*shape, latent, latent), shape (*shape)."""
    return precision_root(precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def lacking_modes(modes: Modes, log_weights: Tensor, draws: Tensor) -> Tensor:
    """Total share of the modes that have far fewer draws than their share requires, (B,).

    Args:
        modes: K modes per query.
        log_weights: log of their shares, −inf for a mode found before, shape (K, B).
        draws: Shape (S, B, latent); each counts for the mode whose Gaussian makes it likeliest.
    """
    counts, weights = log_weights > -_NO_MODE, log_weights.exp()
    share = counts.to(weights)  # of the draws: all of them if one mode counts
    several = (counts.sum(0) != 1).nonzero()[:, 0]
    if len(several):
        share[:, several] = _shares_of(modes.select(several), counts[:, several], draws[:, several])
    return torch.where(share < _FEW_DRAWS * weights, weights, 0.0).sum(0)


def _shares_of(modes: Modes, counts: Tensor, draws: Tensor) -> Tensor:
    """For each mode, the share of the draws for which it is the likeliest that counts, (K, B)."""
    densities = []
    for z, precision, own in zip(modes.z, modes.precision, counts, strict=True):
        gap = (draws - z).transpose(0, 1).double()
        half_log_det = half_log_determinant(precision)
        density = half_log_det[:, None] - 0.5 * ((gap @ precision) * gap).sum(-1)
        densities.append(torch.where(own[:, None], density, -math.inf))
    owner = torch.stack(densities).argmax(0)  # (B, S)
    number = torch.arange(len(counts), device=owner.device)[:, None, None]
    return (owner == number).to(draws).mean(-1)
