"""Auto: the cascade. Cheap stages first; each passes on only the queries that it could not settle.

    bank    every query at every kept point of the prior: where is p(z|x), and how narrow?
    grid    latent ≤ 3: exact integration
    anneal  some particles from the prior to p(z|x): they see its modes. A proposal is adapted from
            them, drawn from until log p(x) is known, and has to have mass where they are
    climb   instead, where p(z|x) is too narrow to anneal to: Gauss–Newton from many points, then a
            proposal from the modes found, and where that is poor the best Gaussian
    refine  what a Gaussian does not propose well for: rounds of more draws, and two Gaussians
    look    what particles settled: are there draws at the modes that a few climbs find?
    swarm   what is not settled is annealed again, with many particles in islands, and looked at

After each stage an answer is graded (`verdict`): Pareto k, effective draws, error of log p(x), and
whether a search from the prior finds mass where the answer has none. The best answer is kept. So
whenever time is up, there is one, and it says what it is worth; `trace` tells what was done for it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.errors import BudgetError
from crosscoding.findings import Findings, Stage
from crosscoding.methods.answers import Answer, Answers, answer_of
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.grid import Grid
from crosscoding.methods.importance import adapt, widened
from crosscoding.methods.laplace import Modes, climb, spread_starts
from crosscoding.methods.natural import NaturalGradient
from crosscoding.methods.particles import next_temperature, taken
from crosscoding.methods.smc import Annealing, Swarm
from crosscoding.random import spawn
from crosscoding.target import Target

_STAGES: tuple[str, ...] = (
    "bank",
    "grid",
    "anneal",
    "climb",
    "refine",
    "look",
    "swarm",
    "look again",
)
_GRID_DIM = 3
_GRID_TOLERANCE = 0.05
_BANK_ESS, _BANK_ERROR = 100.0, 0.03  # of points spread evenly, and of log p(x) by islands
_BANK_ISLANDS = 8
_SHORT_WAY = 1.5  # temperatures from the prior, above which particles may lose a mode
_LONG_WAY = 10.0  # above which p(z|x) is narrow: climbed to, not annealed to
_LONGEST_WAY = 25.0  # above which a swarm does not get there either
_NUM_PARTICLES = 96
_NUM_CHECKS, _CHECK_STEPS, _CHECK_EVERY = 16, 12, 3  # climbs for a second look, at least
_CHECK_OPERATIONS = 1e9  # multiply-adds that buy more of them
_NUM_CLIMBS, _CLIMB_STEPS = 64, 30
_LEAST_CLIMBS = 16  # to count as a search for modes; where they cost too much there is one
_DEAR_STEPS, _NUM_DEAR = 8, 500
_MOST_COMPONENTS = 8  # of the modes found, to propose from
_ROUNDS, _NUM_ADAPT, _NUM_REFINE = 3, 1000, 2500
_NUM_WEIGHED, _MOST_TIMES = 4000, 6  # draws of an answer, and how many times as many at most
_WANTED_ERROR = 0.037  # of log p(x), nats
_ISLAND_FACTOR = 1.25  # by which the spread of a few islands may understate the error
_NO_MODE = 4.0  # nats below all modes together, from which on one is not looked for
_BEYOND = 1.0  # nats above the largest weight: where a particle lies outside the fit
_CLIMB_OPERATIONS = 4e11  # multiply-adds that climbing may cost a query
_SWARM_OPERATIONS = 1.2e10  # multiply-adds for a query's swarm: as many particles as that buys
_SWARM_DECODES = 2e5  # and no more than take this many decodes, about
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

    def within(self, seconds: float) -> "Auto":
        """The same with so much time, of which less than nothing counts as next to nothing."""
        return replace(self, max_seconds=max(seconds, 1e-3)) if seconds < math.inf else self

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
        self._deadline = self._fit_deadline = math.inf
        if settings.max_seconds is not None:
            self._deadline = time.perf_counter() + settings.max_seconds
            self._fit_deadline = self._deadline - 0.15 * settings.max_seconds
        (seed,) = spawn(generator, 1)
        self._answers = Answers(target, settings.num_draws, seed.initial_seed())
        self._spent = torch.zeros_like(self._answers.log_evidence)
        self._trace: list[Stage] = []

    def run(self) -> Findings:
        everything = torch.arange(self._target.num_queries, device=self._spent.device)
        try:
            if len(everything):
                self._stages(everything)
        except KeyboardInterrupt:
            if (self._answers.grade > 2).any():  # not even the bank has answered
                raise
            self._answers.finished &= (self._answers.grade == 0) & ~self._to_look_at()
            return replace(self._answers.findings(tuple(self._trace)), interrupted=True)
        return self._answers.findings(tuple(self._trace))

    def _stages(self, everything: Tensor) -> None:
        self._stage("bank", everything, self._bank)
        if self._target.latent_dim <= _GRID_DIM:
            self._stage("grid", self._open(), self._integrate)
        rows = self._open()
        if not len(rows):
            return
        way = self._answers.way
        self._stage("anneal", rows[way[rows] <= _LONG_WAY], self._anneal)
        self._stage("climb", rows[way[rows] > _LONG_WAY], self._climb)
        rows = self._open()
        self._stage("refine", rows[way[rows] <= _LONG_WAY], self._refine)
        self._stage("look", self._to_look_at().nonzero()[:, 0], self._look)
        rows = self._open()
        within_reach = (way[rows] < _LONGEST_WAY) & (self._swarm_costs(rows) < _MOST_OPERATIONS)
        self._stage("swarm", rows[within_reach], self._swarm)
        self._stage("look again", self._to_look_at().nonzero()[:, 0], self._look)

    # ---- what runs, and what it may cost -------------------------------------------------------

    def _open(self) -> Tensor:
        """The queries that are not settled."""
        return (self._answers.grade > 0).nonzero()[:, 0]

    def _to_look_at(self) -> Tensor:
        """Which queries are settled by particles that may have lost a mode on their way, (B,)."""
        answers = self._answers
        by_particles = ~answers.looked & (answers.way > _SHORT_WAY)
        return (answers.grade == 0) & by_particles

    def _planned_decodes(self, name: str, way: Tensor) -> Tensor:
        """What a stage is reckoned to take of queries that are so far from the prior, amply."""
        dim, num = self._target.latent_dim, self._num_climbs()
        proposal = _ROUNDS * _NUM_ADAPT + _NUM_WEIGHED
        steps = _CLIMB_STEPS if num >= _LEAST_CLIMBS else _DEAR_STEPS
        checks, every = self._num_checks()
        look = checks * (3 * _CHECK_STEPS + (_CHECK_STEPS / every + 1) * dim) + _NUM_ADAPT
        decodes = {
            "bank": 0.0,
            "grid": 10_000.0,
            "anneal": 3 * 3 * _NUM_PARTICLES * (way + 2) + proposal,
            "climb": num * steps * (dim + 3.0) + 10 * _NUM_ADAPT,
            "look": look,
            "look again": look,
            "refine": _ROUNDS * _NUM_REFINE + _NUM_WEIGHED,
            "swarm": 3 * 4 * self._swarm_size() * (way + 2) + proposal,
        }[name]
        return decodes + torch.zeros_like(way)

    def _num_climbs(self) -> int:
        """How many climbs are worth their price: many, or where they cost too much one."""
        dim = self._target.latent_dim
        affordable = int(_CLIMB_OPERATIONS / (self._target.operations * dim * 40))
        if affordable < _LEAST_CLIMBS:
            return 1
        return min(_NUM_CLIMBS, affordable, max(1280 // dim, _LEAST_CLIMBS))

    def _num_checks(self) -> tuple[int, int]:
        """Climbs of a second look, and the steps they take with one curvature."""
        each = self._target.operations * (6.0 * self._target.latent_dim + 60)
        num = int(min(max(_CHECK_OPERATIONS / each, _NUM_CHECKS), _NUM_CLIMBS))
        return num, 1 if num == _NUM_CLIMBS else _CHECK_EVERY

    @property
    def _least_swarm(self) -> int:
        """Particles below which a swarm says little."""
        return 512 + 32 * self._target.latent_dim

    def _swarm_size(self) -> int:
        """Particles of a swarm; it does not depend on the rest of the batch."""
        by_operations = _SWARM_OPERATIONS / (5 * _LONG_WAY * self._target.operations)
        most = min(by_operations, _SWARM_DECODES / (5 * _LONG_WAY))
        return int(max(self._least_swarm, most)) // _BANK_ISLANDS * _BANK_ISLANDS

    def _out_of_time(self) -> bool:
        return time.perf_counter() > self._deadline

    def _late(self) -> bool:
        """Whether work that can end at any time should, so that its result can be weighed."""
        return time.perf_counter() > self._fit_deadline

    def _stage(
        self,
        name: str,
        rows: Tensor,
        work: Callable[[Target, Tensor, Generator], Tensor],
    ) -> None:
        """Run a stage on some queries, unless the budget is spent, and note what it took.

        Args:
            name: For the trace.
            rows: Which queries.
            work: Takes their target, rows and a generator; gives the decodes of each.
        """
        if not len(rows):
            return
        allowed = torch.ones_like(rows, dtype=torch.bool)
        if self._settings.max_decodes is not None:
            planned = self._planned_decodes(name, self._answers.way[rows].clamp_min(1.0))
            allowed = self._spent[rows] + planned <= self._settings.max_decodes
        if self._out_of_time() and name != "bank":
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

    def _bank(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Importance sampling with the bank, good enough where it is dense: in few dimensions."""
        points, log_likelihood = target.log_likelihood_of_bank()
        largest = log_likelihood.amax(0).clamp_min(-1e30)
        weights = (log_likelihood - largest).exp()
        total, ess = weights.sum(0), weights.sum(0).square() / weights.square().sum(0)
        islands = weights[: len(points) // _BANK_ISLANDS * _BANK_ISLANDS]
        spread = islands.unflatten(0, (_BANK_ISLANDS, -1)).mean(1).std(0)
        # Each island is spread evenly by itself: all of them together have a smaller error.
        error = spread / math.sqrt(_BANK_ISLANDS) / (total / len(points))
        settled = torch.zeros_like(ess, dtype=torch.bool)
        if target.latent_dim <= _GRID_DIM:
            settled = (ess >= _BANK_ESS) & (error <= _BANK_ERROR)
        else:
            temperatures = math.sqrt(target.latent_dim / 2) * _way(log_likelihood)
            self._answers.way[rows] = temperatures
        unknown = torch.full_like(ess, math.nan)
        # As many independent draws would have that error.
        as_draws = error.square().reciprocal().clamp_max(float(len(points)))
        answer = Answer(
            draws=points[:, None].expand(-1, target.num_queries, -1),
            log_weights=log_likelihood,
            log_evidence=largest + (total / len(points)).log(),
            error=error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=torch.where(settled, as_draws, ess),
            pareto_k=torch.where(settled, unknown, math.inf),
            missed=torch.zeros_like(ess),
            weighed=torch.full_like(ess, len(points)),
        )
        self._answers.keep(rows, answer, postpone=True)
        return torch.zeros_like(ess)

    def _integrate(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        grid = Grid(tolerance=_GRID_TOLERANCE)
        try:
            found = grid.find(target, generator=generator)
        except (BudgetError, ValueError):  # too fine for it, or beyond its box: go on without
            return torch.zeros_like(self._spent[rows])
        assert found.log_weights is not None
        unknown = torch.full_like(found.ess, math.nan)
        answer = Answer(
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
        try:
            swarm = annealing.run(target, generator=for_particles, stop=self._out_of_time)
        except BudgetError:
            return self._given_up(rows)
        return swarm.decodes + self._propose(target, rows, swarm, 1, for_proposal)

    def _given_up(self, rows: Tensor) -> Tensor:
        """Note that particles did not get to p(z|x); it counts for what annealing may take."""
        self._answers.finished[rows] = False
        return self._planned_decodes("anneal", self._answers.way[rows].clamp_min(1.0))

    def _refine(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Adapt from the answer's draws with more of them, and a mixture of two."""
        for_adapt, for_weights = spawn(generator, 2)
        draws = self._answers.draws[:, rows]
        proposal = adapt(
            target,
            draws,
            torch.zeros_like(draws[..., 0]),
            components=2,
            rounds=_ROUNDS,
            num_draws=_NUM_REFINE,
            generator=for_adapt,
        )
        missed = self._answers.missed[rows]  # of the fit before, which this one widens
        return _ROUNDS * _NUM_REFINE + self._weigh(
            target, rows, proposal, 2, _NUM_WEIGHED, lambda largest: missed, for_weights
        )

    def _swarm(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        for_particles, for_proposal = spawn(generator, 2)
        annealing = Annealing(self._swarm_size(), _BANK_ISLANDS, 1, 4, 0.5)
        try:
            swarm = annealing.run(target, generator=for_particles, stop=self._out_of_time)
        except BudgetError:
            return self._given_up(rows)
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
        self._answers.keep(rows, answer)
        return swarm.decodes + self._propose(target, rows, swarm, 3, for_proposal)

    def _swarm_costs(self, rows: Tensor) -> Tensor:
        """Multiply-adds of the smallest swarm that makes sense, for each query."""
        decodes = self._least_swarm * 5 * self._answers.way[rows].clamp_min(1.0)
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
            components,
            _NUM_WEIGHED,
            lambda largest: (inside > largest + _BEYOND).to(inside).mean(0) + swarm.missed,
            for_weights,
        )

    def _weigh(
        self,
        target: Target,
        rows: Tensor,
        proposal: Fitted,
        num_fitted: int | None,
        num: int,
        missed: Callable[[Tensor], Tensor],
        generator: Generator,
    ) -> Tensor:
        """Answers from draws of a proposal, more of them where the error asks for it.

        Args:
            target: Of these queries.
            rows: Which they are.
            proposal: What to draw from.
            num_fitted: As in `importance.bound_of`.
            num: Draws at first.
            missed: The share of p(z|x) outside, (B,), given the largest log-weight of each query.
            generator: Of the draws.
        Returns:
            Decodes of each query.
        """
        z, log_weights = _weighted_draws(target, proposal, num, generator)
        answer = answer_of(proposal, num_fitted, z, log_weights, missed(log_weights.amax(0)))
        self._answers.keep(rows, answer)
        decodes = torch.full_like(answer.error, float(num))
        times = (answer.error / _WANTED_ERROR).square().ceil().clamp(1, _MOST_TIMES)
        times = torch.where(answer.pareto_k < 0.7, times, 1.0)
        free = self._settings.max_decodes is None and not self._out_of_time()
        if num == _NUM_WEIGHED and free:
            for_more = spawn(generator, _MOST_TIMES)
            for total in times[times > 1].unique().tolist():
                again = (times == total).nonzero()[:, 0]
                more = int(total - 1) * num
                some = proposal.select(again)
                extra, extra_weights = _weighted_draws(
                    target.select(again), some, more, for_more[int(total) - 1]
                )
                together = torch.cat([z[:, again], extra])
                weights = torch.cat([log_weights[:, again], extra_weights])
                largest = torch.full_like(decodes, math.inf)
                largest[again] = weights.amax(0)
                searched = missed(largest)[again]
                answer = answer_of(some, num_fitted, together, weights, searched)
                self._answers.keep(rows[again], answer)
                decodes[again] += more
        return decodes

    def _climb(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Modes, the Laplace mixture as a proposal, and the best Gaussian where that is poor."""
        for_starts, for_modes, for_mode, for_fit, for_gaussian = spawn(generator, 5)
        dim = target.latent_dim
        num = self._num_climbs()
        cheap = num >= _LEAST_CLIMBS
        steps = _CLIMB_STEPS if cheap else _DEAR_STEPS
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, steps, report=self._report, stop=self._late)
        decodes = modes.steps.sum(0) * (dim + 3.0) + num * dim
        log_weights, climbs = modes.log_weights()
        searched = ((climbs == 1).sum(0) / num).to(target.like)
        best = log_weights.argsort(0, descending=True)[:_MOST_COMPONENTS]
        num_weighed = _NUM_ADAPT if cheap else _NUM_DEAR

        def lacking(proposal: Fitted, some: Tensor, largest: Tensor) -> Tensor:
            """Share of modes not found, and of those found where the proposal is too thin."""
            if not cheap:  # one climb is no search
                return torch.full_like(largest, math.nan)
            weights = modes.log_joint[:, some] - proposal.log_prob(modes.z[:, some])
            outside = torch.where(weights > largest + _BEYOND, log_weights[:, some].exp(), 0.0)
            return searched[some] + outside.sum(0)

        if cheap:
            mixture = Mixture.from_components(
                log_weights.gather(0, best).mT.clamp_min(-50.0),
                taken(modes.z, best).transpose(0, 1),
                torch.linalg.inv(taken(modes.precision, best).transpose(0, 1)),
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
            self._answers.looked[rows] = True  # it was climbs that found these
        poor = (self._answers.grade[rows] > 0).nonzero()[:, 0]
        if len(poor):
            fit, some = NaturalGradient(), target.select(poor)
            start = modes.z[best[0, poor], poor], modes.precision[best[0, poor], poor]
            mean, precision, taken_steps = fit.fit(some, *start, for_fit, self._report, self._late)
            decodes[poor] += taken_steps * (fit.num_draws + dim / 4)
            gaussian = Gaussian.from_moments(mean, torch.linalg.inv(precision))
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

    def _look(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Climb from the prior to modes: does the answer have draws at all of them?"""
        for_starts, for_gaussian = spawn(generator, 2)
        num, every = self._num_checks()
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, _CHECK_STEPS, every=every)
        log_weights, _ = modes.log_weights()
        missed = _lacking(modes, log_weights, self._answers.draws[:, rows])
        self._answers.doubt(rows, missed)
        curvatures = modes.steps.amax(0) / every + 1
        decodes = modes.steps.sum(0) * 3.0 + num * curvatures * target.latent_dim
        decodes += self._at_one_mode(target, rows, modes, missed, for_gaussian)
        self._answers.looked[rows] = True
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
        covariance = torch.linalg.inv(modes.precision[best, alone])
        gaussian = Gaussian.from_moments(modes.z[best, alone], covariance)
        decodes[alone] = self._weigh(
            target.select(alone),
            rows[alone],
            gaussian,
            None,
            _NUM_ADAPT,
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
        gap = (draws - z).transpose(0, 1)
        half_log_det = torch.linalg.cholesky(precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = half_log_det[:, None] - 0.5 * ((gap @ precision) * gap).sum(-1)
        densities.append(torch.where(log_weight[:, None] > -_NO_MODE, density, -math.inf))
    owner = torch.stack(densities).argmax(0)  # (B, S)
    number = torch.arange(len(log_weights), device=owner.device)[:, None, None]
    share = (owner == number).to(log_weights).mean(-1)
    return torch.where(share < 0.2 * log_weights.exp(), log_weights.exp(), 0.0).sum(0)


def _way(log_likelihood: Tensor) -> Tensor:
    """log(1 / t), (B,): how far from the prior p(z|x) is.

    t is the temperature that the bank, (N, B), reaches with `_NUM_PARTICLES` effective points.
    """
    cold = torch.zeros_like(log_likelihood[0])
    reached = next_temperature(log_likelihood, cold, float(_NUM_PARTICLES))
    return -reached.clamp_min(1e-30).log()


def _weighted_draws(
    target: Target, proposal: Fitted, num: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    z, log_q = proposal.rsample_and_log_prob(num, generator=generator)
    return z, target.log_joint(z) - log_q
