"""Annealing of discrete latents: particles go from a reference r(z) to p(z|x).

    π_t(z) ∝ r(z)^{1 − t} p(z, x)^t,   0 = t_0 < t_1 < … = 1

The reference is the prior, or a fit to earlier particles, from which few temperatures are enough.
At each temperature some particles are resampled by weight, and each starts a chain of informed
moves. All states of all chains are weighted for the next temperature, so no decode is wasted. The
particles form islands that share only temperatures and the cost of moves; the spread of what they
estimate gives the error, including that from lost modes.

Source: Del Moral, Doucet & Jasra (2006), section 3.3.2; Dau & Chopin (2022), algorithm 3, for
chains whose states all count. Differs in: the first temperature is reached by weighting many more
draws of the reference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.informed_moves import adapted, moved, redrawn
from crosscoding.methods.numerics.resampling import (
    flattened,
    log_mean_of_islands,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.methods.numerics.swarm import one_error
from crosscoding.progress import Report
from crosscoding.random import spawn, uniform
from crosscoding.target.discrete_target import DiscreteTarget, Reference

MAX_TEMPERATURES = 150  # as in `annealing`
# Halving or doubling any of the next three moves log p(x) by at most 0.01 nats, and changes no
# verdict, on 26 queries of small models whose log p(x) is known (`discrete` and `wells` in
# benchmarks/sensitivity.py). Another seed moves it by 0.05 nats. Half of _FIRST_COST takes 6 % more
# decodes, and double 4 % fewer.
_FIRST_COST = 1.0  # of moves at the first temperature; later ones adapt it
_LEAST_ACCEPTANCE = 0.05  # of moves, below which particles count as stuck
# Share of the reference's draws that stays effective at the first temperature: with more, the first
# step is shorter; with less, few draws are left to find every mode.
_START_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Particles:
    """Particles from p(z|x) for B queries, in islands; those of an island are equally weighted.

    Args:
        z: Shape (S, I, B, D).
        log_joint: log p(z, x) there in nats, shape (S, I, B).
        log_islands: log Ẑ of each island, shape (I, B).
        num_temperatures: Number of temperatures it took, shape (B,).
        acceptance: Acceptance rate of the last moves, shape (B,).
        decodes: Decoder evaluations, shape (B,).
        stuck: Whether moves were hardly ever accepted at some temperature, boolean, shape (B,).
        reached: Whether the particles reached p(z|x), boolean, shape (B,).
    """

    z: Tensor
    log_joint: Tensor
    log_islands: Tensor
    num_temperatures: Tensor
    acceptance: Tensor
    decodes: Tensor
    stuck: Tensor
    reached: Tensor

    def select(self, index: Tensor) -> "Particles":
        """The particles of some queries."""
        rest = [getattr(self, field.name)[..., index] for field in fields(self)[1:]]
        return Particles(self.z[:, :, index], *rest)

    @property
    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """log p(x) and its standard error in nats, both (B,)."""
        return log_mean_of_islands(self.log_islands)

    def weighted(self) -> tuple[Tensor, Tensor]:
        """The particles in one row, (S I, B, D), and their log-weights, (S I, B)."""
        num = len(self.z)
        log_weights = self.log_islands.log_softmax(0) - math.log(num)
        return self.z.flatten(0, 1), log_weights.expand(num, -1, -1).flatten(0, 1)

    def ess(self, inputs_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Effective sample size from the spread of the islands' means, shape (B,).

        As `Swarm.ess`, but for means of the decoder's inputs, which are shares of values: means of
        the values themselves say nothing.
        """
        inputs = inputs_of(self.z).flatten(3)
        weights = self.log_islands.softmax(0)[..., None]
        means = inputs.mean(0)
        centre = (weights * means).sum(0)
        within = (centre * (1 - centre)).clamp_min(1 / inputs[..., 0].numel())
        between = (weights.square() * (means - centre).square()).sum(0)
        correction = (1 - weights.square().sum(0)).clamp_min(1e-6)
        error = one_error(between / correction / within, len(means) - 1)
        most = len(self.z) / weights[..., 0].square().sum(0)
        return torch.minimum(1 / error.clamp_min(1e-12), most)


@dataclass(frozen=True)
class DiscreteAnnealing:
    """Settings of a run.

    Args:
        num_islands: Number I of islands.
        num_chains: Chains in each island.
        num_moves: States of each chain at each temperature, ≥ 2; the first is where it starts.
        ess_share: Share of the states that remains effective from one temperature to the next.
    """

    num_islands: int
    num_chains: int
    num_moves: int
    ess_share: float

    @property
    def num_states(self) -> int:
        """States of a query at each temperature."""
        return self.num_islands * self.num_chains * self.num_moves

    @torch.no_grad()
    def run(
        self,
        target: DiscreteTarget,
        draws: Tensor,
        log_ratio: Tensor,
        reference: Reference | None = None,
        *,
        most_decodes: Tensor | None = None,
        generator: Generator,
        report: Report,
    ) -> Particles:
        """Particles of every query of a flat target.

        Args:
            target: The target.
            draws: Draws of the reference, (N, B, D), with N a multiple of the number of islands.
            log_ratio: log p(z, x) / r(z) there, (N, B).
            reference: r; None: p(z).
            most_decodes: Most decoder evaluations of each query, (B,), after which its particles
                stop on their way; None: no limit.
            generator: For all random numbers.
            report: Receives progress.
        """
        for_start, for_steps = spawn(generator, 2)
        state = _State.before(target, reference, self.num_islands)
        most = torch.full_like(state.decodes, math.inf) if most_decodes is None else most_decodes
        chains = self._start(state, draws, log_ratio, generator=for_start)
        done = _nothing(state, (self.num_moves * self.num_chains, *chains.shape[1:]))
        for step in range(MAX_TEMPERATURES):
            if not len(state.index):
                break
            report(1 - len(state.index) / max(target.num_queries, 1), f"temperature {step}")
            (for_step,) = spawn(for_steps, 1)
            z, log_ratio, log_joint = self._move(state, chains, generator=for_step)
            finished = state.temperature >= 1
            over = state.decodes + self.num_states > most[state.index]
            if (finished | over).any():
                _store(done, state, z, log_joint, finished)
                done.decodes[state.index] = state.decodes
                left = ~finished & ~over
                state, z, log_ratio = state.select(left), z[:, :, left], log_ratio[..., left]
            if len(state.index):
                (for_step,) = spawn(for_steps, 1)
                least = self.ess_share * log_ratio[..., 0].numel()
                chains = self._sharpen(state, z, log_ratio, least, generator=for_step)
        done.decodes[state.index] = state.decodes
        return done

    def _start(
        self, state: "_State", draws: Tensor, log_ratio: Tensor, *, generator: Generator
    ) -> Tensor:
        """Draws of the reference at the first temperature, (C, I, B, D)."""
        least = max(min(self.ess_share * self.num_states, _START_SHARE * len(draws)), 2.0)
        shape = (-1, self.num_islands)
        z, ratio = draws.unflatten(0, shape), log_ratio.unflatten(0, shape)
        return self._sharpen(state, z, ratio, least, generator=generator)

    def _sharpen(
        self,
        state: "_State",
        z: Tensor,
        log_ratio: Tensor,
        least_ess: float,
        *,
        generator: Generator,
    ) -> Tensor:
        """Raise the temperature, and choose points of each island by their weights.

        Args:
            state: Its temperature and log Ẑ are changed.
            z: Shape (S, I, B, D).
            log_ratio: Shape (S, I, B).
            least_ess: How many of the points stay effective.
            generator: For the choice.
        Returns:
            Shape (C, I, B, D).
        """
        sharper = next_temperature(log_ratio.flatten(0, 1), state.temperature, least_ess)
        gain = flattened(log_ratio, sharper - state.temperature)
        state.log_islands = state.log_islands + gain.logsumexp(0) - math.log(len(gain))
        state.temperature = sharper
        offset = uniform((self.num_islands, 1), generator=generator, like=z)
        return taken(z, systematic(gain, offset, self.num_chains))

    def _move(
        self, state: "_State", chains: Tensor, *, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All states of the chains, and log p(z, x) / r(z) and log p(z, x) there.

        Args:
            state: Its figures are changed.
            chains: Where they start, shape (C, I, B, D).
            generator: For the moves.
        Returns:
            Shapes (S, I, B, D), (S, I, B) and (S, I, B).
        """
        shape, path = chains.shape[:2], (state.temperature, state.reference)
        points = state.target.points(chains.flatten(0, 1), *path)
        none = points.changes.new_empty(0)  # (S, B, D, K) numbers per move are too many to keep
        states = [replace(points, changes=none)]
        total, fresh = torch.zeros_like(state.temperature), self._fresh(state, shape, generator)
        for step in range(1, self.num_moves):
            if state.reference is not None and fresh is not None and step % 2:
                proposed = fresh[step // 2]
                points, _ = redrawn(
                    state.target, points, path[0], state.reference, proposed, generator=generator
                )
            else:
                cost = state.cost
                points, acceptance = moved(
                    state.target, points, path[0], cost, path[1], generator=generator
                )
                state.cost = adapted(cost, acceptance)
                total = total + acceptance
            states.append(replace(points, changes=none))
        num_informed = self.num_moves - 1 if fresh is None else (self.num_moves - 1) // 2
        state.acceptance = total / num_informed
        state.stuck = state.stuck | (state.acceptance < _LEAST_ACCEPTANCE)
        state.num_temperatures = state.num_temperatures + 1
        state.decodes = state.decodes + self.num_moves * shape.numel()
        z = torch.stack([each.z for each in states])
        log_ratio = torch.stack([each.log_ratio for each in states])
        log_joint = log_ratio + torch.stack([each.log_reference for each in states])
        z, log_ratio, log_joint = (
            part.unflatten(1, shape).flatten(0, 1) for part in (z, log_ratio, log_joint)
        )
        return z, log_ratio, log_joint

    def _fresh(self, state: "_State", shape: torch.Size, generator: Generator) -> Tensor | None:
        """Draws of a fitted reference, which every second move proposes: (moves, C I, B, D)."""
        if state.reference is None:
            return None
        num = self.num_moves // 2
        draws = state.reference.sample(num * shape.numel(), generator=generator)
        order = torch.randperm(len(draws), generator=generator, device=generator.device)
        return draws[order.to(draws.device)].unflatten(0, (num, -1))


@dataclass(eq=False)
class _State:
    """State of the queries that are not finished, apart from their particles."""

    target: DiscreteTarget
    reference: Reference | None
    index: Tensor
    temperature: Tensor
    log_islands: Tensor
    cost: Tensor
    acceptance: Tensor
    num_temperatures: Tensor
    decodes: Tensor
    stuck: Tensor

    @staticmethod
    def before(target: DiscreteTarget, reference: Reference | None, num_islands: int) -> "_State":
        """The state at t = 0."""
        nothing = target.like.new_zeros(target.num_queries)
        return _State(
            target=target,
            reference=reference,
            index=torch.arange(target.num_queries, device=nothing.device),
            temperature=nothing,
            log_islands=nothing.expand(num_islands, -1),
            cost=nothing + _FIRST_COST,
            acceptance=nothing,
            num_temperatures=nothing,
            decodes=nothing,
            stuck=nothing > 0,
        )

    def select(self, which: Tensor) -> "_State":
        """Some of the queries, by a boolean (B,)."""
        rows = which.nonzero()[:, 0]
        reference = None if self.reference is None else self.reference.select(rows)
        rest = [getattr(self, field.name)[..., which] for field in fields(self)[2:]]
        return _State(self.target.select(rows), reference, *rest)


def _nothing(state: _State, shape: tuple[int, ...]) -> Particles:
    zeros = torch.zeros_like(state.temperature)
    return Particles(
        z=zeros.new_zeros(shape),
        log_joint=zeros.new_zeros(shape[:-1]),
        log_islands=torch.zeros_like(state.log_islands),
        num_temperatures=zeros.clone(),
        acceptance=zeros.clone(),
        decodes=zeros.clone(),
        stuck=zeros > 0,
        reached=zeros > 0,
    )


def _store(done: Particles, state: _State, z: Tensor, log_joint: Tensor, finished: Tensor) -> None:
    rows = state.index[finished]
    done.z[:, :, rows] = z[:, :, finished]
    done.log_joint[:, :, rows] = log_joint[:, :, finished]
    done.log_islands[:, rows] = state.log_islands[:, finished]
    done.num_temperatures[rows] = state.num_temperatures[finished]
    done.acceptance[rows], done.decodes[rows] = state.acceptance[finished], state.decodes[finished]
    done.stuck[rows], done.reached[rows] = state.stuck[finished], True
