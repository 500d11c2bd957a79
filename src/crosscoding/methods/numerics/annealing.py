"""Annealing: particles go from the prior to p(z|x) through the densities p(z) p(x|z)^t.

At each temperature t, particles are resampled by weight and moved by HMC, in coordinates of their
own covariance. `tempered_smc` has the equations and their source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.gradients import Density, evaluated
from crosscoding.methods.numerics.leapfrog import JITTER, Move, regularized_covariance
from crosscoding.methods.numerics.resampling import (
    bounded,
    flattened,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.methods.numerics.swarm import Swarm
from crosscoding.progress import Report, silent
from crosscoding.random import spawn, uniform
from crosscoding.target.base import Target

MAX_TEMPERATURES = 150  # bounds the time of particles that do not get to p(z|x)
# Wanted: between 0.65, best for one long move (Beskos et al., 2013), and 0.8, usual for chains.
# Below the least, the step is shortened by a factor and the move is repeated: with one cautious
# change per temperature instead, particles froze when two modes separated (decision 0005).
_WANTED_ACCEPTANCE, _LEAST_ACCEPTANCE = 0.75, 0.3
# Half or double of either of these changes nothing on mnist-20d; on blocks, where modes separate,
# _SHORTENING moves log p(x) by 0.008 nats, and _MOST_RETRIES by nothing.
_SHORTENING, _MOST_RETRIES = 0.4, 8
# ESS of the bank at the first temperature: a share of the particles, or of the bank if there are
# many particles. Half or double of the first moves log p(x) on mnist-20d by at most 0.07 nats, half
# as much as another seed, and double costs 15 % more decodes. Half of the second moves it by 0.04
# nats on blocks, where swarms start from the bank.
_START_ESS, _OF_BANK = 0.9, 0.25
# Least variance of particles, relative to the prior's, where they coincide. Halving or doubling it
# changes nothing on mnist-20d or blocks.
_FLOOR = 1e-10
_QUARTER = 0.5 * math.pi  # longest path on a round Gaussian: a longer one turns back
# Change of log ε per difference of the acceptance rate from the wanted one: a larger one follows
# the temperature sooner, but also the noise of the rate.
_ADAPTATION = 0.7


@dataclass(frozen=True)
class Annealing:
    """The algorithm of `TemperedSMC`; `run` returns the particles."""

    num_particles: int
    num_islands: int
    num_moves: int
    num_leapfrog: int
    ess_share: float
    max_temperatures: int = MAX_TEMPERATURES
    gives_up: bool = False  # on queries whose particles are stuck

    @torch.no_grad()
    def run(
        self,
        target: Target,
        *,
        generator: Generator,
        report: Report = silent,
        stop: Callable[[], bool] = lambda: False,
    ) -> Swarm:
        """Particles of every query of a flat target.

        Args:
            target: The target to anneal to.
            generator: For all random numbers.
            report: Receives progress.
            stop: Called after each move; if it returns True, the run ends as it is.
        Returns:
            The particles; `reached` is False for queries that were stopped or ran out of
            temperatures.
        """
        for_start, for_steps = spawn(generator, 2)
        state = self._start(target, generator=for_start)
        swarm = self._empty(state)
        for step in range(self.max_temperatures):
            if not len(state.index) or stop():
                break
            report(1 - len(state.index) / max(target.num_queries, 1), f"temperature {step}")
            # Other queries' retries must not change a query's random numbers.
            (for_step,) = spawn(for_steps, 1)
            self._move(state, generator=for_step, stop=stop)
            done = state.temperature >= 1
            if done.any():
                self._store(swarm, state, done)
            leave = done | state.stuck if self.gives_up else done
            if leave.any():
                swarm.decodes[state.index[leave]] = state.decodes[leave]
                state = state.select(~leave)
            if len(state.index):
                (for_step,) = spawn(for_steps, 1)
                self._sharpen(state, generator=for_step)
        swarm.decodes[state.index] = state.decodes
        return swarm

    def _start(self, target: Target, *, generator: Generator) -> "_State":
        """Points of the bank drawn by p(x|z)^t, with the largest t that leaves the wanted ESS."""
        points, log_likelihood = target.log_likelihood_of_bank()
        per_island = len(points) // self.num_islands
        if not per_island:
            raise ValueError(
                f"expected num_islands <= {len(points)}, the points of this model's bank, "
                f"got {self.num_islands}"
            )
        num = per_island * self.num_islands
        points, log_likelihood = points[:num], log_likelihood[:num]
        if points.ndim == 2:  # the same for all queries
            points = points[:, None].expand(-1, target.num_queries, -1)
        # Islands are stretches of the bank, not every n-th point, as each stretch is spread evenly.
        islands = _by_island(log_likelihood, self.num_islands)
        temperature = self._first_temperature(islands.flatten(0, 1))
        log_weights = flattened(islands, temperature)
        offset = uniform((self.num_islands, 1), generator=generator, like=points)
        index = systematic(log_weights, offset, self.num_particles // self.num_islands)
        return _State(
            target=target,
            index=torch.arange(target.num_queries, device=points.device),
            z=_within_islands(points, index),
            log_likelihood=_within_islands(log_likelihood, index),
            temperature=temperature,
            log_islands=log_weights.logsumexp(0) - math.log(per_island),
            step_size=torch.full_like(temperature, _QUARTER / self.num_leapfrog),
            acceptance=torch.zeros_like(temperature),
            num_temperatures=torch.zeros_like(temperature),
            decodes=torch.zeros_like(temperature),
            stuck=torch.zeros_like(temperature, dtype=torch.bool),
        )

    def _first_temperature(self, log_likelihood: Tensor) -> Tensor:
        """The largest t at which p(x|z)^t leaves points of the bank, (N, B), the wanted ESS."""
        wanted = max(min(_START_ESS * self.num_particles, _OF_BANK * len(log_likelihood)), 2.0)
        return next_temperature(log_likelihood, torch.zeros_like(log_likelihood[0]), wanted)

    def _move(self, state: "_State", *, generator: Generator, stop: Callable[[], bool]) -> None:
        """HMC moves on p(z) p(x|z)^t, for each query until `num_moves` of them succeeded.

        If a step is too long, as when modes separate and the particles' covariance spans them, it
        is shortened at once and the move does not count.
        """
        left = torch.full_like(state.temperature, float(self.num_moves))
        factor = torch.linalg.cholesky(
            regularized_covariance(state.z, _FLOOR * state.target.prior_scale**2)
        )
        points = evaluated(state.target, state.density(), state.z)
        z, log_density = points.z, points.log_density
        rows, target = torch.arange(len(left), device=left.device), state.target
        for _ in range(self.num_moves + _MOST_RETRIES):
            density = state.density(rows, target)
            move = Move(target, density, factor[rows], self.num_leapfrog)
            points, accepted = move(points, state.step_size[rows], JITTER, generator=generator)
            acceptance = accepted.mean(0)
            well = acceptance > _LEAST_ACCEPTANCE
            change = (_ADAPTATION * (acceptance - _WANTED_ACCEPTANCE)).exp()
            change = torch.where(well, change, _SHORTENING)
            step_size = state.step_size[rows] * change
            state.step_size[rows] = step_size.clamp_max(_QUARTER / self.num_leapfrog)
            state.acceptance[rows] = acceptance
            state.decodes[rows] += len(z) * self.num_leapfrog
            left[rows] -= well.to(left)
            z[:, rows], log_density[:, rows] = points.z, points.log_density
            go_on = left[rows] > 0
            if not go_on.any() or stop():
                break
            if not go_on.all():
                rows = rows[go_on]
                points, target = points.select(go_on), state.target.select(rows)
        state.stuck |= left > 0
        state.z = z
        log_prior = state.target.log_prior(z)
        state.log_likelihood = (log_density - log_prior) / state.temperature
        state.num_temperatures = state.num_temperatures + 1
        state.decodes += len(z)

    def _sharpen(self, state: "_State", *, generator: Generator) -> None:
        """Raise the temperature, and resample each island by the new weights."""
        least_ess = self.ess_share * self.num_particles
        sharper = next_temperature(state.log_likelihood, state.temperature, least_ess)
        gain = (sharper - state.temperature) * bounded(state.log_likelihood)
        gain = _by_island(gain, self.num_islands)
        size = len(gain)
        state.log_islands = state.log_islands + gain.logsumexp(0) - math.log(size)
        offset = uniform((self.num_islands, 1), generator=generator, like=state.z)
        index = systematic(gain, offset, size)
        state.z = _within_islands(state.z, index)
        state.log_likelihood = _within_islands(state.log_likelihood, index)
        state.temperature = sharper

    def _empty(self, state: "_State") -> Swarm:
        none = torch.zeros_like(state.temperature)
        return Swarm(
            z=torch.zeros_like(state.z),
            log_likelihood=torch.zeros_like(state.log_likelihood),
            log_islands=torch.zeros_like(state.log_islands),
            num_temperatures=none,
            acceptance=none.clone(),
            decodes=none.clone(),
            stuck=none > 0,
            reached=none > 0,
        )

    def _store(self, swarm: Swarm, state: "_State", done: Tensor) -> None:
        rows = state.index[done]
        swarm.z[:, rows] = state.z[:, done]
        swarm.log_likelihood[:, rows] = state.log_likelihood[:, done]
        swarm.log_islands[:, rows] = state.log_islands[:, done]
        swarm.num_temperatures[rows] = state.num_temperatures[done]
        swarm.acceptance[rows] = state.acceptance[done]
        swarm.decodes[rows] = state.decodes[done]
        swarm.stuck[rows] = state.stuck[done]
        swarm.reached[rows] = True


@dataclass(eq=False)
class _State:
    """State of the particles of all queries that are not finished."""

    target: Target
    index: Tensor
    z: Tensor
    log_likelihood: Tensor
    temperature: Tensor
    log_islands: Tensor
    step_size: Tensor
    acceptance: Tensor
    num_temperatures: Tensor
    decodes: Tensor
    stuck: Tensor

    def density(self, rows: Tensor | None = None, target: Target | None = None) -> Density:
        """log p(z) p(x|z)^t of all queries, or of those in `rows`, whose target is `target`."""
        chosen = self.target if target is None else target
        temperature = self.temperature if rows is None else self.temperature[rows]

        def log_density(z: Tensor) -> Tensor:
            return chosen.log_prior(z) + temperature * chosen.log_likelihood(z, checked=False)

        return log_density

    def select(self, which: Tensor) -> "_State":
        """Some of the queries, by a boolean (B,)."""
        target = self.target.select(which.nonzero()[:, 0])
        rest = [getattr(self, field.name)[..., which] for field in fields(self)[3:]]
        return _State(target, self.index[which], self.z[:, which], *rest)


def _by_island(values: Tensor, num_islands: int) -> Tensor:
    """values (S, *shape) of one island after the other, as (S / I, I, *shape)."""
    return values.unflatten(0, (num_islands, -1)).transpose(0, 1)


def _within_islands(values: Tensor, index: Tensor) -> Tensor:
    """values (S, B, *event), island after island, at index (num, I, B) within each island."""
    return taken(_by_island(values, index.shape[1]), index).transpose(0, 1).flatten(0, 1)
