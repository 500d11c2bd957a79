"""The stages of the cascade (`auto`): each works on some queries and offers what it finds.

A stage takes the target of those queries, which they are of all, and a generator; what it finds is
kept where it is better than the answer so far. It returns the decodes that each query took.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.diagnostics import pareto_smooth
from crosscoding.methods.answers import Answer, Answers
from crosscoding.methods.base import Report
from crosscoding.methods.effort import (
    CHECK_STEPS,
    CLIMB_STEPS,
    DEAR_STEPS,
    LEAST_CLIMBS,
    NUM_ADAPT,
    NUM_ISLANDS,
    NUM_PARTICLES,
    NUM_REFINE,
    NUM_WEIGHED,
    ROUNDS,
    Clock,
    Effort,
)
from crosscoding.methods.grid import Grid
from crosscoding.methods.importance import adapt, widened
from crosscoding.methods.laplace import Modes, climb, half_log_determinant, spread_starts
from crosscoding.methods.natural import NaturalGradient
from crosscoding.methods.particles import bounded, next_temperature, taken
from crosscoding.methods.smc import Annealing, Swarm
from crosscoding.methods.weighing import BEYOND, Weighing, with_tails
from crosscoding.random import spawn
from crosscoding.target import Target

GRID_DIM = 3
_GRID_TOLERANCE = {1: 0.1, 2: 0.1, 3: 0.05}
_NUM_GRID_CHECKS, _MOST_CELLS = 300, 30_000
_BANK_ESS, _BANK_ERROR = 100.0, 0.0375  # of points spread evenly, and of log p(x) by islands
_NUM_DEAR = 500
_MOST_COMPONENTS = 8  # of the modes found, to propose from
_ISLAND_FACTOR = 1.25  # by which the spread of a few islands may understate the error
_NO_MODE = 4.0  # nats below all modes together, from which on one is not looked for


class Stages:
    """What each stage does, and the answers that they have together.

    Args:
        answers: To offer answers to.
        effort: How much of everything.
        clock: When to stop.
        report: Of progress.
        unlimited: Whether a query may have further draws where its error asks for them.
    """

    def __init__(
        self, answers: Answers, effort: Effort, clock: Clock, report: Report, *, unlimited: bool
    ) -> None:
        self.answers = answers
        self._effort = effort
        self._clock = clock
        self._report = report
        self._weigh = Weighing(answers, clock, unlimited=unlimited)

    def bank(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Importance sampling with the bank, good enough where it is dense: in few dimensions."""
        points, log_likelihood = target.log_likelihood_of_bank()
        largest = bounded(log_likelihood.amax(0))
        weights = (log_likelihood - largest).exp()
        total, ess = weights.sum(0), weights.sum(0).square() / weights.square().sum(0)
        islands = weights[: len(points) // NUM_ISLANDS * NUM_ISLANDS]
        spread = islands.unflatten(0, (NUM_ISLANDS, -1)).mean(1).std(0)
        # Each island is spread evenly by itself: all of them together have a smaller error.
        error = _ISLAND_FACTOR * spread / math.sqrt(NUM_ISLANDS) / (total / len(points))
        pareto_k = torch.full_like(ess, math.inf)
        if target.latent_dim <= GRID_DIM:
            dense = ((ess >= _BANK_ESS) & (error <= _BANK_ERROR)).nonzero()[:, 0]
            if target.ends_with_prior:
                pareto_k = torch.full_like(ess, math.nan)  # of bounded weights there is no tail
            else:
                pareto_k[dense] = pareto_smooth(log_likelihood[:, dense])[1]
            # As many independent draws would have that error.
            as_draws = error[dense].square().reciprocal().clamp_max(float(len(points)))
            ess[dense] = torch.maximum(ess[dense], as_draws)
        else:
            self.answers.way[rows] = _way(log_likelihood, target.latent_dim)
        unknown = torch.full_like(ess, math.nan)
        answer = Answer(
            draws=points[:, None].expand(-1, target.num_queries, -1),
            log_weights=log_likelihood,
            log_evidence=largest + (total / len(points)).log(),
            error=error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=ess,
            pareto_k=pareto_k,
            missed=torch.zeros_like(ess),
            weighed=torch.full_like(ess, len(points)),
            searched=True,
        )
        self.answers.keep(rows, answer, postpone=True)
        return torch.zeros_like(ess)

    def integrate(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        tolerance = _GRID_TOLERANCE[target.latent_dim]
        grid = Grid(tolerance, max_cells=_MOST_CELLS, num_checks=_NUM_GRID_CHECKS)
        everything, outcome = grid.integrate(target, generator=generator)
        integrated = (outcome == 0).nonzero()[:, 0]
        found = everything.select(integrated)
        assert found.log_weights is not None
        assert found.pareto_k is not None
        unknown = torch.full_like(found.ess, math.nan)
        answer = Answer(
            draws=found.draws,
            log_weights=found.log_weights,
            log_evidence=found.log_evidence,
            error=found.log_evidence_error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=found.ess,
            pareto_k=found.pareto_k,
            missed=found.stats["missed"],
            weighed=found.stats["weighed"],
            cell_width=found.cell_width,
            searched=True,
        )
        self.answers.keep(rows[integrated], answer)
        open_rows = (self.answers.grade[rows] > 0).nonzero()[:, 0]
        if len(open_rows):  # too fine for cells, or beyond their box
            _, log_likelihood = target.select(open_rows).log_likelihood_of_bank()
            self.answers.way[rows[open_rows]] = _way(log_likelihood, target.latent_dim)
        return everything.stats["cells"] + _NUM_GRID_CHECKS

    def anneal(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        for_particles, for_proposal = spawn(generator, 2)
        annealing = Annealing(NUM_PARTICLES, 1, 1, 3, 0.5)
        swarm = annealing.run(target, generator=for_particles, stop=self._clock.is_over)
        decodes, there = swarm.decodes, self._arrived(rows, swarm)
        if len(there):
            target, swarm = target.select(there), swarm.select(there)
            decodes[there] += self._propose(target, rows[there], swarm, 1, for_proposal)
        return decodes

    def _arrived(self, rows: Tensor, swarm: Swarm) -> Tensor:
        """Which particles got to p(z|x), as an index; notes of the others that they did not."""
        self.answers.finished[rows[~swarm.reached]] = False
        return swarm.reached.nonzero()[:, 0]

    def refine(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Adapt from the answer's draws with more of them, and a mixture of two."""
        for_adapt, for_weights = spawn(generator, 2)
        draws = self.answers.draws_of(rows)
        proposal = adapt(
            target,
            draws,
            torch.zeros_like(draws[..., 0]),
            components=2,
            rounds=ROUNDS,
            num_draws=NUM_REFINE,
            generator=for_adapt,
        )
        missed = self.answers.missed[rows]  # of the fit before, which this one widens
        return ROUNDS * NUM_REFINE + self._weigh(
            target, rows, proposal, 2, NUM_WEIGHED, lambda largest: missed, for_weights
        )

    def swarm(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        for_particles, for_proposal = spawn(generator, 2)
        annealing = Annealing(self._effort.swarm_size, NUM_ISLANDS, 1, 4, 0.5)
        swarm = annealing.run(target, generator=for_particles, stop=self._clock.is_over)
        decodes, there = swarm.decodes, self._arrived(rows, swarm)
        if not len(there):
            return decodes
        target, rows, swarm = target.select(there), rows[there], swarm.select(there)
        unknown = torch.full_like(swarm.log_evidence, math.nan)
        answer = Answer(
            draws=swarm.z,
            log_weights=torch.zeros_like(swarm.log_likelihood),
            log_evidence=swarm.log_evidence,
            error=_ISLAND_FACTOR * swarm.log_evidence_error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=swarm.ess,
            pareto_k=unknown,
            missed=swarm.missed,
            weighed=torch.full_like(unknown, len(swarm.z)),
        )
        answer = with_tails(target, answer, target.log_prior)
        self.answers.keep(rows, answer)
        decodes[there] += self._propose(target, rows, swarm, 3, for_proposal)
        return decodes

    def _propose(
        self, target: Target, rows: Tensor, swarm: Swarm, components: int, generator: Generator
    ) -> Tensor:
        """Fit to particles, adapt, weigh, and see whether particles lie outside; the decodes."""
        for_adapt, for_weights = spawn(generator, 2)
        proposal = adapt(
            target,
            swarm.z,
            torch.zeros_like(swarm.log_likelihood),
            components=components,
            rounds=ROUNDS,
            num_draws=NUM_ADAPT,
            generator=for_adapt,
        )
        log_joint = swarm.log_likelihood + target.log_prior(swarm.z)
        inside = log_joint - proposal.log_prob(swarm.z)
        return ROUNDS * NUM_ADAPT + self._weigh(
            target,
            rows,
            proposal,
            components,
            NUM_WEIGHED,
            lambda largest: (inside > largest + BEYOND).to(inside).mean(0) + swarm.missed,
            for_weights,
        )

    def climb(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Modes, the Laplace mixture as a proposal, and the best Gaussian where that is poor."""
        for_starts, for_modes, for_mode, for_fit, for_gaussian = spawn(generator, 5)
        dim = target.latent_dim
        num = self._effort.num_climbs
        cheap = num >= LEAST_CLIMBS
        steps = CLIMB_STEPS if cheap else DEAR_STEPS
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, steps, report=self._report, stop=self._clock.is_late)
        decodes = modes.steps.sum(0) * (dim + 3.0) + num * dim
        log_weights, climbs = modes.log_weights()
        searched = ((climbs == 1).sum(0) / num).to(target.like)
        best = log_weights.argsort(0, descending=True)[:_MOST_COMPONENTS]
        num_weighed = NUM_ADAPT if cheap else _NUM_DEAR

        def lacking(proposal: Fitted, some: Tensor, largest: Tensor) -> Tensor:
            """Share of modes not found, and of those found where the proposal is too thin."""
            if not cheap:  # one climb is no search
                return torch.full_like(largest, math.nan)
            weights = modes.log_joint[:, some] - proposal.log_prob(modes.z[:, some])
            outside = torch.where(weights > largest + BEYOND, log_weights[:, some].exp(), 0.0)
            return searched[some] + outside.sum(0)

        if cheap:
            mixture = Mixture.from_components(
                log_weights.gather(0, best).mT.clamp_min(-50.0),
                taken(modes.z, best).transpose(0, 1),
                taken(modes.precision, best).transpose(0, 1),
            )
            proposal, everything = widened(mixture, target), torch.arange(len(rows)).to(rows)
            decodes += self._weigh(
                target,
                rows,
                proposal,
                len(best),
                num_weighed,
                lambda largest: lacking(proposal, everything, largest),
                for_modes,
            )
            decodes += self._at_one_mode(target, rows, modes, searched, for_mode)
            self.answers.looked[rows] = True  # it was climbs that found these
        poor = (self.answers.grade[rows] > 0).nonzero()[:, 0]
        if len(poor):
            fit, some = NaturalGradient(), target.select(poor)
            start = modes.z[best[0, poor], poor], modes.precision[best[0, poor], poor]
            mean, precision, taken_steps = fit.fit(
                some, *start, for_fit, self._report, self._clock.is_late
            )
            decodes[poor] += taken_steps * (fit.num_draws + dim / 4)
            gaussian = Gaussian.from_precision(mean, precision)
            decodes[poor] += self._weigh(
                some,
                rows[poor],
                gaussian,
                None,
                num_weighed,
                lambda largest: lacking(gaussian, poor, largest),
                for_gaussian,
            )
        return decodes

    def look(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Climb from the prior to modes: does the answer have draws at all of them?"""
        for_starts, for_gaussian = spawn(generator, 2)
        num, every = self._effort.num_checks
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, CHECK_STEPS, every=every)
        log_weights, _ = modes.log_weights()
        missed = _lacking(modes, log_weights, self.answers.draws_of(rows))
        self.answers.doubt(rows, missed)
        curvatures = modes.steps.amax(0) / every + 1
        decodes = modes.steps.sum(0) * 3.0 + num * curvatures * target.latent_dim
        decodes += self._at_one_mode(target, rows, modes, missed, for_gaussian)
        self.answers.looked[rows] = True
        return decodes

    def _at_one_mode(
        self, target: Target, rows: Tensor, modes: Modes, missed: Tensor, generator: Generator
    ) -> Tensor:
        """Where all climbs end in one mode p(z|x) may be Gaussian, and Laplace's exact."""
        log_weights, climbs = modes.log_weights()
        alone = (climbs.amax(0) == len(climbs)).nonzero()[:, 0]
        decodes = torch.zeros_like(log_weights[0])
        if not len(alone):
            return decodes
        best = log_weights[:, alone].argmax(0)
        gaussian = Gaussian.from_precision(modes.z[best, alone], modes.precision[best, alone])
        decodes[alone] = self._weigh(
            target.select(alone),
            rows[alone],
            gaussian,
            None,
            NUM_ADAPT,
            lambda largest: missed[alone],
            generator,
        )
        return decodes


def _lacking(modes: Modes, log_weights: Tensor, draws: Tensor) -> Tensor:
    """Share of the modes that have far fewer draws than their weight asks for, (B,).

    Args:
        modes: K of each query.
        log_weights: log of their shares, −inf for one found before, shape (K, B).
        draws: Shape (S, B, latent); each counts for the mode under whose Gaussian it is likeliest.
    """
    densities = []
    for z, precision, log_weight in zip(modes.z, modes.precision, log_weights, strict=True):
        gap = (draws - z).transpose(0, 1).double()
        half_log_det = half_log_determinant(precision)
        density = half_log_det[:, None] - 0.5 * ((gap @ precision) * gap).sum(-1)
        densities.append(torch.where(log_weight[:, None] > -_NO_MODE, density, -math.inf))
    owner = torch.stack(densities).argmax(0)  # (B, S)
    number = torch.arange(len(log_weights), device=owner.device)[:, None, None]
    share = (owner == number).to(log_weights).mean(-1)
    return torch.where(share < 0.2 * log_weights.exp(), log_weights.exp(), 0.0).sum(0)


def _way(log_likelihood: Tensor, latent_dim: int) -> Tensor:
    """How many temperatures p(z|x) is from the prior, about, (B,): √(latent / 2) log(1 / t).

    t is the temperature that the bank, (N, B), reaches with `NUM_PARTICLES` effective points.
    """
    cold = torch.zeros_like(log_likelihood[0])
    reached = next_temperature(log_likelihood, cold, float(NUM_PARTICLES))
    return -math.sqrt(latent_dim / 2) * reached.clamp_min(1e-30).log()
