"""Jobs: questions that wait for their answers, how they end, and what ends them early."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from crosscoding.progress import Progress, Report, silent
from crosscoding.serve.questions import Question


class BusyError(RuntimeError):
    """The queue is full, or one client has too many questions in it.

    Attributes:
        status: The HTTP status that says so: 429 for the client, 503 for the server.
        retry_after: Seconds after which to ask again, ≥ 1.
    """

    def __init__(self, words: str, status: int, retry_after: int) -> None:
        super().__init__(words)
        self.status, self.retry_after = status, retry_after


class UnpreparedError(RuntimeError):
    """The model of a question could not be prepared."""


class AbandonedError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Job:
    """A question that waits for its answer.

    Args:
        question: The question.
        client: The address that asks.
        report: Called in the engine's thread with the share of the work done and the step.
        urgent: Whether it goes before jobs that are not urgent.
    """

    question: Question
    client: str = ""
    report: Report = silent
    urgent: bool = False
    result: Future[dict[str, Any]] = field(default_factory=Future)
    asked: float = field(default_factory=time.perf_counter)
    is_abandoned: bool = False
    alone: bool = False  # because a batch with it failed, or had too little time

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What it shares with jobs that may be answered in the same batch; None: none may."""
        return None if self.alone else self.question.key


@dataclass(frozen=True)
class Done:
    """What happened to a batch, for the metrics.

    Args:
        jobs: The jobs.
        seconds: Seconds of work.
        outcome: "answered", "abandoned", "failed", or "divided" if the jobs are to be answered
            one by one.
    """

    jobs: Sequence[Job]
    seconds: float
    outcome: str


class Watch(Progress):
    """Progress that ends the work when nobody waits for it, or when its time is up.

    Args:
        batch: The jobs.
        max_seconds: Seconds after which the best answer so far is given.
    """

    def __init__(self, batch: Sequence[Job], max_seconds: float) -> None:
        super().__init__(self._told)
        self._batch = batch
        self._end = time.perf_counter() + max_seconds
        self.is_late = False

    def __call__(self, share: float, what: str) -> None:
        self._check()
        super().__call__(share, what)

    def beat(self) -> None:
        self._check()
        super().beat()

    def check_wanted(self) -> None:
        """Raise AbandonedError if nobody waits any more."""
        if all(job.is_abandoned for job in self._batch):
            raise AbandonedError

    def stops(self) -> bool:
        """Whether time is up, so that the caller should skip the rest; may raise AbandonedError."""
        self.check_wanted()
        self.is_late |= time.perf_counter() > self._end
        return self.is_late

    def _check(self) -> None:
        if not self.is_late and self.stops():
            raise KeyboardInterrupt  # methods then return their best answer so far
        self.check_wanted()

    def _told(self, share: float, what: str) -> None:
        for job in self._batch:
            job.report(share, what)
