"""Particles from the best Gaussian q to p(z|x), in the Gaussian's own coordinates.

    π_t(z) ∝ q(z)^{1 − t} p(z, x)^t,   0 ≤ t ≤ 1,   z = m + R v,  q = N(m, R Rᵀ)

In 32 dimensions and more, the covariance of a few hundred particles is a poor guide to their moves,
but a Gaussian fitted by curvature makes p(z|x) roughly round. So R stays fixed while t rises. At
t = 1 all particles move on as chains, without resampling, as resampled particles share ancestors,
so that their means have a small effective sample size. `bridge_particles` moves them.

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
        state = BridgeParticles.start(bridge, self.num_islands, self.most_steps)
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

    def _move(
        self, state: BridgeParticles, *, generator: Generator, stop: Callable[[], bool]
    ) -> None:
        """One move; again with shorter steps for the queries that accept too few."""
        rows = torch.arange(len(state.index), device=state.index.device)
        for retry in range(1 + _MOST_RETRIES):
            some = state if retry == 0 else state.only(rows)
            points, accepted = some.moved(generator=generator)
            state.decodes[rows] += len(some.z) * some.num_steps
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
        half = part(report, 0.0, 0.5) if self.enough else report
        log_islands, particles = state.log_islands, slice(len(state.z))
        state.factor = stretched(state.root, state.z)
        state.join(ends)
        sweeps = self._sweeps(state, particles, generator, half, stop)
        self._store(state, sweeps, log_islands, result)
        short = (result.select(state.index).ess < self.enough).nonzero()[:, 0]
        if len(short) and not stop():
            state = state.only(short)
            state.factor = stretched(state.root, torch.cat(sweeps)[:, short])
            more = self._sweeps(state, particles, generator, part(report, 0.5, 1.0), stop)
            sweeps = [sweep[:, short] for sweep in sweeps] + more
            self._store(state, sweeps[1::2], log_islands[:, short], result)

    def _sweeps(
        self,
        state: BridgeParticles,
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
            state.adapt(change)
            state.put(points)
            sweeps.append(points.z[particles])
        return sweeps

    def _store(
        self, state: BridgeParticles, sweeps: list[Tensor], log_islands: Tensor, result: Crossing
    ) -> None:
        """Store what the particles of some queries estimate, unless time was up."""
        rows = state.index
        result.decodes[rows] = state.decodes
        if len(sweeps) == self.num_final:
            result.z[:, rows] = _island_major(sweeps, self.num_islands)
            result.ends[:, rows] = state.z[sweeps[0].shape[0] :]
            result.log_islands[:, rows] = log_islands
            result.reached[rows] = True


def _island_major(sweeps: list[Tensor], num_islands: int) -> Tensor:
    """Values (S, B, …) of several sweeps, each island after island, as islands of all sweeps."""
    stacked = torch.stack([part.unflatten(0, (num_islands, -1)) for part in sweeps], 1)
    return stacked.flatten(0, 2)
