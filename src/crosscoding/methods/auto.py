"""Auto: the cascade. Cheap stages first; each passes on only the queries that it could not settle.

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

from crosscoding.findings import Findings, Stage
from crosscoding.methods.answers import Answers
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.effort import LONG_WAY, Clock, Effort
from crosscoding.methods.stages import GRID_DIM, Stages
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
    "fit",
)
_MOST_OPERATIONS = 1e11  # where the smallest swarm takes more than this, there is none
_NEXT_TO_NONE = 1e-3  # seconds


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

    def of_block(self, left: int, seconds: float, *, interrupted: bool) -> "Auto":
        """The same with its share of the time left, and next to none once interrupted."""
        if interrupted:
            return replace(self, max_seconds=_NEXT_TO_NONE)
        if self.max_seconds is None:
            return self
        return replace(self, max_seconds=max((self.max_seconds - seconds) / left, _NEXT_TO_NONE))

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        return _Cascade(self, target, generator, report).run()


class _Cascade:
    """One run: which queries go through which stage, what it took, and what is left of a budget."""

    def __init__(
        self, settings: Auto, target: Target, generator: Generator, report: Report
    ) -> None:
        self._max_decodes = settings.max_decodes
        self._target = target
        self._report = report
        self._streams = dict(zip(_STAGES, spawn(generator, len(_STAGES)), strict=True))
        (seed,) = spawn(generator, 1)
        self._answers = Answers(target, settings.num_draws, seed.initial_seed())
        self._clock = Clock(settings.max_seconds)
        self._effort = Effort(target.latent_dim, target.operations)
        self._stages = Stages(
            self._answers,
            self._effort,
            self._clock,
            report,
            unlimited=settings.max_decodes is None,
        )
        self._spent = torch.zeros_like(self._answers.log_evidence)
        self._trace: list[Stage] = []

    def run(self) -> Findings:
        everything = torch.arange(self._target.num_queries, device=self._spent.device)
        interrupted = False
        try:
            if len(everything):
                self._cascade(everything)
        except KeyboardInterrupt:
            if (self._answers.grade > 2).any():  # not even the bank has answered
                raise
            self._answers.finished &= (self._answers.grade == 0) & ~self._to_look_at()
            interrupted = True
        return replace(self._answers.findings(tuple(self._trace)), interrupted=interrupted)

    def _cascade(self, everything: Tensor) -> None:
        stages, climbs, way = self._stages, self._stages.climbs, self._answers.way
        self._run("bank", everything, stages.bank)
        if self._target.latent_dim <= GRID_DIM:
            self._run("grid", self._open(), stages.integrate)
            if len(rows := self._open()):  # too fine for cells, or beyond their box
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

    def _run(
        self, name: str, rows: Tensor, work: Callable[[Target, Tensor, Generator], Tensor]
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
        if self._max_decodes is not None:
            planned = self._effort.planned_decodes(name, self._answers.way[rows])
            allowed = self._spent[rows] + planned <= self._max_decodes
        if self._clock.is_over() and name != "bank":
            allowed = torch.zeros_like(allowed)
        self._answers.finished[rows[~allowed]] = False
        rows = rows[allowed]
        if not len(rows):
            return
        self._report(1 - len(rows) / self._target.num_queries, f"{name}: {len(rows)} queries")
        start = time.perf_counter()
        stage = Stage(name, torch.zeros_like(self._spent), torch.zeros_like(self._spent))
        self._trace.append(stage)
        try:
            stage.decodes[rows] = work(self._some(rows), rows, self._streams[name])
        finally:
            stage.seconds[rows] = (time.perf_counter() - start) / len(rows)
        self._spent += stage.decodes
