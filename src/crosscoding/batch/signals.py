"""Stops a run on signals: after the current shards on SIGTERM, at once on Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crosscoding.batch.folder import StopFile


@contextmanager
def stopping_on_signals(stop: StopFile, grace: float) -> Iterator[list[int]]:
    """Stop on SIGTERM after the current shards, on SIGINT or a second signal at once.

    Signals only reach the main thread, so other threads install no handlers.

    Args:
        stop: The file that tells workers to stop.
        grace: Seconds after SIGTERM in which workers may finish their current shards.
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
