"""Tempered SMC: particles go from the prior to p(z|x) through the densities p(z) p(x|z)^t.

    Ẑ = Π_k mean_s p(x|z_s)^{t_k − t_{k−1}},   0 = t_0 < t_1 < … = 1

Each temperature is as far from the last as leaves half of the particles effective. Particles are
then resampled by weight and moved by HMC, in coordinates of their own covariance. The particles of
a query form islands that share only temperatures and covariance. The spread of the islands' Ẑ and
means gives the error of the answer, including the error from lost modes.

Source: Del Moral, Doucet & Jasra (2006), section 3.3.2, with the temperatures of Jasra et al.
(2011) and the HMC moves of Buchholz, Chopin & Jacob (2021). Differs in: the first temperature is
reached by weighting the bank; covariance and step size come from the particles being moved.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from crosscoding.errors import BudgetError
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.methods.numerics.gradients import Density, evaluated
from crosscoding.methods.numerics.leapfrog import Move, regularized_covariance
from crosscoding.methods.numerics.resampling import (
    bounded,
    flattened,
    log_mean_of_islands,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.random import spawn, uniform
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

_JITTER = 0.2  # of step sizes, as in `hmc`
# Wanted: between 0.65, best for one long move (Beskos et al., 2013), and 0.8, usual for chains.
# Below the least, the step is shortened by a factor and the move is repeated.
_WANTED_ACCEPTANCE, _LEAST_ACCEPTANCE = 0.75, 0.3
_SHORTENING, _MOST_RETRIES = 0.4, 8
_QUARTER = 0.5 * math.pi  # longest path on a round Gaussian: a longer one turns back
_ADAPTATION = 0.7  # change of log ε per difference of the acceptance rate from the wanted one
_MOST_DISAGREEMENT = 0.25  # standard error of log p(x) by islands, nats
_MAX_TEMPERATURES = 150  # beyond which the particles are assumed not to get there


@dataclass(frozen=True)
class TemperedSMC(Method):
    """Sequential Monte Carlo from the prior to p(z|x) over rising temperatures.

    Args:
        num_particles: Particles per query, over all islands; None: 1,000, plus 64 for each latent
            dimension.
        num_islands: Number of islands they are divided into, which give the errors, ≥ 2.
        num_moves: HMC moves at each temperature, ≥ 1.
        num_leapfrog: Leapfrog steps per move, ≥ 1.
        ess_share: Share of the particles that remains effective from one temperature to the next.
    """

    num_particles: int | None = None
    num_islands: int = 8
    num_moves: int = 2
    num_leapfrog: int = 4
    ess_share: float = 0.5

    def __post_init__(self) -> None:
        if min(self.num_moves, self.num_leapfrog, self.num_islands - 1) < 1:
            raise ValueError(
                f"expected num_moves, num_leapfrog >= 1 and num_islands >= 2, got {self}"
            )
        if self.num_particles is not None and self.num_particles < 4 * self.num_islands:
            raise ValueError(f"expected num_particles >= {4 * self.num_islands}, got {self}")
        if not 0 < self.ess_share < 1:
            raise ValueError(f"expected ess_share between 0 and 1, got {self.ess_share}")

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        target = covered(target, generator)
        num = self.num_particles or 1000 + 64 * target.latent_dim
        annealing = Annealing(
            num_particles=-(-num // self.num_islands) * self.num_islands,
            num_islands=self.num_islands,
            num_moves=self.num_moves,
            num_leapfrog=self.num_leapfrog,
            ess_share=self.ess_share,
            max_temperatures=_MAX_TEMPERATURES,
        )
        swarm = annealing.run(target, generator=generator, report=report)
        if not swarm.reached.all():
            query = target.name((~swarm.reached).nonzero()[0, 0])
            raise BudgetError(
                f"expected particles to reach p(z|x) within {_MAX_TEMPERATURES} temperatures, and "
                f"they did not for query {query}; p(z|x) is too narrow for TemperedSMC, use "
                "Laplace() or Auto()"
            )
        return swarm.findings()


@dataclass(eq=False)
class Swarm:
    """Particles from p(z|x) for B queries, and what they estimate.

    Args:
        z: Particles, equally weighted, island after island, shape (S, B, latent).
        log_likelihood: log p(x|z) there, shape (S, B).
        log_islands: log Ẑ of each island, shape (I, B).
        num_temperatures: Number of temperatures it took, shape (B,).
        acceptance: Acceptance rate of the last moves, shape (B,).
        decodes: Decoder evaluations, shape (B,).
        stuck: Whether at some temperature no step size moved the particles, boolean (B,).
        reached: Whether the particles reached p(z|x), boolean (B,); where they did not, z and its
            figures are 0.
    """

    z: Tensor
    log_likelihood: Tensor
    log_islands: Tensor
    num_temperatures: Tensor
    acceptance: Tensor
    decodes: Tensor
    stuck: Tensor
    reached: Tensor

    def select(self, index: Tensor) -> "Swarm":
        """The particles of some queries."""
        rest = [getattr(self, field.name)[..., index] for field in fields(self)[1:]]
        return Swarm(self.z[:, index], *rest)

    @property
    def missed(self) -> Tensor:
        """0 where the particles count as a search for modes, (B,), and NaN where they do not.

        They do not where they were stuck, or where the islands disagree.
        """
        failed = self.stuck | (self.log_evidence_error > _MOST_DISAGREEMENT)
        return torch.where(failed, math.nan, torch.zeros_like(self.acceptance))

    @property
    def log_evidence(self) -> Tensor:
        """log p(x) in nats, shape (B,)."""
        return log_mean_of_islands(self.log_islands)[0]

    @property
    def log_evidence_error(self) -> Tensor:
        """Its standard error, shape (B,)."""
        return log_mean_of_islands(self.log_islands)[1]

    @property
    def ess(self) -> Tensor:
        """Effective sample size from the spread of the islands' means, shape (B,).

        It is the variance of all particles over that of the mean, averaged over directions; the
        spread of I islands is an estimate with (I − 1) latent degrees of freedom. It is at most the
        number of particles in the effective number of islands: if one island outweighs all others,
        its own.
        """
        islands = self.z.unflatten(0, (len(self.log_islands), -1))
        weights = self.log_islands.softmax(0)[..., None]
        means = islands.mean(1)
        centre = (weights * means).sum(0)
        within = (islands - centre).square().mean((0, 1)).clamp_min(1e-30)
        between = (weights.square() * (means - centre).square()).sum(0)
        correction = 1 - weights.square().sum(0)
        error = (between / correction.clamp_min(1e-6) / within).mean(-1)
        most = islands.shape[1] / weights[..., 0].square().sum(0)
        return torch.minimum(1 / error.clamp_min(1e-12), most)

    def findings(self) -> Findings:
        """Findings with the particles as draws."""
        unknown = torch.full_like(self.log_evidence, math.nan)
        return Findings(
            draws=self.z,
            log_evidence=self.log_evidence,
            log_evidence_error=self.log_evidence_error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=self.ess,
            missed=self.missed,
            stats={"temperatures": self.num_temperatures, "acceptance": self.acceptance},
        )


@dataclass(frozen=True)
class Annealing:
    """`TemperedSMC` without defaults; `run` returns the particles."""

    num_particles: int
    num_islands: int
    num_moves: int
    num_leapfrog: int
    ess_share: float
    max_temperatures: int = _MAX_TEMPERATURES
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
            (for_step,) = spawn(
                for_steps, 1
            )  # other queries' retries must not change a query's random numbers
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
        points = points[: per_island * self.num_islands]
        if points.ndim == 2:  # the same for all queries
            points = points[:, None].expand(-1, target.num_queries, -1)
        # Stretches of the bank, not every n-th point, as each stretch is spread evenly.
        islands = log_likelihood[: len(points)].unflatten(0, (self.num_islands, per_island))
        islands = islands.transpose(0, 1)
        now = torch.zeros_like(log_likelihood[0])
        wanted = max(min(0.9 * self.num_particles, 0.25 * len(points)), 2.0)
        temperature = next_temperature(islands.flatten(0, 1), now, wanted)
        log_weights = flattened(islands, temperature)
        offset = uniform((self.num_islands, 1), generator=generator, like=points)
        size = self.num_particles // self.num_islands
        index = systematic(log_weights, offset, size)  # (size, islands, B)
        island = torch.arange(self.num_islands, device=points.device)
        chosen = taken(points, (index + per_island * island[..., None]).flatten(0, 1))
        chosen = chosen.unflatten(0, index.shape[:2]).transpose(0, 1).flatten(0, 1)
        num_queries = target.num_queries
        return _State(
            target=target,
            index=torch.arange(num_queries, device=points.device),
            z=chosen,
            log_likelihood=taken(islands, index).transpose(0, 1).flatten(0, 1),
            temperature=temperature,
            log_islands=log_weights.logsumexp(0) - math.log(per_island),
            step_size=torch.full_like(temperature, _QUARTER / self.num_leapfrog),
            acceptance=torch.zeros_like(temperature),
            num_temperatures=torch.zeros_like(temperature),
            decodes=torch.zeros_like(temperature),
            stuck=torch.zeros_like(temperature, dtype=torch.bool),
        )

    def _move(self, state: "_State", *, generator: Generator, stop: Callable[[], bool]) -> None:
        """HMC moves on p(z) p(x|z)^t, for each query until `num_moves` of them succeeded.

        If a step is too long, as when modes separate and the particles' covariance spans them, it
        is shortened at once and the move does not count.
        """
        left = torch.full_like(state.temperature, float(self.num_moves))
        factor = torch.linalg.cholesky(
            regularized_covariance(state.z, 1e-10 * state.target.prior_scale**2)
        )
        points = evaluated(state.target, state.density(), state.z)
        z, log_density = points.z, points.log_density
        rows, target = torch.arange(len(left), device=left.device), state.target
        for _ in range(self.num_moves + _MOST_RETRIES):
            density = state.density(rows, target)
            move = Move(target, density, factor[rows], self.num_leapfrog)
            points, accepted = move(points, state.step_size[rows], _JITTER, generator=generator)
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
        gain = gain.unflatten(0, (self.num_islands, -1)).transpose(0, 1)
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
        return _State(
            self.target.select(which.nonzero()[:, 0]),
            self.index[which],
            self.z[:, which],
            self.log_likelihood[:, which],
            self.temperature[which],
            self.log_islands[:, which],
            self.step_size[which],
            self.acceptance[which],
            self.num_temperatures[which],
            self.decodes[which],
            self.stuck[which],
        )


def _within_islands(values: Tensor, index: Tensor) -> Tensor:
    """values (S, B, *event), island by island, at index (S / I, I, B) within each island."""
    size, num_islands = index.shape[:2]
    by_island = values.unflatten(0, (num_islands, size)).transpose(0, 1)
    return taken(by_island, index).transpose(0, 1).flatten(0, 1)
