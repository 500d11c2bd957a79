"""Particles from the best Gaussian q to p(z|x), in the Gaussian's own coordinates.

    π_t(z) ∝ q(z)^{1 − t} p(z, x)^t,   0 ≤ t ≤ 1,   z = m + R v,  q = N(m, R Rᵀ)

In 32 dimensions and more, the covariance of a few hundred particles is a poor guide to their moves,
but a Gaussian fitted by curvature makes p(z|x) roughly round. So R stays fixed, trajectories are a
quarter of a period long, in as few steps as are accepted often enough, and at t = 1 all particles
move on as chains, without resampling: resampled particles share ancestors, so their means have a
small effective sample size. Trajectories follow coarse gradients where the device has fast ones,
and are accepted by the exact density.

Ends of climbs from the prior join the chains at t = 1. If they reach the region of the particles,
then climbs and particles agree that there is one region; if not, the search is not complete.

Source: Del Moral et al. (2006), section 3.3, for the particles; Neal (2011) for the moves. Differs
in: a Gaussian takes the place of the prior, its covariance that of the particles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.methods.numerics.bridge import Bridge
from crosscoding.methods.numerics.crossing import Crossing
from crosscoding.methods.numerics.gradients import Density, Points, evaluated
from crosscoding.methods.numerics.leapfrog import JITTER, Move
from crosscoding.methods.numerics.resampling import (
    bounded,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.progress import Report, part, silent
from crosscoding.random import spawn, uniform
from crosscoding.target.base import Target

_MOST_TEMPERATURES = 40  # faces take 3 to 13
_UNTIL_FINAL = 0.5  # share of the work up to t = 1, roughly
# As in `annealing`: wanted and least acceptance rate, and what follows if it is too low.
_WANTED, _LEAST, _SHORTENING, _MOST_RETRIES = 0.8, 0.3, 0.4, 8
_QUARTER, _ROUNDING = 0.5 * math.pi, 1e-3
# Steps of the first trajectories, and the fewest. Near the Gaussian, 4 are enough (decision 0010).
_FIRST_STEPS, _FEWEST_STEPS = 4, 3


@dataclass(frozen=True)
class WhitenedBridge:
    """How many particles there are, and how they move.

    Args:
        num_particles: In all islands together.
        num_islands: Islands do not exchange particles; their spread gives the errors.
        most_steps: Steps of a trajectory, at most.
        num_final: Moves at t = 1, after each of which the particles are draws.
        ess_share: Share of the particles that remains effective from one t to the next.
        enough: Effective draws. Where there are fewer, as many moves follow, and the particles are
            draws after every second move only.
    """

    num_particles: int
    num_islands: int
    most_steps: int
    num_final: int
    ess_share: float
    enough: float = 0.0

    @torch.no_grad()
    def run(
        self,
        target: Target,
        proposal: Fitted,
        ends: Tensor,
        *,
        generator: Generator,
        report: Report = silent,
        stop: Callable[[], bool] = lambda: False,
    ) -> Crossing:
        """Take the particles of every query of a flat target from a Gaussian to p(z|x).

        Args:
            target: The target.
            proposal: q, a full Gaussian; it should be wider than p(z|x) rather than narrower.
            ends: Where climbs from the prior ended, shape (K, B, latent).
            generator: For all random numbers.
            report: Receives progress.
            stop: Called after each move; if it returns True, the run ends as it is.
        """
        for_draws, for_steps = spawn(generator, 2)
        bridge = Bridge(target, proposal, self.num_particles, generator=for_draws)
        state = _State.start(bridge, self)
        result = Crossing.empty(ends, self.num_particles * self.num_final, self.num_islands)
        for _ in range(_MOST_TEMPERATURES):
            if not len(state.index) or stop():
                break
            report(_UNTIL_FINAL * state.temperature.mean().item(), "particles")
            # Other queries' retries must not change a query's random numbers.
            for_weights, for_moves, for_final = spawn(for_steps, 3)
            state.sharpen(self.ess_share, generator=for_weights)
            self._move(state, generator=for_moves, stop=stop)
            done = (state.temperature >= 1) & ~state.stuck
            if done.any() and not stop():
                there, told = state.select(done), part(report, _UNTIL_FINAL, 1.0)
                self._finish(there, ends[:, there.index], result, for_final, told, stop)
            leave = done | state.stuck
            result.decodes[state.index] = torch.maximum(result.decodes[state.index], state.decodes)
            if leave.any():
                state = state.select(~leave)
        return result

    def _move(self, state: "_State", *, generator: Generator, stop: Callable[[], bool]) -> None:
        """One move; again with shorter steps for the queries that accept too few."""
        rows = torch.arange(len(state.index), device=state.index.device)
        for retry in range(1 + _MOST_RETRIES):
            some = state if retry == 0 else state.only(rows)
            points, accepted = some.moved(generator=generator)
            state.decodes[rows] += len(some.z) * some.num_steps
            acceptance = accepted.mean(0)
            well = acceptance > _LEAST
            change = torch.where(well, (acceptance - _WANTED).exp(), _SHORTENING)
            state.step_size[rows] = _at_most(some.step_size * change)
            state.put(points, rows)
            rows = rows[~well]
            if not len(rows) or stop():
                break
        state.stuck[rows] = True

    def _finish(
        self,
        state: "_State",
        ends: Tensor,
        result: Crossing,
        generator: Generator,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        """Chains at t = 1 from the particles and from the ends of climbs; stores the draws."""
        half = part(report, 0.0, 0.5) if self.enough else report
        log_islands, particles = state.log_islands, slice(len(state.z))
        state.stretch(state.z)
        state.join(ends)
        sweeps = self._sweeps(state, particles, generator, half, stop)
        self._store(state, sweeps, log_islands, result)
        short = (result.select(state.index).ess < self.enough).nonzero()[:, 0]
        if len(short) and not stop():
            state = state.only(short)
            state.stretch(torch.cat(sweeps)[:, short])
            more = self._sweeps(state, particles, generator, part(report, 0.5, 1.0), stop)
            sweeps = [sweep[:, short] for sweep in sweeps] + more
            self._store(state, sweeps[1::2], log_islands[:, short], result)

    def _sweeps(
        self,
        state: "_State",
        particles: slice,
        generator: Generator,
        report: Report,
        stop: Callable[[], bool],
    ) -> list[Tensor]:
        """Where the particles are after each of several moves; fewer, if time is up."""
        sweeps = []
        for move in range(self.num_final):
            if stop():
                break
            report(move / self.num_final, "chains")
            points, accepted = state.moved(generator=generator)
            state.decodes += len(state.z) * state.num_steps
            change = (0.5 * (accepted[particles].mean(0) - _WANTED)).exp()
            state.step_size = _at_most(state.step_size * change)
            state.put(points)
            sweeps.append(points.z[particles])
        return sweeps

    def _store(
        self, state: "_State", sweeps: list[Tensor], log_islands: Tensor, result: Crossing
    ) -> None:
        """Store what the particles of some queries estimate, unless time was up."""
        rows = state.index
        result.decodes[rows] = state.decodes
        if len(sweeps) == self.num_final:
            result.z[:, rows] = _island_major(sweeps, self.num_islands)
            result.ends[:, rows] = state.z[sweeps[0].shape[0] :]
            result.log_islands[:, rows] = log_islands
            result.reached[rows] = True


@dataclass(eq=False)
class _State:
    """Particles z (S, B, latent) of the queries that are not finished.

    `slope` is the gradient of log p(z, x) there, shaped like z; coarse, if the device has fast
    coarse gradients.
    """

    bridge: Bridge
    coarse: Bridge
    most_steps: int
    index: Tensor
    root: Tensor
    factor: Tensor
    z: Tensor
    slope: Tensor
    log_joint: Tensor
    log_q: Tensor
    log_islands: Tensor
    temperature: Tensor
    step_size: Tensor
    decodes: Tensor
    stuck: Tensor

    @classmethod
    def start(cls, bridge: Bridge, settings: WhitenedBridge) -> "_State":
        z, log_weights = bridge.log_likelihood_of_bank()
        log_q = bridge.log_prior(z)
        cold, coarse = torch.zeros_like(log_q[0]), bridge.coarse()
        root = gaussian_root(bridge.proposal)
        return cls(
            bridge=bridge,
            coarse=coarse,
            most_steps=settings.most_steps,
            index=torch.arange(len(cold), device=z.device),
            root=root,
            factor=root,
            z=z,
            slope=_slope(coarse, z),
            log_joint=bounded(log_weights.nan_to_num(nan=-math.inf)) + log_q,
            log_q=log_q,
            log_islands=z.new_zeros(settings.num_islands, len(cold)),
            temperature=cold,
            step_size=torch.full_like(cold, _QUARTER / _FIRST_STEPS),
            decodes=torch.full_like(cold, len(z)),
            stuck=cold > 0,
        )

    def sharpen(self, ess_share: float, *, generator: Generator) -> None:
        """Raise the temperature, and resample each island by the new weights."""
        log_ratio, islands = self.log_joint - self.log_q, len(self.log_islands)
        sharper = next_temperature(log_ratio, self.temperature, ess_share * len(self.z))
        gain = (sharper - self.temperature) * bounded(log_ratio)
        gain = gain.unflatten(0, (islands, -1)).transpose(0, 1)
        self.log_islands = self.log_islands + gain.logsumexp(0) - math.log(len(gain))
        offset = uniform((islands, 1), generator=generator, like=self.z)
        index = systematic(gain, offset, len(gain))
        self.z, self.slope, self.log_joint, self.log_q = (
            taken(part.unflatten(0, (islands, -1)).transpose(0, 1), index)
            .transpose(0, 1)
            .flatten(0, 1)
            for part in (self.z, self.slope, self.log_joint, self.log_q)
        )
        self.temperature = sharper

    def stretch(self, z: Tensor) -> None:
        """Let moves go farther where draws z (S, B, latent) spread clearly wider than q.

        "Clearly" is beyond the largest eigenvalue that the covariance of so many draws of a round
        Gaussian has (Marchenko and Pastur); half of the draws count, as they share ancestors.
        """
        centred = (z - z.mean(0)).permute(1, 2, 0)
        white = torch.linalg.solve_triangular(self.root, centred, upper=False)
        values, vectors = torch.linalg.eigh(white @ white.mT / len(z))
        values = values / values.median(-1, keepdim=True).values
        widest = (1 + math.sqrt(2 * values.shape[-1] / len(z))) ** 2
        scale = torch.where(values > widest, values.sqrt(), 1.0)
        self.factor = self.root @ (vectors * scale[:, None]) @ vectors.mT

    @property
    def num_steps(self) -> Tensor:
        """Steps that make a quarter of a period, or the most allowed, (B,)."""
        wanted = (_QUARTER / self.step_size - _ROUNDING).ceil()
        return wanted.clamp_max(self.most_steps)

    def moved(self, *, generator: Generator) -> tuple[Points, Tensor]:
        """Points after one move on π_t, but with log p(z, x), and the acceptance probabilities.

        Queries whose trajectories have as many steps move together.
        """
        num_steps, start = self.num_steps, generator.get_state()
        z, log_joint, slope = self.z.clone(), self.log_joint.clone(), self.slope.clone()
        accepted = torch.zeros_like(log_joint)
        for num in num_steps.unique().tolist():
            rows = (num_steps == num).nonzero()[:, 0]
            generator.set_state(start)  # as if each query were alone
            some = self if len(rows) == len(num_steps) else self.only(rows)
            points, accepted[:, rows] = some._moved_in(int(num), generator)
            z[:, rows], log_joint[:, rows] = points.z, points.log_density
            slope[:, rows] = points.gradient
        return Points(z, log_joint, slope), accepted

    def _moved_in(self, num_steps: int, generator: Generator) -> tuple[Points, Tensor]:
        """`moved`, in a number of steps."""
        t, rest = self.temperature, 1 - self.temperature
        here = Points(
            self.z,
            t * self.log_joint + rest * self.log_q,
            t[:, None] * self.slope + rest[:, None] * self._slope_of_q(self.z),
        )
        move = Move(
            self.bridge, _density(self.bridge, t), self.factor, num_steps, _density(self.coarse, t)
        )
        step_size = self.step_size.clamp_max(_QUARTER / num_steps)
        points, accepted = move(here, step_size, JITTER, generator=generator)
        log_joint = (points.log_density - rest * self.bridge.log_prior(points.z)) / t
        slope = (points.gradient - rest[:, None] * self._slope_of_q(points.z)) / t[:, None]
        return Points(points.z, log_joint, slope), accepted

    def _slope_of_q(self, z: Tensor) -> Tensor:
        """The gradient of log q, (S, B, latent)."""
        centred = (self.bridge.proposal.params["shift"] - z).permute(1, 2, 0)
        return torch.cholesky_solve(centred, self.root).permute(2, 0, 1)

    def put(self, points: Points, rows: Tensor | slice = slice(None)) -> None:
        """Store points, with log p(z, x) and its gradient, of some queries."""
        proposal = self.bridge.proposal
        own = proposal if isinstance(rows, slice) else proposal.select(rows)
        self.z, self.slope, self.log_joint, self.log_q = (
            part.clone() for part in (self.z, self.slope, self.log_joint, self.log_q)
        )
        self.z[:, rows], self.slope[:, rows] = points.z, points.gradient
        self.log_joint[:, rows] = points.log_density
        self.log_q[:, rows] = own.log_prob(points.z)

    def join(self, z: Tensor) -> None:
        """Add points (K, B, latent) to the particles."""
        self.z = torch.cat([self.z, z])
        self.slope = torch.cat([self.slope, _slope(self.coarse, z)])
        self.log_joint = torch.cat([self.log_joint, self.bridge.log_joint(z, checked=False)])
        self.log_q = torch.cat([self.log_q, self.bridge.log_prior(z)])

    def only(self, rows: Tensor) -> "_State":
        """Some of the queries, by their places."""
        return _State(
            self.bridge.select(rows),
            self.coarse.select(rows),
            self.most_steps,
            self.index[rows],
            self.root[rows],
            self.factor[rows],
            self.z[:, rows],
            self.slope[:, rows],
            self.log_joint[:, rows],
            self.log_q[:, rows],
            self.log_islands[:, rows],
            self.temperature[rows],
            self.step_size[rows],
            self.decodes[rows],
            self.stuck[rows],
        )

    def select(self, which: Tensor) -> "_State":
        """Some of the queries, by a boolean (B,)."""
        return self.only(which.nonzero()[:, 0])


def _slope(coarse: Bridge, z: Tensor) -> Tensor:
    """The gradient of log p(z, x) at z (C, B, latent)."""
    return evaluated(coarse, partial(coarse.log_joint, checked=False), z).gradient


def _at_most(step_size: Tensor) -> Tensor:
    """Steps (B,), of which at least the fewest make a quarter of a period."""
    return step_size.clamp_max(_QUARTER / _FEWEST_STEPS)


def gaussian_root(gaussian: Fitted) -> Tensor:
    """R of a full Gaussian N(m, R Rᵀ), lower triangular, (B, latent, latent)."""
    params = gaussian.params
    return params["lower"].tril(-1) + torch.diag_embed(params["log_diagonal"].exp())


def _density(bridge: Bridge, temperature: Tensor) -> Density:
    """log π_t(z), not normalised: z (C, B, latent) -> (C, B)."""

    def log_density(z: Tensor) -> Tensor:
        log_joint = bridge.log_joint(z, checked=False)
        return temperature * log_joint + (1 - temperature) * bridge.log_prior(z)

    return log_density


def _island_major(sweeps: list[Tensor], num_islands: int) -> Tensor:
    """Values (S, B, …) of several sweeps, each island after island, as islands of all sweeps."""
    stacked = torch.stack([part.unflatten(0, (num_islands, -1)) for part in sweeps], 1)
    return stacked.flatten(0, 2)
