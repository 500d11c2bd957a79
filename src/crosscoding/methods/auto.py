"""Auto: the cascade. Cheap stages first; each passes on only the queries that it could not settle.

    closed form  where observed elements are linear in z, under Gaussian noise: exact
    bank    every query at every kept point of the prior: where is p(z|x), and how narrow?
    grid    latent ≤ 3: integration, checked by draws
    fit     very many dimensions, or a large decoder: a Gaussian at one mode, narrow in as many
            directions as are affordable (`lowrank`), and nothing else
    anneal  some particles from the prior to p(z|x): they see its modes. A proposal is adapted from
            them, drawn from until log p(x) is known, and has to have mass where they are
    climb   instead, where p(z|x) is too narrow to anneal to: Gauss–Newton from many points, then a
            proposal from the modes found, and where that is poor the best Gaussian
    refine  what a Gaussian does not propose well for: rounds of more draws, and two Gaussians
    look    what particles settled: are there draws at the modes that a few climbs find?
    swarm   what is not settled is annealed again, with many particles in islands, and looked at:
            from the prior, or where that is far from what climbs found

After each stage an answer is graded (`verdict`): Pareto k, effective draws, error of log p(x), and
whether a search from the prior, or another stage, finds mass where the answer has none. The best
answer is kept. So whenever time is up, there is one, and it says what it is worth; `trace` tells
what was done for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import OutOfTime
from crosscoding.errors import counted
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.cascade.best_so_far import Answers
from crosscoding.methods.cascade.budget import LONG_WAY, Effort
from crosscoding.methods.cascade.closed_form import closed_form, has_closed_form
from crosscoding.methods.cascade.stages import GRID_DIM, Stages
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.model.bank import MAX_POINTS
from crosscoding.random import spawn
from crosscoding.result.findings import Findings, Stage
from crosscoding.target.base import Target

_STAGES: tuple[str, ...] = (
    "bank",
    "grid",
    "anneal",
    "climb",
    "refine",
    "look",
    "swarm",
    "look again",
    "fit",
)
_BANK_POINTS = (64, 1024, MAX_POINTS)  # that are asked one after the other where time is short
_BANK_SHARE = 0.25  # of the time left, that more points may take
_NUM_TIMED = 64  # queries, by which drawing from answers is timed
_MOST_FOR_DRAWS = 0.5  # share of the time left that this may take
_FIRST_GROUP = 4  # queries that go through a stage first where time is short
_GROUP_SHARE = 0.5  # of the time left, that a group may be expected to take
_NO_TIME = 1e-9  # seconds, that anything takes at least
_QUERIES = ("query", "queries")
_MOST_OPERATIONS = 1e11  # where the smallest swarm takes more than this, there is none
_NEXT_TO_NONE = 1e-3  # seconds
_SHARES = {  # of all work that is done before a stage and after it, about
    "bank": (0.0, 0.05),
    "grid": (0.05, 0.3),
    "anneal": (0.05, 0.3),
    "climb": (0.3, 0.5),
    "refine": (0.5, 0.65),
    "look": (0.65, 0.75),
    "swarm": (0.75, 0.95),
    "look again": (0.95, 1.0),
    "fit": (0.05, 1.0),
}

Work = Callable[[Target, Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Auto(Method):
    """The best answer that the cascade finds within a budget, and a verdict on it.

    Args:
        max_seconds: Wall-clock time after which nothing more is decoded; None: as long as it takes.
            The answer then depends on the machine's speed.
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

    def of_block(self, left: int, seconds: float, *, interrupted: bool) -> "Auto":
        """The same with its share of the time left, and next to none once interrupted."""
        if interrupted:
            return replace(self, max_seconds=_NEXT_TO_NONE)
        if self.max_seconds is None:
            return self
        return replace(self, max_seconds=max((self.max_seconds - seconds) / left, _NEXT_TO_NONE))

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        target = target.timed(target.clock.limited(self.max_seconds))
        solved = has_closed_form(target)
        if not solved.any():
            return _Cascade(self, target, generator, report).run()
        own = Generator().manual_seed(generator.initial_seed())  # the others' numbers stay theirs
        rows, others = solved.nonzero()[:, 0], (~solved).nonzero()[:, 0]
        exact = closed_form(target.select(rows), self.num_draws, own)
        if not len(others):
            return exact
        searched = _Cascade(self, target.select(others), generator, report).run()
        back = torch.cat([rows, others]).argsort()
        together = Findings.joined([exact, searched]).select(back)
        return replace(together, interrupted=searched.interrupted)


class _Cascade:
    """One run: which queries go through which stage, what it took, and what is left of a budget."""

    def __init__(
        self, settings: Auto, target: Target, generator: Generator, report: Report
    ) -> None:
        self._settings = settings
        self._clock, self._target = target.clock, covered(target, generator)
        self._report = report
        self._stage, self._part = _STAGES[0], (0.0, 1.0)  # what is done of a stage, and is next
        self._streams = dict(zip(_STAGES, spawn(generator, len(_STAGES)), strict=True))
        self._states = {name: stream.get_state() for name, stream in self._streams.items()}
        (seed,) = spawn(generator, 1)
        self._seed = seed.initial_seed()
        self._effort = Effort(target.latent_dim, target.operations)
        self._answers, self._stages = self._none_yet()
        self._spent = torch.zeros_like(self._answers.log_evidence)
        self._trace: dict[str, Stage] = {}

    def _none_yet(self) -> tuple[Answers, Stages]:
        """No answers, and the stages that will give some."""
        answers = Answers(self._target, self._settings.num_draws, self._seed)
        unlimited = self._settings.max_decodes is None
        stages = Stages(answers, self._effort, self._clock, self._tell, unlimited=unlimited)
        return answers, stages

    def run(self) -> Findings:
        everything = torch.arange(self._target.num_queries, device=self._spent.device)
        interrupted = False
        try:
            if len(everything):
                self._ask_bank(everything)
                self._cascade()
        except (KeyboardInterrupt, OutOfTime) as cut:
            interrupted = isinstance(cut, KeyboardInterrupt)
            if (self._answers.grade > 2).any():  # not even the bank has answered
                raise
            self._answers.finished &= (self._answers.grade == 0) & ~self._to_look_at()
        trace = tuple(self._trace.values())
        return replace(self._answers.findings(trace), interrupted=interrupted)

    def _ask_bank(self, everything: Tensor) -> None:
        """The bank's answers, from as many of its points as a share of the time pays for.

        First a few points are asked, which tells what more of them take.
        """
        if not self._clock.is_limited:
            self._run("bank", everything, self._stages.bank)
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
        """Leave time to draw the answers from what was found, and to put them together."""
        start, some = time.perf_counter(), everything[:_NUM_TIMED]
        self._answers.draws_of(some)
        seconds = (time.perf_counter() - start) / len(some) * len(everything)
        if seconds > _MOST_FOR_DRAWS * self._clock.left:
            self._answers.keep_points()
            raise OutOfTime
        self._clock.reserve(seconds)

    def _cascade(self) -> None:
        stages, climbs, way = self._stages, self._stages.climbs, self._answers.way
        if self._target.latent_dim <= GRID_DIM:
            self._run("grid", self._open(), stages.integrate)
            rows = self._open()
            if len(rows) and not self._clock.is_over():  # too fine for cells, or beyond their box
                stages.locate(self._some(rows), rows)
        if self._effort.low_rank:
            self._run("fit", self._open(), stages.fit)
            return
        rows = self._open()
        self._run("anneal", rows[way[rows] <= LONG_WAY], stages.anneal)
        self._run("climb", rows[way[rows] > LONG_WAY], climbs.climb)
        rows = self._open()
        self._run("refine", rows[way[rows] <= LONG_WAY], stages.refine)
        self._run("look", self._to_look_at().nonzero()[:, 0], climbs.look)
        rows = self._open()
        affordable = self._effort.swarm_operations(way[rows]) < _MOST_OPERATIONS
        self._run("swarm", rows[affordable], stages.swarm)
        self._run("look again", self._to_look_at().nonzero()[:, 0], climbs.look)

    def _open(self) -> Tensor:
        """The queries that are not settled, or that a later stage contradicts."""
        self._answers.compare()
        return (self._answers.grade > 0).nonzero()[:, 0]

    def _some(self, rows: Tensor) -> Target:
        """The target of some queries."""
        whole = len(rows) == self._target.num_queries
        return self._target if whole else self._target.select(rows)

    def _to_look_at(self) -> Tensor:
        """Which queries are settled by particles, which may have lost a mode on their way, (B,)."""
        return (self._answers.grade == 0) & ~self._answers.looked

    def _run(self, name: str, rows: Tensor, work: Work, *, together: bool = False) -> None:
        """Run a stage on some queries, as far as the budget goes, and note what it took.

        Where time is limited they go through it in groups, so that some are through when it is
        over. No group begins that is not expected to end in time, by what the one before took.

        Args:
            name: For the trace.
            rows: Which queries.
            work: Takes their target, rows and a generator; gives the decodes of each.
            together: Whether they are one group however short time is.
        """
        rows, self._stage = self._affordable(name, rows), name
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
        """Report how far a group is in its stage: of all work, or of the time there is."""
        (first, last), (done, part) = _SHARES[self._stage], self._part
        share = first + (last - first) * (done + part * share)
        if self._clock.is_limited:
            share = self._clock.share
        self._report(share, what)

    def _affordable(self, name: str, rows: Tensor) -> Tensor:
        """The queries whose budget of decodes pays for a stage; notes the others as cut short."""
        if self._settings.max_decodes is None or not len(rows):
            return rows
        planned = self._effort.planned_decodes(name, self._answers.way[rows])
        allowed = self._spent[rows] + planned <= self._settings.max_decodes
        self._answers.finished[rows[~allowed]] = False
        return rows[allowed]

    def _work(self, name: str, rows: Tensor, work: Work) -> None:
        """Run a stage on a group of queries, which have the same random numbers in each."""
        start, nothing = time.perf_counter(), torch.zeros_like(self._spent)
        stage = self._trace.setdefault(name, Stage(name, nothing, nothing.clone()))
        self._streams[name].set_state(self._states[name])
        try:
            decodes = work(self._some(rows), rows, self._streams[name])
            stage.decodes[rows] += decodes
            self._spent[rows] += decodes
        finally:
            stage.seconds[rows] += (time.perf_counter() - start) / len(rows)
