"""SIGTERM and Ctrl-C: the shard at hand is finished if that takes no longer than a grace time."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crosscoding.batch.folder import StopFile


@contextmanager
def stopping_on_signals(stop: StopFile, grace: float) -> Iterator[list[int]]:
    """Stop on SIGTERM after the shard at hand, on SIGINT or a second signal at once.

    Signals only reach the main thread, so elsewhere nothing is changed.

    Args:
        stop: What workers look at.
        grace: Seconds after SIGTERM within which shards at hand may be finished.
    Yields:
        The signals that were received, a list that grows.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    timers: list[threading.Timer] = []

    def received(number: int, frame: Any) -> None:
        wait = grace if number == signal.SIGTERM and not signals else 0.0
        signals.append(number)
        stop.ask()
        timers.append(threading.Timer(wait, stop.demand))
        timers[-1].daemon = True
        timers[-1].start()

    before = {number: signal.signal(number, received) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
