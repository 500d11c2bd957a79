"""The stages of the cascade (`auto`): each works on some queries and offers what it finds.

A stage takes the target of those queries, their indices among all queries, and a generator. What it
finds is kept where it is better than the best so far. It returns the decodes that each query took.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.diagnostics import pareto_smooth
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.amortised_check import AmortisedCheck
from crosscoding.methods.cascade.amortised_stage import AmortisedStage
from crosscoding.methods.cascade.bank_points import BankPoints
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.bridge_stage import BridgeStage
from crosscoding.methods.cascade.budget import (
    FAR_FROM_PRIOR,
    FEW_PARTICLES,
    FEW_ROUNDS,
    MORE_PARTICLES,
    MORE_ROUNDS,
    NUM_ISLANDS,
    TOO_FAR_FROM_PRIOR,
    Budget,
    distance_from_prior,
)
from crosscoding.methods.cascade.climb_stages import ClimbStages
from crosscoding.methods.cascade.drawing import Drawing
from crosscoding.methods.cascade.drawing_rounds import DrawingRounds
from crosscoding.methods.cascade.narrow_stage import NarrowStage
from crosscoding.methods.cascade.weighing import Weighing
from crosscoding.methods.grid import Grid
from crosscoding.methods.numerics.annealing import Annealing
from crosscoding.methods.numerics.bridge import Bridge
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.low_rank_fit import FEWEST_DECODES, fit_low_rank
from crosscoding.methods.numerics.resampling import bounded, next_temperature
from crosscoding.methods.numerics.swarm import Swarm
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

GRID_DIM = 3  # latent dimensions up to which cells are few enough
# Nats; the error is about a twentieth of this. In three dimensions, cells left alone have 2 to 5 %
# of p(z|x) with 0.05, and 45 of 48 rows of a narrow table model were not settled; with 0.015, 4
# were not.
_GRID_TOLERANCE = {1: 0.1, 2: 0.1, 3: 0.015}
_NUM_GRID_CHECKS, _MOST_CELLS = 300, 60_000  # draws, and cells above which other stages are cheaper
# Halving or doubling _BANK_ESS, _BANK_ERROR, _NUM_GRID_CHECKS or _ISLAND_FACTOR leaves the errors
# on mnist-2d at 0.009 nats or less, except for 0.022 with _BANK_ESS = 50.
_BANK_ESS, _BANK_ERROR = 100.0, 0.0375  # least ESS and largest error, in nats, of a dense bank
# Points of the bank that are tried first, and the same limits for them: the error of few points is
# less certain. Halving or doubling any of them leaves the errors on mnist-2d at 0.009 nats or less,
# and _MOST_CELLS changes nothing there.
_FEW_POINTS, _FEW_POINTS_ESS, _FEW_POINTS_ERROR = 2048, 200.0, 0.02
_SHARE_FOR_FIT = 0.8  # share of the time left for a low-rank fit; the rest is for its weights
# Leapfrog steps of a move of few particles, and of a swarm. Half or double of the first costs 9 or
# 13 % more decodes on mnist-20d, and moves log p(x) by less than another seed. 2 of the second save
# 7 to 16 % of the decodes on `far` and on blocks, 8 cost 23 to 39 % more, and log p(x) moves by at
# most 0.02 nats (benchmarks/sensitivity.py).
_FEW_LEAPFROG, _SWARM_LEAPFROG = 3, 4
_ISLAND_FACTOR = 1.25  # by which the spread of few islands may understate the error
# Share of p(z|x) that climbs may have missed if particles start from them. Halving or doubling it
# changes nothing on `far` or blocks.
_MOST_UNSEEN = 0.1
_ESS_SHARE = 0.5  # share of the particles that stays effective up to the next temperature
_MOST_TEMPERATURES = 40  # of a swarm: about twice as many as TOO_FAR_FROM_PRIOR takes
_LEAST_EXPONENT = -40.0  # e⁻⁴⁰ is below rounding, and squares of less are denormal, which is slow


class Stages:
    """The stages of one run, which share their answers.

    Args:
        answers: Takes the offers.
        budget: How much each stage may do.
        clock: When to stop.
        report: Receives progress.
        left: Gives the decodes that queries may still take.
    """

    def __init__(
        self,
        answers: BestSoFar,
        budget: Budget,
        clock: Clock,
        report: Report,
        left: Callable[[Tensor], Tensor],
    ) -> None:
        self.answers = answers
        self._budget = budget
        self._clock = clock
        self._report = report
        self._left = left
        self._weigh = Weighing(answers, clock)
        self.bank_points = BankPoints(answers.ess)
        self.climbs = ClimbStages(answers, budget, clock, report, self._weigh, self.bank_points)
        self.narrow = NarrowStage(answers, clock, report, self.bank_points, left)
        self._rounds = DrawingRounds(answers, self.climbs, clock)
        self._few = Annealing(FEW_PARTICLES, 1, 1, _FEW_LEAPFROG, _ESS_SHARE)
        check = AmortisedCheck(self.climbs, self._few, clock)
        self.amortised = AmortisedStage(self._rounds, check, self.bank_points, clock)
        self.bridge = BridgeStage(answers, budget, clock, report, self._weigh)

    def start_of_bank(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """`bank` with its first points, for queries for which these are dense enough already."""
        first = target.timed(self._clock, _FEW_POINTS)
        points, log_likelihood = first.log_likelihood_of_bank()
        offer, dense = self._weighed_bank(
            first, points, log_likelihood, _FEW_POINTS_ESS, _FEW_POINTS_ERROR
        )
        if len(dense):
            self.answers.keep(rows[dense], offer.select(dense), searched=True)
        return torch.zeros_like(offer.ess)

    def bank(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Importance sampling with the bank, which is dense enough in few dimensions."""
        points, log_likelihood = target.log_likelihood_of_bank()
        offer, _ = self._weighed_bank(target, points, log_likelihood, _BANK_ESS, _BANK_ERROR)
        if target.latent_dim > GRID_DIM:
            self.bank_points.keep(rows, points, log_likelihood, generator)
        self._clock.beat()
        self.answers.keep(rows, offer, searched=True, postpone=True)
        return torch.zeros_like(offer.ess)

    def _weighed_bank(
        self,
        target: Target,
        points: Tensor,
        log_likelihood: Tensor,
        least_ess: float,
        most_error: float,
    ) -> tuple[Findings, Tensor]:
        """Answers from points of the bank, and the queries for which these are dense enough."""
        self._clock.beat()  # with many queries, each of these steps takes a while
        largest = bounded(log_likelihood.amax(0))
        weights = torch.threshold_(log_likelihood - largest, _LEAST_EXPONENT, -math.inf).exp_()
        total = weights.sum(0)
        ess = (total / torch.linalg.vector_norm(weights, dim=0)).square()
        each = len(points) // NUM_ISLANDS
        self._clock.beat()
        islands = weights[: each * NUM_ISLANDS].unflatten(0, (NUM_ISLANDS, each))
        spread = islands.mean(1).std(0)  # NaN if there are too few points
        # All points together are spread more evenly than those of islands: their error is smaller.
        error = _ISLAND_FACTOR * spread / math.sqrt(NUM_ISLANDS) / (total / len(points))
        pareto_k = torch.full_like(ess, math.inf)
        dense = ((ess >= least_ess) & (error <= most_error)).nonzero()[:, 0]
        if target.latent_dim > GRID_DIM:
            dense = dense[:0]
        else:
            if target.ends_with_prior:
                pareto_k = torch.full_like(ess, math.nan)  # bounded weights have no tail
            else:
                pareto_k[dense] = pareto_smooth(log_likelihood[:, dense])[1]
            # The number of independent draws with the same error.
            as_draws = error[dense].square().reciprocal().clamp_max(float(len(points)))
            ess[dense] = torch.maximum(ess[dense], as_draws)
        unknown = torch.full_like(ess, math.nan)
        offer = Findings(
            draws=points[:, None].expand(-1, target.num_queries, -1),
            log_weights=log_likelihood,
            log_evidence=largest + (total / len(points)).log(),
            log_evidence_error=error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=ess,
            pareto_k=pareto_k,
            missed=torch.zeros_like(ess),
        )
        return offer, dense

    def locate(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Record how far p(z|x) is from the prior, and the best points of the bank."""
        self.bank_points.put(rows, target, generator)
        return torch.zeros_like(self.answers.ess[rows])

    def integrate(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Integrate over a grid, where that takes few enough cells."""
        tolerance = _GRID_TOLERANCE[target.latent_dim]
        grid = Grid(tolerance, max_cells=_MOST_CELLS, num_checks=_NUM_GRID_CHECKS)
        most = self._left(rows) - _NUM_GRID_CHECKS
        everything, outcome = grid.integrate(target, generator=generator, most=most)
        integrated = (outcome == 0).nonzero()[:, 0]
        found = everything.select(integrated)
        unknown = torch.full_like(found.ess, math.nan)
        offer = replace(found, c_elbo=unknown, c_elbo_error=unknown)  # a grid has no bound
        self.answers.keep(rows[integrated], offer, searched=True)
        return everything.stats["decodes"]

    def fit(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Fit a Gaussian at one mode, narrow in as many directions as are affordable."""
        for_fit, for_weights = spawn(generator, 2)
        affordable = self._affordable(target)
        if affordable < FEWEST_DECODES:
            self.answers.finished[rows] = False
            return torch.ones_like(self.answers.ess[rows])
        fitted, decodes = fit_low_rank(
            target,
            self._budget.fit_decodes,
            generator=for_fit,
            report=self._report,
            clock=self._clock,
            affordable=affordable,
        )
        return decodes + self._weigh(
            target,
            rows,
            fitted,
            None,
            self._budget.num_drawn,
            lambda largest: torch.full_like(largest, math.nan),  # one fit is not a search
            for_weights,
        )

    def _affordable(self, target: Target) -> int:
        """Decodes per query that a fit may take, given its budget and the time left."""
        most = self._budget.fit_decodes
        if not self._clock.is_limited:
            return most
        start = time.perf_counter()
        target.log_joint(target.like.new_zeros(target.num_queries, target.latent_dim))
        seconds = time.perf_counter() - start
        return min(most, int(_SHARE_FOR_FIT * self._clock.left / max(seconds, 1e-9)))

    def anneal(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Anneal a few particles, climb to modes, and draw in rounds from fits to both."""
        return self._anneal(self._few, target, rows, target, None, FEW_ROUNDS, generator)

    def anneal_more(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """`anneal` with more particles and more draws."""
        more = Annealing(MORE_PARTICLES, 1, 1, _FEW_LEAPFROG, _ESS_SHARE)
        return self._anneal(more, target, rows, target, None, MORE_ROUNDS, generator)

    def swarm(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Many particles in islands, from the prior or, where that is far, from the modes found.

        If there are very many modes, climbs find only some of them, while the prior covers all.
        """
        num = self._budget.swarm_size
        many = Annealing(
            num,
            NUM_ISLANDS,
            1,
            _SWARM_LEAPFROG,
            _ESS_SHARE,
            _MOST_TEMPERATURES,
            gives_up=True,
        )
        distance, climbed = self.bank_points.distance[rows], self.climbs.found.has(rows)
        decodes, unseen = torch.zeros_like(distance), torch.full_like(distance, math.nan)
        if climbed.any():
            unseen[climbed] = self.climbs.found.of(rows[climbed]).unseen
        far = climbed & ((unseen < _MOST_UNSEEN) | ~(distance < TOO_FAR_FROM_PRIOR))
        for_near, for_far, for_bridge = spawn(generator, 3)
        if (some := (~far).nonzero()[:, 0]).numel():
            near = target.select(some)
            decodes[some] += self._anneal(many, near, rows[some], near, None, MORE_ROUNDS, for_near)
        if (some := far.nonzero()[:, 0]).numel():
            proposal = self.climbs.found.of(rows[some]).proposal
            there = target.select(some)
            bridge = Bridge(there, proposal, num, generator=for_bridge)
            decodes[some] += num
            short = (_length(bridge) <= FAR_FROM_PRIOR).nonzero()[:, 0]
            there, path, some = there.select(short), bridge.select(short), some[short]
            if len(some):
                decodes[some] += self._anneal(
                    many, there, rows[some], path, unseen[some], MORE_ROUNDS, for_far
                )
        return decodes

    def _anneal(
        self,
        annealing: Annealing,
        target: Target,
        rows: Tensor,
        path: Target,
        unseen: Tensor | None,
        rounds: tuple[int, ...],
        generator: Generator,
    ) -> Tensor:
        """Anneal particles along a path to the target, and draw from fits to them.

        `unseen` is the share of p(z|x), (B,), in modes that the path does not lead to; None: it
        starts from the prior and leads to all of them.
        """
        for_particles, for_climbs, for_rounds = spawn(generator, 3)
        in_bank = self.bank_points.of(target, rows, for_climbs)
        swarm = annealing.run(path, generator=for_particles, stop=self._clock.is_over)
        decodes, there = swarm.decodes, self._arrived(rows, swarm)
        if not len(there):
            return decodes
        share = torch.zeros_like(decodes) if unseen is None else unseen
        if annealing.num_islands > 1:
            arrived = swarm.select(there)
            found, missed = arrived.findings(), arrived.missed + share[there]
            error = _ISLAND_FACTOR * found.log_evidence_error
            self.answers.keep(rows[there], replace(found, log_evidence_error=error, missed=missed))
        size = self._rounds.num_at_once(target, rounds)
        seeds = [stream.initial_seed() for stream in spawn(for_rounds, len(rounds))]
        for some in there.split(size):
            chosen, own = target.select(some), swarm.select(some)
            particles = evaluated(chosen, chosen.log_joint, own.z)
            decodes[some] += len(own.z)
            lacking = torch.where(own.stuck, math.nan, share[some])
            drawing = Drawing.of(
                chosen, rows[some], in_bank.select(some), particles, lacking, self._rounds.enough
            )
            climbs = Generator().manual_seed(for_climbs.initial_seed())
            self._rounds.run(drawing, some, rounds, seeds, climbs, decodes)
        return decodes

    def _arrived(self, rows: Tensor, swarm: Swarm) -> Tensor:
        """Index of the queries whose particles reached p(z|x); marks others as not finished."""
        self.answers.finished[rows[~swarm.reached]] = False
        return swarm.reached.nonzero()[:, 0]


def _length(path: Bridge) -> Tensor:
    """Approximate number of temperatures along a path, as `distance_from_prior`, shape (B,)."""
    _, log_ratio = path.log_likelihood_of_bank()
    cold, ess = torch.zeros_like(log_ratio[0]), float(FEW_PARTICLES)
    return distance_from_prior(next_temperature(log_ratio, cold, ess), path.latent_dim)
