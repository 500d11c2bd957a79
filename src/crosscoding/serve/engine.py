"""The engine: a queue of questions, and one thread that answers them, in batches.

Only one thread computes, as torch's forward mode serves one at a time. Questions that wait at the
same time and have the same settings are answered in one call. Work stops as soon as nobody waits
for its result, and at the time limit, with the best answer so far.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

import torch

from crosscoding.conditioning import condition
from crosscoding.errors import BudgetError, counted
from crosscoding.evidence import Evidence
from crosscoding.methods import Auto
from crosscoding.model.bound import first_row
from crosscoding.progress import Report
from crosscoding.result.posterior import Posterior
from crosscoding.serve.answers import answers_of
from crosscoding.serve.catalogue import Served
from crosscoding.serve.jobs import (
    AbandonedError,
    BusyError,
    Done,
    Job,
    UnpreparedError,
    Watch,
)
from crosscoding.serve.joining import joined
from crosscoding.serve.limits import Limits
from crosscoding.serve.questions import Question

_LOG = logging.getLogger(__name__)
_TOGETHER = 0.003  # seconds that an idle engine waits for further questions
_USUAL_SECONDS = 0.5  # assumed for a question before any was timed
_WEIGHT = 0.2  # of the latest question in the running mean of seconds


class Engine:
    """A queue of jobs and the thread that does them.

    Args:
        limits: The server's limits.
        done: Called after each batch, in the engine's thread.
    """

    def __init__(self, limits: Limits, done: Callable[[Done], None] = lambda done: None) -> None:
        self._limits, self._done = limits, done
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._clients: Counter[str] = Counter()
        self._running: list[Job] = []
        self._is_closed = False
        self._seconds = _USUAL_SECONDS
        self._thread = threading.Thread(target=self._work, name="crosscoding", daemon=True)
        self._failed: dict[str, str] = {}  # models that could not be prepared, and why
        self.is_ready = False

    def start(self, models: Sequence[Served]) -> None:
        """Start the thread, which first prepares each model for its first question."""
        self._models = models
        self._thread.start()

    def close(self) -> None:
        """Abandon all jobs, and end the thread after its current piece of work."""
        with self._changed:
            self._is_closed = True
            for job in (*self._waiting, *self._running):
                job.is_abandoned = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running; if not, nobody gets an answer."""
        return self._thread.is_alive()

    def check_prepared(self, served: Served) -> None:
        """Raise UnpreparedError if a model could not be prepared."""
        if (reason := self._failed.get(served.name)) is not None:
            raise UnpreparedError(reason)

    @property
    def failed(self) -> Mapping[str, str]:
        """Why models could not be prepared, a sentence for each, by the model's name."""
        return self._failed

    @property
    def num_waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    def submit(self, *jobs: Job) -> None:
        """Add jobs of one client to the queue.

        Raises:
            BusyError: There are too many, or the server is about to stop.
            UnpreparedError: Their model could not be prepared.
        """
        for job in jobs:
            self.check_prepared(job.question.served)
        with self._changed:
            client = jobs[0].client
            if self._is_closed:
                raise BusyError("the server is stopping", 503, self._retry_after())
            if len(self._waiting) + len(jobs) > self._limits.max_waiting:
                raise BusyError(
                    f"the queue is full, with {counted(len(self._waiting), 'request')}; ask again "
                    "later",
                    503,
                    self._retry_after(),
                )
            if self._clients[client] + len(jobs) > self._limits.max_per_client:
                raise BusyError(
                    f"your address has {counted(self._clients[client], 'request')} in the queue; "
                    "ask again once some of them are answered",
                    429,
                    self._retry_after(),
                )
            for job in jobs:
                self._clients[client] += 1
                self._waiting.append(job)
            self._changed.notify_all()

    def abandon(self, *jobs: Job) -> None:
        """Mark jobs as abandoned: nobody waits for their answers any more."""
        with self._changed:
            for job in jobs:
                job.is_abandoned = True
                if job in self._waiting:
                    self._waiting.remove(job)
                    self._drop([job])

    def _retry_after(self) -> int:
        return max(round(self._seconds * (len(self._waiting) + 1)), 1)

    # ---- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        for served in self._models:
            self._try_to_prepare(served)
        self.is_ready = True
        while (batch := self._next()) is not None:
            try:
                self._finish(batch)
            except BaseException:  # whatever happens, the thread goes on
                _LOG.exception("a batch could not be finished")

    def _try_to_prepare(self, served: Served) -> None:
        try:
            _prepare(served)
        except BudgetError:  # a slow model may answer questions that have more time
            _LOG.warning("%s was not prepared in time", served.name)
        except BaseException as error:  # whatever happens, the others are served
            _LOG.exception("%s could not be prepared", served.name)
            self._failed[served.name] = (
                f"{served.name} could not be prepared, as the server's log explains: "
                f"{type(error).__name__}"
            )

    def _next(self) -> list[Job] | None:
        """The next jobs to be answered together; None when the engine is closed."""
        with self._changed:
            was_idle = not self._waiting
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                self._drop(list(self._waiting))
                self._waiting.clear()
                return None
            if was_idle and not self._waiting[0].urgent:
                self._changed.wait(_TOGETHER)
            first = next((job for job in self._waiting if job.urgent), self._waiting[0])
            self._running = self._like(first)
            for job in self._running:
                self._waiting.remove(job)
            return self._running

    def _like(self, first: Job) -> list[Job]:
        """The job, and waiting jobs with the same settings."""
        chosen, key, limits = [first], first.key, self._limits
        queries, numbers = first.question.num_queries, first.question.num_numbers
        for job in self._waiting if key is not None else ():
            if job is not first and job.key == key:
                queries += job.question.num_queries
                numbers += job.question.num_numbers
                if queries > limits.max_queries or numbers > limits.max_numbers:
                    break
                chosen.append(job)
        return chosen

    def _finish(self, batch: list[Job]) -> None:
        """Answer a batch, and tell everybody who waits for it."""
        start, outcome = time.perf_counter(), "failed"
        wanted = [job for job in batch if not job.is_abandoned]
        try:
            outcome = self._answer(wanted) if wanted else "abandoned"
        finally:
            seconds = time.perf_counter() - start
            if outcome == "answered":
                self._seconds += _WEIGHT * (seconds / len(wanted) - self._seconds)
            with self._changed:
                self._running = []
                again = self._divided(wanted) if outcome == "divided" else []
                self._drop([job for job in batch if job not in again])
            self._done(Done(batch, seconds, outcome))

    def _divided(self, batch: Sequence[Job]) -> list[Job]:
        """The jobs that somebody still waits for, each alone and at the head of the queue."""
        again = [job for job in batch if not job.is_abandoned and not self._is_closed]
        for job in reversed(again):
            job.alone = True
            self._waiting.appendleft(job)
        return again

    def _drop(self, batch: Sequence[Job]) -> None:
        """Forget jobs; those without an answer by now get none."""
        for job in batch:
            self._clients[job.client] -= 1
            if self._clients[job.client] <= 0:
                del self._clients[job.client]
            _settle(job, AbandonedError())

    def _answer(self, batch: list[Job]) -> str:
        try:
            found = _answered(batch, self._limits.max_seconds)
        except AbandonedError:
            return "abandoned"
        except Exception as error:  # whatever happens, the thread goes on
            if len(batch) > 1:  # one of them is at fault, or all together take too long
                return "divided"
            _settle(batch[0], error)
            return "failed"
        for job, answer in zip(batch, found, strict=True):
            _settle(job, answer)
        return "answered"


def _settle(job: Job, outcome: dict[str, Any] | Exception) -> None:
    """Tell whoever waits for a job how it ended, unless they were told or nobody waits."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            job.result.set_exception(outcome)
        else:
            job.result.set_result(outcome)


class _TooLateError(Exception):
    """Time was up for a batch of jobs, each of which may take that long by itself."""


def _answered(batch: Sequence[Job], max_seconds: float) -> list[dict[str, Any]]:
    """The answers to a batch of jobs, in their order."""
    questions = [job.question for job in batch]
    start = time.perf_counter()
    watch = Watch(batch, max_seconds)
    try:
        posterior = _asked(questions, watch)
    except KeyboardInterrupt:
        raise BudgetError(
            f"no answer was found within {max_seconds:g} seconds; ask fewer queries at once"
        ) from None
    if watch.is_late and len(batch) > 1:
        raise _TooLateError
    found = answers_of(posterior, questions, watch)
    if watch.is_late and len(batch) > 1:
        raise _TooLateError
    seconds = time.perf_counter() - start
    return [
        {
            "model": question.served.name,
            "method": posterior.method,
            "purpose": question.method.purpose,
            "seed": question.seed,
            "seconds": seconds,
            "waited": start - job.asked,
            "batched_with": len(batch) - 1,
            "stopped_early": watch.is_late,
            "answers": answers,
        }
        for job, question, answers in zip(batch, questions, found, strict=True)
    ]


def _asked(questions: Sequence[Question], report: Report) -> Posterior:
    first = questions[0]
    return condition(
        first.served.vae,
        joined([question.evidence for question in questions]),
        first.method,
        seed=first.seed,
        report=report,
    )


def _prepare(served: Served) -> None:
    """Answer a query, so that the bank and everything else that is made once exists."""
    vae = served.vae
    nothing = torch.full((1, *vae.data_shape), torch.nan, dtype=vae.dtype, device=vae.device)
    given = None if vae.examples is None else first_row(vae.examples)
    condition(vae, Evidence.from_nan(nothing, given=given), Auto(max_seconds=2.0), seed=0)
    condition(vae, Evidence.from_nan(nothing, given=given), Auto(max_decodes=64), seed=0)
