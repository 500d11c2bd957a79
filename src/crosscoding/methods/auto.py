"""Auto: the cascade. Cheap stages first; each passes on only the queries that it could not settle.

    bank    every query at every kept point of the prior: where is p(z|x), and how narrow?
    grid    latent ≤ 3: exact integration
    anneal  some particles from the prior to p(z|x): they see its modes, and start and test the fit
            they start the rounds of `importance.adapt`, and test what comes of it
    climb   Gauss–Newton from many points: where p(z|x) is too narrow to anneal to, the modes are
            proposed from, and if that is poor the best Gaussian, by natural gradients; elsewhere
            a second look for modes that the answer lacks
    swarm   what is not settled is annealed again, with many particles in islands

After each stage an answer is graded (`verdict`): Pareto k, effective draws, error of log p(x), and
whether a search from the prior finds mass where the answer has none. The best answer is kept. So
whenever time is up, there is one, and it says what it is worth; `trace` tells what was done for it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.diagnostics import importance_ess, log_mean_exp, mean_error, pareto_smooth
from crosscoding.errors import BudgetError
from crosscoding.findings import Findings, Stage
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.grid import Grid
from crosscoding.methods.importance import adapt, widened
from crosscoding.methods.laplace import climb, spread_starts
from crosscoding.methods.natural import NaturalGradient
from crosscoding.methods.particles import (
    log_mean_of_islands,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.methods.smc import Annealing, Swarm
from crosscoding.random import spawn, uniform
from crosscoding.target import Target
from crosscoding.verdict import Figures

_STAGES: tuple[str, ...] = ("bank", "grid", "anneal", "climb", "look", "swarm")
_GRID_DIM = 3
_GRID_TOLERANCE = 0.05
_BANK_ESS = {1: 100.0, 2: 100.0, 3: 400.0}  # of evenly spread points: worth more than draws
_BANK_ISLANDS = 8
_SHORT_WAY = 5.0  # temperatures from the prior, above which particles may lose a mode
_LONG_WAY = 10.0  # above which p(z|x) is narrow: climbed to, not annealed to
_LONGEST_WAY = 25.0  # above which a swarm does not get there either
_NUM_PARTICLES = 96
_NUM_CHECKS, _CHECK_STEPS = 16, 8  # climbs for a second look
_NUM_CLIMBS, _CLIMB_STEPS = 64, 30
_LEAST_CLIMBS = 16  # to count as a search for modes
_MOST_COMPONENTS = 8  # of the modes found, to propose from
_ROUNDS, _NUM_ADAPT = 3, 1000
_NUM_WEIGHED, _MOST_WEIGHED = 4000, 16_000
_WANTED_ERROR = 0.035  # of log p(x), nats
_BEYOND = 1.0  # nats above the largest weight: where a particle lies outside the fit
_CLIMB_OPERATIONS = 4e11  # multiply-adds that climbing may cost a query
_SWARM_OPERATIONS = 1.2e10  # multiply-adds for a query's swarm: as many particles as that buys
_MOST_OPERATIONS = 4e12  # and where the smallest swarm takes more than this, there is none


@dataclass(frozen=True)
class Auto(Method):
    """The best answer that the cascade finds within a budget, and a verdict on it.

    Args:
        max_seconds: Wall-clock time after which no further stage starts, and fits that are under
            way end; None: as long as it takes. The answer then depends on the machine's speed.
        max_decodes: Decoder evaluations that a query may have; None: as many as it takes.
        num_draws: Draws of each answer that are kept, ≥ 2.
    """

    max_seconds: float | None = None
    max_decodes: int | None = None
    num_draws: int = 1000

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"expected max_seconds > 0 or None, got {self.max_seconds}")
        if self.max_decodes is not None and not self.max_decodes > 0:
            raise ValueError(f"expected max_decodes > 0 or None, got {self.max_decodes}")
        if self.num_draws < 2:
            raise ValueError(f"expected num_draws >= 2, got {self.num_draws}")

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        return _Cascade(self, target, generator, report).run()


class _Cascade:
    """One run: the answers so far, what they cost, and the stages."""

    def __init__(
        self, settings: Auto, target: Target, generator: Generator, report: Report
    ) -> None:
        self._settings = settings
        self._target = target
        self._report = report
        streams = spawn(generator, len(_STAGES))
        self._streams: dict[str, Generator] = dict(zip(_STAGES, streams, strict=True))
        self._deadline = math.inf
        if settings.max_seconds is not None:
            self._deadline = time.perf_counter() + settings.max_seconds
        (seed,) = spawn(generator, 1)
        self._answers = _Answers(target, settings.num_draws, seed.initial_seed())
        self._spent = torch.zeros_like(self._answers.log_evidence)
        self._trace: list[Stage] = []

    def run(self) -> Findings:
        everything = torch.arange(self._target.num_queries, device=self._spent.device)
        try:
            if len(everything):
                self._stages(everything)
        except KeyboardInterrupt:  # what is finished is the answer
            self._answers.finished &= (self._answers.grade == 0) & ~self._to_look_at()
        return self._answers.findings(tuple(self._trace))

    def _stages(self, everything: Tensor) -> None:
        if not self._bank(everything).any():
            return
        if self._target.latent_dim <= _GRID_DIM:
            self._stage("grid", self._open(), self._integrate, planned=0)
        rows = self._open()
        if not len(rows):
            return
        way = self._answers.way
        self._stage("anneal", rows[way[rows] <= _LONG_WAY], self._anneal)
        self._stage("climb", rows[way[rows] > _LONG_WAY], self._climb)
        self._stage("look", self._to_look_at().nonzero()[:, 0], self._look_again)
        rows = self._open()
        within_reach = (way[rows] < _LONGEST_WAY) & (self._swarm_costs(rows) < _MOST_OPERATIONS)
        self._stage("swarm", rows[within_reach], self._swarm)

    # ---- what runs, and what it may cost -------------------------------------------------------

    def _open(self) -> Tensor:
        """The queries that are not settled."""
        return (self._answers.grade > 0).nonzero()[:, 0]

    def _to_look_at(self) -> Tensor:
        """Which queries are settled by particles that may have lost a mode on a long way, (B,)."""
        way, looked = self._answers.way, torch.zeros_like(self._answers.finished)
        for stage in self._trace:
            looked |= (stage.decodes > 0) & (stage.name == "look")
        long = (way > _SHORT_WAY) & (way <= _LONG_WAY)
        return (self._answers.grade == 0) & long & ~looked

    def _out_of_time(self) -> bool:
        return time.perf_counter() > self._deadline

    def _stage(
        self,
        name: str,
        rows: Tensor,
        work: Callable[[Target, Tensor, Generator], Tensor],
        planned: float = 1000.0,
    ) -> None:
        """Run a stage on some queries, unless the budget is spent, and note what it took.

        Args:
            name: For the trace.
            rows: Which queries.
            work: Takes their target, rows and a generator; gives the decodes of each.
            planned: Decodes that it needs at least.
        """
        if not len(rows):
            return
        allowed = torch.ones_like(rows, dtype=torch.bool)
        if self._settings.max_decodes is not None:
            allowed = self._spent[rows] + planned <= self._settings.max_decodes
        if self._out_of_time():
            allowed = torch.zeros_like(allowed)
        self._answers.finished[rows[~allowed]] = False
        rows = rows[allowed]
        if not len(rows):
            return
        self._report(1 - len(rows) / self._target.num_queries, f"{name}: {len(rows)} queries")
        start = time.perf_counter()
        stage = Stage(name, torch.zeros_like(self._spent), torch.zeros_like(self._spent))
        self._trace.append(stage)
        chosen = self._target
        if len(rows) < self._target.num_queries:
            chosen = self._target.select(rows)
        try:
            stage.decodes[rows] = work(chosen, rows, self._streams[name])
        finally:
            stage.seconds[rows] = (time.perf_counter() - start) / len(rows)
        self._spent += stage.decodes

    # ---- the stages ----------------------------------------------------------------------------

    def _bank(self, everything: Tensor) -> Tensor:
        """Importance sampling with the bank; which queries are open after it, boolean (B,)."""

        def work(target: Target, rows: Tensor, generator: Generator) -> Tensor:
            points, log_likelihood = target.log_likelihood_of_bank()
            ess = importance_ess(log_likelihood)
            size = len(points) // _BANK_ISLANDS * _BANK_ISLANDS
            islands = log_likelihood[:size].unflatten(0, (_BANK_ISLANDS, -1))
            log_islands = islands.logsumexp(1) - math.log(islands.shape[1])
            log_evidence = log_mean_exp(log_likelihood)[0]
            # Islands of evenly spread points: the error of all of them together is less.
            error = log_mean_of_islands(log_islands)[1]
            enough = _BANK_ESS.get(target.latent_dim, math.inf)
            settled = ess >= enough
            if target.latent_dim > _GRID_DIM:
                temperatures = math.sqrt(target.latent_dim / 2) * _way(log_likelihood)
                self._answers.way[rows] = temperatures
            unknown = torch.full_like(ess, math.nan)
            draws = points[:, None].expand(-1, target.num_queries, -1)
            self._answers.keep(
                rows,
                _Answer(
                    draws=draws,
                    log_weights=log_likelihood,
                    log_evidence=log_evidence,
                    error=error,
                    c_elbo=unknown,
                    c_elbo_error=unknown,
                    ess=torch.where(settled, ess.clamp_min(1000.0), ess),
                    pareto_k=torch.where(settled, math.nan, torch.full_like(ess, math.inf)),
                    missed=torch.zeros_like(ess),
                    weighed=torch.full_like(ess, len(points)),
                ),
            )
            return torch.zeros_like(ess)

        self._stage("bank", everything, work, planned=0)
        return self._answers.grade > 0

    def _integrate(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        grid = Grid(tolerance=_GRID_TOLERANCE)
        try:
            found = grid.find(target, generator=generator)
        except (BudgetError, ValueError):  # too fine for it, or beyond its box: go on without
            return torch.zeros_like(self._spent[rows])
        assert found.log_weights is not None
        unknown = torch.full_like(found.ess, math.nan)
        answer = _Answer(
            draws=found.draws,
            log_weights=found.log_weights,
            log_evidence=found.log_evidence,
            error=torch.full_like(unknown, 0.1 * _GRID_TOLERANCE),
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=found.ess,
            pareto_k=unknown,
            missed=torch.zeros_like(unknown),
            weighed=found.stats["cells"],
            cell_width=found.cell_width,
        )
        self._answers.keep(rows, answer)
        return found.stats["cells"]

    def _anneal(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        for_particles, for_proposal = spawn(generator, 2)
        annealing = Annealing(_NUM_PARTICLES, 1, 1, 3, 0.5)
        swarm = annealing.run(target, generator=for_particles)
        return swarm.decodes + self._propose(target, rows, swarm, 1, for_proposal)

    def _swarm(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        for_particles, for_proposal = spawn(generator, 2)
        least = 512 + 32 * self._target.latent_dim
        affordable = _SWARM_OPERATIONS / (5 * _LONG_WAY * target.operations)
        num = int(max(least, min(affordable, 8 * least))) // _BANK_ISLANDS * _BANK_ISLANDS
        annealing = Annealing(num, _BANK_ISLANDS, 1, 4, 0.5)
        try:
            swarm = annealing.run(target, generator=for_particles)
        except BudgetError:
            return torch.zeros_like(self._spent[rows])
        unknown = torch.full_like(swarm.log_evidence, math.nan)
        answer = _Answer(
            draws=swarm.z,
            log_weights=torch.zeros_like(swarm.log_likelihood),
            log_evidence=swarm.log_evidence,
            error=swarm.log_evidence_error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=swarm.ess,
            pareto_k=unknown,
            missed=swarm.missed,
            weighed=torch.full_like(unknown, len(swarm.z)),
        )
        self._answers.keep(rows, answer)
        return swarm.decodes + self._propose(target, rows, swarm, 3, for_proposal)

    def _swarm_costs(self, rows: Tensor) -> Tensor:
        """Multiply-adds of the smallest swarm that makes sense, for each query."""
        decodes = (512 + 32 * self._target.latent_dim) * 5 * self._answers.way[rows].clamp_min(1.0)
        return decodes * self._target.operations

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
            rounds=_ROUNDS,
            num_draws=_NUM_ADAPT,
            generator=for_adapt,
        )
        log_joint = swarm.log_likelihood + target.log_prior(swarm.z)
        inside = log_joint - proposal.log_prob(swarm.z)
        return _ROUNDS * _NUM_ADAPT + self._weigh(
            target,
            rows,
            proposal,
            _NUM_WEIGHED,
            lambda largest: (inside > largest + _BEYOND).to(inside).mean(0) + swarm.missed,
            for_weights,
        )

    def _weigh(
        self,
        target: Target,
        rows: Tensor,
        proposal: Fitted,
        num: int,
        missed: Callable[[Tensor], Tensor],
        generator: Generator,
    ) -> Tensor:
        """Answers from draws of a proposal, more of them where the error asks for it.

        Args:
            target: Of these queries.
            rows: Which they are.
            proposal: What to draw from.
            num: Draws at first.
            missed: The share of p(z|x) outside, (B,), given the largest log-weight of each query.
            generator: Of the draws.
        Returns:
            Decodes of each query.
        """
        z, log_weights = _weighted_draws(target, proposal, num, generator)
        answer = _answer_of(z, log_weights, missed(log_weights.amax(0)))
        self._answers.keep(rows, answer)
        decodes = torch.full_like(answer.error, float(num))
        few = (answer.error > _WANTED_ERROR) & (answer.error < 4 * _WANTED_ERROR)
        few &= answer.pareto_k < 0.7
        if few.any() and num == _NUM_WEIGHED and not self._out_of_time():
            again = few.nonzero()[:, 0]
            some = target.select(again)
            chosen = _of_queries(proposal, again)
            more = _MOST_WEIGHED - num
            pieces = [
                _weighted_draws(some, chosen, piece, generator) for piece in _pieces(more, num)
            ]
            z = torch.cat([z[:, again], *(part[0] for part in pieces)])
            log_weights = torch.cat([log_weights[:, again], *(part[1] for part in pieces)])
            searched = missed(torch.full_like(decodes, -math.inf))[again]
            searched = torch.minimum(searched, answer.missed[again])
            self._answers.keep(rows[again], _answer_of(z, log_weights, searched))
            decodes[again] += more
        return decodes

    def _climb(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Modes, the Laplace mixture as a proposal, and the best Gaussian where that is poor."""
        for_starts, for_modes, for_fit, for_gaussian = spawn(generator, 4)
        dim = target.latent_dim
        affordable = int(_CLIMB_OPERATIONS / (target.operations * dim * 40))
        num = max(min(_NUM_CLIMBS, affordable, 1280 // dim), 2)
        steps = _CLIMB_STEPS if num >= _LEAST_CLIMBS else 10
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, steps, report=self._report)
        decodes = modes.steps.sum(0) * (dim + 3.0) + num * dim
        log_weights, climbs = modes.log_weights()
        searched = ((climbs == 1).sum(0) / num).to(target.like)
        if num < _LEAST_CLIMBS:
            searched = torch.full_like(searched, math.nan)
        best = log_weights.argsort(0, descending=True)[:_MOST_COMPONENTS]
        mixture = Mixture.from_components(
            log_weights.gather(0, best).mT.clamp_min(-50.0),
            taken(modes.z, best).transpose(0, 1),
            torch.linalg.inv(taken(modes.precision, best).transpose(0, 1)),
        )
        proposal = widened(mixture, target)

        def lacking(proposal: Fitted, some: Tensor, largest: Tensor) -> Tensor:
            """Share of modes not found, and of those found where the proposal is too thin."""
            weights = modes.log_joint[:, some] - proposal.log_prob(modes.z[:, some])
            outside = torch.where(weights > largest + _BEYOND, log_weights[:, some].exp(), 0.0)
            return searched[some] + outside.sum(0)

        everything = torch.arange(len(rows), device=rows.device)
        decodes += self._weigh(
            target,
            rows,
            proposal,
            _NUM_ADAPT,
            lambda largest: lacking(proposal, everything, largest),
            for_modes,
        )
        poor = (self._answers.grade[rows] > 0).nonzero()[:, 0]
        if len(poor) and not self._out_of_time():
            fit, some = NaturalGradient(), target.select(poor)
            start = modes.z[best[0, poor], poor], modes.precision[best[0, poor], poor]
            mean, precision, taken_steps = fit.fit(
                some, *start, for_fit, self._report, self._out_of_time
            )
            decodes[poor] += taken_steps * (fit.num_draws + dim / 4)
            gaussian = Gaussian.from_moments(mean, torch.linalg.inv(precision))
            decodes[poor] += self._weigh(
                some,
                rows[poor],
                gaussian,
                _NUM_ADAPT,
                lambda largest: lacking(gaussian, poor, largest),
                for_gaussian,
            )
        return decodes

    def _look_again(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Climb from the prior to modes: does the answer have draws at all of them?"""
        starts = spread_starts(target, _NUM_CHECKS, generator=generator)
        modes = climb(target, starts, _CHECK_STEPS)
        log_weights, _ = modes.log_weights()
        draws = self._answers.draws[:, rows]
        reach = target.latent_dim + 4 * math.sqrt(2 * target.latent_dim)
        missed = torch.zeros_like(log_weights[0])
        for z, precision, log_weight in zip(modes.z, modes.precision, log_weights, strict=True):
            gap = (draws - z).transpose(0, 1)
            inside = ((gap @ precision) * gap).sum(-1) < reach
            share = inside.to(missed).mean(1)
            weight = log_weight.exp()
            missed += torch.where(share < 0.2 * weight, weight, 0.0)
        self._answers.doubt(rows, missed)
        return modes.steps.sum(0) * (target.latent_dim + 3.0) + _NUM_CHECKS * target.latent_dim


@dataclass(eq=False)
class _Answer:
    """An answer for some queries: weighted draws (S, B, latent), (S, B), and figures (B,)."""

    draws: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    error: Tensor
    c_elbo: Tensor
    c_elbo_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    missed: Tensor
    weighed: Tensor
    cell_width: Tensor | None = None


_FIGURES = ("log_evidence", "error", "ess", "pareto_k", "missed", "weighed")


class _Answers:
    """The best answer of each query so far."""

    def __init__(self, target: Target, num_draws: int, seed: int) -> None:
        self._seed = seed
        num_queries, like = target.num_queries, target.like
        unknown = like.new_full((num_queries,), math.nan)
        self.draws = like.new_zeros(num_draws, num_queries, target.latent_dim)
        self.log_evidence = unknown
        self.error, self.ess, self.pareto_k = unknown.clone(), unknown.clone(), unknown.clone()
        self.missed, self.weighed = unknown.clone(), torch.zeros_like(unknown)
        self.c_elbo, self.c_elbo_error = unknown.clone(), unknown.clone()
        self.way = torch.zeros_like(unknown)
        self.finished = torch.ones_like(unknown, dtype=torch.bool)
        self.grade = torch.full_like(unknown, 3, dtype=torch.long)

    def keep(self, rows: Tensor, answer: _Answer) -> None:
        """Take an answer for the queries of which it is better than what there is."""
        figures = _figures(answer, torch.ones_like(answer.ess, dtype=torch.bool))
        grade = figures.grades
        better = grade < self.grade[rows]
        doubt = _doubt(answer.error, answer.missed, answer.pareto_k)
        doubt_so_far = _doubt(self.error[rows], self.missed[rows], self.pareto_k[rows])
        better |= (grade == self.grade[rows]) & (doubt < doubt_so_far)
        higher = ~(answer.c_elbo <= self.c_elbo[rows]) & ~answer.c_elbo.isnan()
        self.c_elbo[rows[higher]] = answer.c_elbo[higher]
        self.c_elbo_error[rows[higher]] = answer.c_elbo_error[higher]
        if not better.any():
            return
        index = better.nonzero()[:, 0]
        chosen, generator = rows[index], Generator().manual_seed(self._seed)
        for name in _FIGURES:
            getattr(self, name)[chosen] = getattr(answer, name)[index]
        self.grade[chosen] = grade[index].long()
        self.draws[:, chosen] = _resampled(answer, index, len(self.draws), generator)

    def doubt(self, rows: Tensor, missed: Tensor) -> None:
        """Take in what a second look found the answers to lack, (B,)."""
        self.missed[rows] = torch.maximum(self.missed[rows], missed)
        lacking = rows[missed > 0.02]
        self.grade[lacking] = self.grade[lacking].clamp_min(1)

    def findings(self, trace: tuple[Stage, ...]) -> Findings:
        """The answers as a method gives them."""
        return Findings(
            draws=self.draws,
            log_evidence=self.log_evidence,
            log_evidence_error=self.error,
            c_elbo=self.c_elbo,
            c_elbo_error=self.c_elbo_error,
            ess=self.ess,
            pareto_k=self.pareto_k,
            exact_density=True,
            stats={
                "missed": self.missed,
                "weighed": self.weighed,
                "finished": self.finished.to(self.ess),
            },
            trace=trace,
        )


def _doubt(error: Tensor, missed: Tensor, pareto_k: Tensor) -> Tensor:
    """Orders answers of one grade: a lacking mode weighs more than a large error."""
    unsure = error.nan_to_num(nan=10.0) + 10 * missed.nan_to_num(nan=0.1)
    return unsure + (pareto_k.nan_to_num(nan=0.0) - 0.7).clamp_min(0)


def _way(log_likelihood: Tensor) -> Tensor:
    """log(1 / t), (B,): how far from the prior p(z|x) is.

    t is the temperature that the bank, (N, B), reaches with `_NUM_PARTICLES` effective points.
    """
    cold = torch.zeros_like(log_likelihood[0])
    reached = next_temperature(log_likelihood, cold, float(_NUM_PARTICLES))
    return -reached.clamp_min(1e-30).log()


def _figures(answer: _Answer, finished: Tensor) -> Figures:
    return Figures(
        log_evidence_error=answer.error,
        ess=answer.ess,
        pareto_k=answer.pareto_k,
        r_hat=torch.full_like(answer.ess, math.nan),
        missed=answer.missed,
        finished=finished,
        num_draws=answer.weighed,
    )


def _resampled(answer: _Answer, index: Tensor, num: int, generator: Generator) -> Tensor:
    """Draws of equal weight, (num, rows, latent), in random order; moved within their cells."""
    offset = uniform((1,), generator=generator, like=answer.draws)
    order = torch.randperm(num, generator=generator).to(index.device)
    jitter = uniform((num, 1, answer.draws.shape[-1]), generator=generator, like=answer.draws)
    chosen = systematic(answer.log_weights[:, index], offset, num)[order]
    z = taken(answer.draws[:, index], chosen)
    if answer.cell_width is None:
        return z
    return z + (jitter - 0.5) * taken(answer.cell_width[:, index], chosen)[..., None]


def _weighted_draws(
    target: Target, proposal: Fitted, num: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    z, log_q = proposal.rsample_and_log_prob(num, generator=generator)
    return z, target.log_joint(z) - log_q


def _answer_of(z: Tensor, log_weights: Tensor, missed: Tensor) -> _Answer:
    log_evidence, error = log_mean_exp(log_weights)
    smoothed, pareto_k = pareto_smooth(log_weights)
    return _Answer(
        draws=z,
        log_weights=smoothed,
        log_evidence=log_evidence,
        error=error,
        c_elbo=log_weights.mean(0),
        c_elbo_error=mean_error(log_weights),
        ess=importance_ess(log_weights),
        pareto_k=pareto_k,
        missed=missed,
        weighed=torch.full_like(error, len(z)),
    )


def _of_queries(fitted: Fitted, index: Tensor) -> Fitted:
    """The fits of some queries."""
    params = {name: tensor[index] for name, tensor in fitted.params.items()}
    return Fitted(fitted.crosscoder, params, fitted.dim)


def _pieces(total: int, size: int) -> list[int]:
    """total as a sum of pieces of at most size."""
    return [min(size, total - start) for start in range(0, total, size)]
