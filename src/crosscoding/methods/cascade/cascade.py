"""The cascade behind `Auto`: stages, the cheap ones first; each passes on what it leaves open.

    bank    every query at every stored point of the prior: where is p(z|x), and how narrow?
    grid    latent ≤ 3: integration, checked by draws
    locate  latent ≤ 3, where the grid gave no answer: how far p(z|x) is from the prior, and the
            bank's best points, which `bank` finds in more dimensions
    amortised  if the model has an amortised cross-coder: draws from it. Where simulated twins vouch
            that these cover p(z|x), it runs before `bank`, and 16 climbs check it. Without twins,
            the climbs of `modes`, and the particles of `anneal` if climbs alone are not enough,
            first look for modes that it may lack; so p(z|x) must be in reach of particles from the
            prior
    fit     very many dimensions, or a large decoder: a Gaussian at one mode, narrow in as many
            directions as are affordable (`low_rank_fit`); no other stage follows
    modes   climbs from the bank; where all end in one mode, draws from its Gaussian
    anneal  a few particles go from the prior to p(z|x). Rounds of draws follow, from proposals
            fitted to the particles, the modes that climbs find, and earlier draws (`drawing`)
    narrow  32 dimensions or more, with p(z|x) narrow in few directions: Laplace's approximation
            along these, at each draw of the others (`partial_laplace`)
    climb   instead of `anneal`, where p(z|x) is too narrow for it: Gauss–Newton from many points,
            then a proposal from the modes found and, if that is poor, the best Gaussian
    anneal more   the same as `anneal`, with more particles and draws
    bridge  32 dimensions or more: particles from the best Gaussian, moved in its coordinates; for
            an expensive decoder it runs first, and no other stage follows
    swarm   as `anneal`, with many particles in islands: from the prior or, where that is far, from
            the modes that climbs found
    look    answers that no search has checked: do they have draws at the modes that climbs find?

The table `STAGES` says which queries go through which stage. New draws, components and particles
are added where earlier ones were not enough; all later stages use what climbs found.

After each stage the answers are graded (`verdict`) by Pareto k, effective draws, the error of log
p(x), and whether a search from the prior, or another stage, found mass that the answer lacks. The
best answer of each query is kept (`best_so_far`), so whenever time runs out, there is an answer
with a verdict. `trace` says what each stage did.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import OutOfTime
from crosscoding.errors import counted
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.budget import FAR_FROM_PRIOR, Budget
from crosscoding.methods.cascade.narrow_stage import NARROW_DIM
from crosscoding.methods.cascade.stages import GRID_DIM, Stages
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.model.bank import MAX_POINTS
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.result.trace import Stage
from crosscoding.target.base import Target

_BANK_POINTS = (64, 1024, MAX_POINTS)  # bank sizes tried in turn if time is limited
_BANK_SHARE = 0.25  # share of the time left that a larger bank may take
_NUM_TIMED = 64  # queries on which drawing from answers is timed
_MOST_FOR_DRAWS = 0.5  # share of the time left that drawing from answers may take
_FIRST_GROUP = 4  # queries in the first group of a stage if time is limited
_GROUP_SHARE = 0.5  # share of the time left that a group may be expected to take
_NO_TIME = 1e-9  # seconds that a query is assumed to take at least
_QUERIES = ("query", "queries")
# Multiply-adds per query for the smallest swarm, above which it is skipped: in 20 dimensions, 10
# temperatures from the prior, decoders of more than 1.7e6 have none. With more, queries take
# longer.
_MOST_OPERATIONS = 1e11

Work = Callable[[Target, Tensor, Generator], Tensor]


@dataclass(frozen=True)
class ListedStage:
    """A stage of the cascade.

    Args:
        name: Its name in the trace.
        until: Share of all work that is done when it ends, roughly.
        queries: Gives the queries that go through it, boolean (B,).
        work: Gives the function that does the work.
    """

    name: str
    until: float
    queries: Callable[["Cascade"], Tensor]
    work: Callable[[Stages], Work]


STAGES = (
    ListedStage("bank", 0.05, lambda run: ~run.is_settled, lambda s: s.bank),
    ListedStage("grid", 0.3, lambda run: run.has_cells & ~run.is_settled, lambda s: s.integrate),
    ListedStage("locate", 0.3, lambda run: run.has_cells & ~run.is_settled, lambda s: s.locate),
    ListedStage(
        "amortised", 0.33, lambda run: run.has_network & ~run.is_settled, lambda s: s.amortised
    ),
    ListedStage("fit", 0.35, lambda run: run.is_large & ~run.is_settled, lambda s: s.fit),
    ListedStage(
        "modes", 0.45, lambda run: run.is_near & ~run.is_settled, lambda s: s.climbs.search
    ),
    ListedStage("anneal", 0.6, lambda run: run.is_near & ~run.is_settled, lambda s: s.anneal),
    ListedStage("narrow", 0.65, lambda run: run.has_prior & ~run.is_settled, lambda s: s.narrow),
    ListedStage("climb", 0.7, lambda run: run.is_far & ~run.is_settled, lambda s: s.climbs.climb),
    ListedStage(
        "anneal more", 0.8, lambda run: run.is_near & ~run.is_settled, lambda s: s.anneal_more
    ),
    ListedStage("bridge", 0.85, lambda run: run.has_bridge & ~run.is_settled, lambda s: s.bridge),
    ListedStage("swarm", 0.95, lambda run: run.has_swarm & ~run.is_settled, lambda s: s.swarm),
    ListedStage(
        "look", 1.0, lambda run: run.is_settled & ~run.is_searched, lambda s: s.climbs.look
    ),
)


class Cascade:
    """One run: sends queries through the stages, within the budget, and records what each took."""

    def __init__(
        self,
        target: Target,
        *,
        num_draws: int,
        purpose: str,
        max_decodes: float | None,
        generator: Generator,
        report: Report,
    ) -> None:
        self._num_draws, self._purpose = num_draws, purpose
        self._most = math.inf if max_decodes is None else max_decodes
        self._clock, self._target = target.clock, covered(target, generator)
        self._report = report
        self._shares = 0.0, STAGES[0].until  # of all work, when a stage begins and ends
        self._only_bridge = False  # whether `bridge` replaces all stages but the bank
        self._part = (0.0, 1.0)  # shares of a stage's queries: done, and in the current group
        names = [stage.name for stage in STAGES if stage.name != "amortised"]
        self._streams = dict(zip(names, spawn(generator, len(names)), strict=True))
        self._states = {name: stream.get_state() for name, stream in self._streams.items()}
        self._streams["amortised"] = Generator()  # for the same search as in `anneal`
        self._states["amortised"] = self._states["anneal"]
        (seed,) = spawn(generator, 1)
        self._seed = seed.initial_seed()
        self._budget = Budget(target.latent_dim, target.operations)
        self._answers, self._stages = self._none_yet()
        self._spent = torch.zeros_like(self._answers.log_evidence)
        self._trace: dict[str, Stage] = {}

    def _none_yet(self) -> tuple[BestSoFar, Stages]:
        """An empty `BestSoFar`, and the stages that will fill it."""
        answers = BestSoFar(self._target, self._num_draws, self._seed, self._purpose)
        return answers, Stages(answers, self._budget, self._clock, self._tell, self._left)

    def run(self) -> Findings:
        everything = torch.arange(self._target.num_queries, device=self._spent.device)
        interrupted = False
        try:
            if len(everything):
                self._ask_bank(everything)
                self._cascade()
        except (KeyboardInterrupt, OutOfTime) as cut:
            interrupted = isinstance(cut, KeyboardInterrupt)
            if (self._answers.grade > 2).any():  # not even the bank has answered all queries
                raise
            self._answers.finished &= self.is_settled & self.is_searched
        trace = tuple(self._trace.values())
        return replace(self._answers.findings(trace), interrupted=interrupted)

    def _ask_bank(self, everything: Tensor) -> None:
        """Answer from as many points of the bank as a share of the time allows.

        If time is limited, a few points come first, to see how long more of them would take.
        """
        if not self._clock.is_limited:
            if self._target.latent_dim <= GRID_DIM:
                self._run("bank", everything, self._stages.start_of_bank)
            try:
                self._run("amortised", self.is_vouched.nonzero()[:, 0], self._stages.amortised)
            except KeyboardInterrupt:  # the others get an answer nevertheless
                self._run("bank", (~self.is_settled).nonzero()[:, 0], self._stages.bank)
                raise
            self._run("bank", (~self.is_settled).nonzero()[:, 0], self._stages.bank)
            return
        earlier, seconds = 0, 0.0
        for num in _BANK_POINTS:
            if earlier and seconds * num / earlier > _BANK_SHARE * self._clock.left:
                break
            start, before = time.perf_counter(), (self._answers, self._stages, self._target)
            self._answers, self._stages = self._none_yet()
            self._target = self._target.timed(self._clock, num)
            try:
                self._run("bank", everything, self._stages.bank, together=True)
            finally:
                if (self._answers.grade > 2).any() and earlier:
                    self._answers, self._stages, self._target = before
            earlier, seconds = num, time.perf_counter() - start
        self._reserve(everything)

    def _reserve(self, everything: Tensor) -> None:
        """Reserve time to draw from the answers at the end; if there is too little, stop now."""
        start, some = time.perf_counter(), everything[:_NUM_TIMED]
        self._answers.draws_of(some)
        seconds = (time.perf_counter() - start) / len(some) * len(everything)
        if seconds > _MOST_FOR_DRAWS * self._clock.left:
            self._answers.keep_points()
            raise OutOfTime
        self._clock.reserve(seconds)

    def _cascade(self) -> None:
        self._only_bridge = self._budget.bridges_first and self._can_bridge
        for stage in STAGES[1:]:
            self._answers.compare()  # another stage may contradict an answer
            rows = stage.queries(self).nonzero()[:, 0]
            if len(rows):
                self._shares = self._shares[1], stage.until
                self._run(stage.name, rows, stage.work(self._stages))

    @property
    def is_settled(self) -> Tensor:
        """Which queries have an answer that needs no more work; boolean (B,), as below."""
        return self._answers.grade == 0

    @property
    def is_searched(self) -> Tensor:
        """Which answers have been searched for modes that they may lack."""
        return self._answers.looked

    @property
    def has_cells(self) -> Tensor:
        """Which queries a grid may integrate: all or none."""
        return torch.full_like(self.is_settled, self._target.latent_dim <= GRID_DIM)

    @property
    def is_vouched(self) -> Tensor:
        """For which queries twins vouch that an amortised cross-coder covers p(z|x).

        None in few dimensions, where a grid is cheaper.
        """
        known = ~self._target.vouched().lacking.isnan() & self._target.is_amortised
        return known & ~self.has_cells & (not self._budget.low_rank)

    @property
    def has_network(self) -> Tensor:
        """Which queries an amortised cross-coder may propose z for, and has not yet.

        Particles from the prior look for modes that it may lack, so either p(z|x) must be within
        their reach, or twins must vouch for the cross-coder.
        """
        asked = self._trace.get("amortised")
        new = True if asked is None else asked.decodes == 0
        near = self.is_near & ~self.has_cells & self._target.is_amortised
        return (near | self.is_vouched) & new

    @property
    def is_large(self) -> Tensor:
        """Which queries can afford nothing but `fit`: all or none."""
        return torch.full_like(self.is_settled, self._budget.low_rank and not self._only_bridge)

    @property
    def has_prior(self) -> Tensor:
        """Which queries may be narrow in a few of many directions, with the prior in the others."""
        target = self._target
        possible = target.ends_with_prior and target.has_cheap_curvature
        possible = possible and not self._budget.bridges_first  # draws of some 40 decodes each
        return self._is_usual & (possible and target.latent_dim >= NARROW_DIM)

    @property
    def is_near(self) -> Tensor:
        """Which queries have a p(z|x) that a few particles reach from the prior."""
        return self._is_usual & (self._stages.bank_points.distance <= FAR_FROM_PRIOR)

    @property
    def is_far(self) -> Tensor:
        """Which queries have a p(z|x) that is too narrow for a few particles to reach."""
        return self._is_usual & (self._stages.bank_points.distance > FAR_FROM_PRIOR)

    @property
    def has_bridge(self) -> Tensor:
        """Which queries can afford particles from a fitted Gaussian: all or none."""
        possible = self._only_bridge or (self._budget.bridges and self._can_bridge)
        return torch.full_like(self.is_settled, possible)

    @property
    def has_swarm(self) -> Tensor:
        """Which queries can afford a swarm."""
        operations = self._budget.swarm_operations(self._stages.bank_points.distance)
        return self._is_usual & (operations < _MOST_OPERATIONS)

    @property
    def _is_usual(self) -> Tensor:
        """Which queries go through the stages of ordinary decoders: all or none."""
        return torch.full_like(self.is_settled, not (self._budget.low_rank or self._only_bridge))

    @property
    def _can_bridge(self) -> bool:
        """Whether time and decodes suffice for `bridge`."""
        planned = self._budget.planned_decodes(
            "bridge", self._stages.bank_points.distance[:1]
        ).item()
        return self._clock.left >= self._budget.bridge_seconds and planned <= self._most

    def _some(self, rows: Tensor) -> Target:
        """The target of some queries."""
        whole = len(rows) == self._target.num_queries
        return self._target if whole else self._target.select(rows)

    def _run(self, name: str, rows: Tensor, work: Work, *, together: bool = False) -> None:
        """Run a stage on some queries, as far as the budget allows, and record what it took.

        If time is limited, queries go through the stage in groups, so that some are settled when
        time is up. A group starts only if it is expected to end in time, judging by the one before.

        Args:
            name: Name of the stage, for the trace.
            rows: Indices of the queries.
            work: Takes their target, rows and a generator; returns the decodes of each query.
            together: Whether they form one group even if time is limited.
        """
        rows = self._affordable(name, rows)
        one_group = together or not self._clock.is_limited
        size, num_rows = len(rows) if one_group else _FIRST_GROUP, len(rows)
        while len(rows):
            group, later = rows[:size], rows[size:]
            if not one_group and (not size or self._clock.is_over()):
                self._answers.finished[rows] = False
                return
            start = time.perf_counter()
            self._clock.has_cut = False
            self._part = 1 - len(rows) / num_rows, len(group) / num_rows
            self._tell(0.0, f"{name}: {counted(len(rows), *_QUERIES)}")
            try:
                self._work(name, group, work)
            except OutOfTime:
                self._answers.finished[rows] = False
                if together:
                    raise
                return
            rows = later
            if self._clock.is_limited:
                each = max((time.perf_counter() - start) / len(group), _NO_TIME)
                size = min(4 * len(group), int(_GROUP_SHARE * self._clock.left / each))
            if self._clock.is_late() or (self._clock.has_cut and not together):
                self._answers.finished[group] = False

    def _tell(self, share: float, what: str) -> None:
        """Report progress: the share of all work done or, if time is limited, of the time used."""
        (first, last), (done, part) = self._shares, self._part
        share = first + (last - first) * (done + part * share)
        if self._clock.is_limited:
            share = self._clock.share
        self._report(share, what)

    def _affordable(self, name: str, rows: Tensor) -> Tensor:
        """The queries that can afford a stage; the others are marked as not finished."""
        if self._most == math.inf or not len(rows):
            return rows
        distance = self._stages.bank_points.distance[rows]
        planned = self._budget.planned_decodes(name, distance)
        if name == "amortised":
            alone = self._budget.planned_decodes("vouched", distance)
            planned = torch.where(self.is_vouched[rows], alone, planned)
        allowed = planned <= self._left(rows)
        self._answers.finished[rows[~allowed]] = False
        return rows[allowed]

    def _left(self, rows: Tensor) -> Tensor:
        """Decodes that queries may still take, shape of `rows`."""
        return self._most - self._spent[rows]

    def _work(self, name: str, rows: Tensor, work: Work) -> None:
        """Run a stage on one group of queries; every group gets the same random numbers."""
        start, nothing = time.perf_counter(), torch.zeros_like(self._spent)
        stage = self._trace.setdefault(name, Stage(name, nothing, nothing.clone()))
        self._streams[name].set_state(self._states[name])
        try:
            decodes = work(self._some(rows), rows, self._streams[name])
            stage.decodes[rows] += decodes
            self._spent[rows] += decodes
        finally:
            stage.seconds[rows] += (time.perf_counter() - start) / len(rows)
