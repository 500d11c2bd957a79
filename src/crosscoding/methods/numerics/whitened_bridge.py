"""Particles from the best Gaussian q to p(z|x), in the Gaussian's own coordinates.

    π_t(z) ∝ q(z)^{1 − t} p(z, x)^t,   0 ≤ t ≤ 1,   z = m + R v,  q = N(m, R Rᵀ)

In 32 dimensions and more, the covariance of a few hundred particles is a poor guide to their moves,
but a Gaussian fitted by curvature makes p(z|x) roughly round. So R stays fixed while t rises. At
t = 1 all particles move on as chains, without resampling: resampled particles share ancestors, so
their means have a small effective sample size. There, moves go farther in directions in which
particles spread clearly wider than q. Chains whose draws are too few go on for as many moves again.

Ends of climbs from the prior join the chains at t = 1. If they reach the region of the particles,
then climbs and particles agree that there is one region; if not, the search is not complete.

Source: Del Moral et al. (2006), section 3.3. Differs in: a Gaussian takes the place of the prior,
and its covariance that of the particles.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.methods.numerics.bridge import Bridge
from crosscoding.methods.numerics.bridge_particles import BridgeParticles, stretched
from crosscoding.methods.numerics.crossing import Crossing
from crosscoding.progress import Report, part, silent
from crosscoding.random import spawn
from crosscoding.target.base import Target

_MOST_TEMPERATURES = 40  # faces take 3 to 13
_UNTIL_FINAL = 0.5  # share of the work up to t = 1, roughly
# As in `annealing`: wanted and least acceptance rate, and what follows if it is too low.
_WANTED, _LEAST, _SHORTENING, _MOST_RETRIES = 0.8, 0.3, 0.4, 8


@dataclass(frozen=True)
class WhitenedBridge:
    """How many particles there are, and how they move.

    Args:
        num_particles: In all islands together.
        num_islands: Islands do not exchange particles; their spread gives the errors.
        most_steps: Steps of a trajectory, at most.
        num_final: Moves at t = 1, after each of which the particles are draws.
        ess_share: Share of the particles that remains effective from one t to the next.
        enough: Effective draws to aim for. A query with fewer makes `num_final` further moves, and
            then every second one of all moves gives draws.
    """

    num_particles: int
    num_islands: int
    most_steps: int
    num_final: int
    ess_share: float
    enough: float = 0.0

    def empty(self, ends: Tensor) -> Crossing:
        """No results yet, for queries with ends of climbs (K, B, latent)."""
        return Crossing.empty(ends, self.num_particles * self.num_final, self.num_islands)

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
        into: Crossing | None = None,
    ) -> Crossing:
        """Take the particles of every query of a flat target from a Gaussian to p(z|x).

        Args:
            target: The target.
            proposal: q, a full Gaussian; it should be wider than p(z|x) rather than narrower.
            ends: Where climbs from the prior ended, shape (K, B, latent).
            generator: For all random numbers.
            report: Receives progress.
            stop: Called after each move; if it returns True, the run ends as it is.
            into: Takes the results as they come, so that they outlive an exception; `empty(ends)`.
        """
        for_draws, for_steps = spawn(generator, 2)
        bridge = Bridge(target, proposal, self.num_particles, generator=for_draws)
        state = BridgeParticles.start(bridge, self.num_islands, self.most_steps)
        result = self.empty(ends) if into is None else into
        for _ in range(_MOST_TEMPERATURES):
            if not len(state.index) or stop():
                break
            left, rose = len(state.index) / target.num_queries, state.temperature.mean().item()
            share = 1 - left * (1 - _UNTIL_FINAL * rose)
            report(share, "particles")
            # Other queries' retries must not change a query's random numbers.
            for_weights, for_moves, for_final = spawn(for_steps, 3)
            state.sharpen(self.ess_share, generator=for_weights)
            self._move(state, generator=for_moves, stop=stop)
            done = (state.temperature >= 1) & ~state.stuck
            if done.any() and not stop():
                there = state.select(done)
                gained = (1 - _UNTIL_FINAL) * len(there.index) / target.num_queries
                told = part(report, share, share + gained)
                self._finish(there, ends[:, there.index], result, for_final, told, stop)
            leave = done | state.stuck
            result.decodes[state.index] = torch.maximum(result.decodes[state.index], state.decodes)
            if leave.any():
                state = state.select(~leave)
        return result

    def _move(
        self, state: BridgeParticles, *, generator: Generator, stop: Callable[[], bool]
    ) -> None:
        """One move; again with shorter steps for the queries that accept too few."""
        rows = torch.arange(len(state.index), device=state.index.device)
        for retry in range(1 + _MOST_RETRIES):
            some = state if retry == 0 else state.only(rows)
            points, accepted = some.moved(generator=generator)
            state.decodes[rows] += len(some.z) * some.gradients
            acceptance = accepted.mean(0)
            well = acceptance > _LEAST
            change = torch.where(well, (acceptance - _WANTED).exp(), _SHORTENING)
            state.adapt(change, rows)
            state.put(points, rows)
            rows = rows[~well]
            if not len(rows) or stop():
                break
        state.stuck[rows] = True

    def _finish(
        self,
        state: BridgeParticles,
        ends: Tensor,
        result: Crossing,
        generator: Generator,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        """Chains at t = 1 from the particles and from the ends of climbs; stores the draws."""
        first_half = part(report, 0.0, 0.5) if self.enough else report
        state.factor = stretched(state.root, state.z, self.num_particles // 2)
        state.join(ends)
        sweeps = self._sweeps(state, generator, first_half, stop)
        self._store(state, sweeps, result)
        short = (result.select(state.index).ess < self.enough).nonzero()[:, 0]
        if len(short) and not stop():
            state, sweeps = state.only(short), [sweep[:, short] for sweep in sweeps]
            state.factor = stretched(state.root, torch.cat(sweeps), self.num_particles // 2)
            sweeps += self._sweeps(state, generator, part(report, 0.5, 1.0), stop)
            self._store(state, sweeps[1::2], result)

    def _sweeps(
        self,
        state: BridgeParticles,
        generator: Generator,
        report: Report,
        stop: Callable[[], bool],
    ) -> list[Tensor]:
        """Where the particles are after each of `num_final` moves, or of fewer if time is up."""
        sweeps = []
        for move in range(self.num_final):
            if stop():
                break
            report(move / self.num_final, "chains")
            points, accepted = state.moved(generator=generator)
            state.decodes += len(state.z) * state.gradients
            state.adapt((0.5 * (accepted[: self.num_particles].mean(0) - _WANTED)).exp())
            state.put(points)
            sweeps.append(points.z[: self.num_particles])
        return sweeps

    def _store(self, state: BridgeParticles, sweeps: list[Tensor], result: Crossing) -> None:
        """Store decodes, and what the particles of some queries estimate if no move is lacking."""
        rows = state.index
        result.decodes[rows] = state.decodes
        if len(sweeps) == self.num_final:
            result.z[:, rows] = _island_major(sweeps, self.num_islands)
            result.ends[:, rows] = state.z[self.num_particles :]
            result.log_islands[:, rows] = state.log_islands
            result.reached[rows] = True


def _island_major(sweeps: list[Tensor], num_islands: int) -> Tensor:
    """Values (S, B, …) of several sweeps, each island after island, as islands of all sweeps."""
    stacked = torch.stack([sweep.unflatten(0, (num_islands, -1)) for sweep in sweeps], 1)
    return stacked.flatten(0, 2)
