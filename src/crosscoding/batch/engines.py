"""Engines, which get shards answered: here in this process or in worker processes.

An engine takes a job and the numbers of shards, and yields a record for each finished shard, in any
order. The engine in `on_ray` uses a Ray cluster instead, where Ray schedules, retries and scales
actors; worker processes are only replaced when they die.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from crosscoding.batch.errors import StoppedError
from crosscoding.batch.worker import Job, Record, Worker

Engine = Callable[[Job, Sequence[int]], Iterator[Record]]

_MOST_DEATHS = 3  # of workers in a row, with no shard finished in between
_AHEAD = 2  # shards queued for each worker


def here(job: Job, shards: Sequence[int]) -> Iterator[Record]:
    """Answer shards in this process."""
    worker = Worker(job)
    for shard in shards:
        record = worker.answer(shard)
        if record is None:
            return
        yield record


def in_processes(num: int) -> Engine:
    """An engine of worker processes on this machine.

    Args:
        num: Number of processes.
    """

    def answer(job: Job, shards: Sequence[int]) -> Iterator[Record]:
        left, deaths = list(shards), 0
        while left:
            before = len(left)
            try:
                for record in _of_pool(job, tuple(left), num):
                    left.remove(record.shard)
                    yield record
                return
            except BrokenProcessPool:
                deaths = deaths + 1 if len(left) == before else 1
            if deaths == _MOST_DEATHS:
                raise StoppedError(
                    f"workers died {_MOST_DEATHS} times in a row, at one of the shards from "
                    f"{left[0]} on; if memory ran out, use fewer workers or, in a "
                    "new folder, a smaller max_bytes or smaller shards; a script must make this "
                    "call under if __name__ == '__main__':"
                )

    return answer


def _of_pool(job: Job, shards: Sequence[int], num: int) -> Iterator[Record]:
    """Records of shards from a pool of processes; a few shards are queued for each process.

    Raises:
        BrokenProcessPool: A process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    pool = ProcessPoolExecutor(num, context, _start, (job,))
    waiting: set[Future[Record | None]] = set()
    todo = iter(shards)
    try:
        while True:
            while len(waiting) < _AHEAD * num and (shard := next(todo, None)) is not None:
                waiting.add(pool.submit(_answer, shard))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if (record := future.result()) is not None:
                    yield record
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Worker | None = None  # of this process, if it belongs to a pool


def _start(job: Job) -> None:
    """Set up a process of the pool: it leaves signals to its parent, and ends with the parent."""
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _worker = Worker(job)


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _answer(shard: int) -> Record | None:
    assert _worker is not None  # the process was set up
    return _worker.answer(shard)
