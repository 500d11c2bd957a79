"""Progress: how much of the work is done, reported to the caller or shown on a display.

Methods report a share of their work, which may stand still during a long step, or cover only part
of the work. The share that is passed on never falls, keeps rising while pieces of work are done,
and comes with an estimate of the time left.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Report = Callable[[float, str], None]
"""Called with the share of the work that is done, 0 to 1, and a few words on the current step."""

_EVERY = 0.5  # seconds between two guessed reports, at least
_SHOWN_AFTER = 2.0  # seconds of work
_FIRST_PACE = 0.005  # share of the rest assumed done in a second, before any report
_LEAST_GUESSED, _MOST_GUESSED = 1e-4, 0.05  # share of the rest by which a guess advances
_ONE_DISPLAY = threading.Lock()  # two displays on one terminal would overwrite each other


def silent(share: float, what: str) -> None:
    """A report that does nothing."""


def part(report: Report, first: float, last: float) -> Report:
    """A report for a part of the work, between two shares of the whole."""
    return lambda share, what: report(first + (last - first) * share, what)


class Progress:
    """Passes reports on, with the time left and never a smaller share than before.

    It is itself a report. Code that only knows that work goes on calls `beat`.

    Args:
        report: The receiver.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start = self._last = time.perf_counter()
        self._share, self._what = 0.0, ""
        self._pace = _FIRST_PACE

    def __call__(self, share: float, what: str) -> None:
        self._what = what
        if share > self._share:
            passed = max(time.perf_counter() - self._start, 1.0)
            self._pace = share / passed / max(1 - share, _LEAST_GUESSED)
            self._pass_on(min(share, 1.0))
        else:
            self._pass_on(self._guess())

    def beat(self) -> None:
        """Work goes on: if nothing was reported for a while, guess the share that is done."""
        if time.perf_counter() - self._last >= _EVERY:
            self._pass_on(self._guess())

    def end(self) -> None:
        """Report that all work is done."""
        self._what = "done"
        self._pass_on(1.0)

    def _guess(self) -> float:
        """The share at the pace so far, always below 1."""
        gained = self._pace * (time.perf_counter() - self._last)
        return self._share + (1 - self._share) * min(max(gained, _LEAST_GUESSED), _MOST_GUESSED)

    def _pass_on(self, share: float) -> None:
        self._share, self._last = share, time.perf_counter()
        self._report(share, self._what + self._rest())

    def _rest(self) -> str:
        passed = self._last - self._start
        if passed < _SHOWN_AFTER or not 0 < self._share < 1:
            return ""
        return f", about {in_words(passed * (1 - self._share) / self._share)} left"


def in_words(seconds: float) -> str:
    """A duration in words: "5 s", "3 min", "2 h"."""
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


@contextmanager
def followed(title: str, report: Report, shown: bool) -> Iterator[Progress]:
    """Progress of the work in this context, for a caller's report or for the display.

    Args:
        title: Title of the display.
        report: The caller's report; `silent` if there is none. A `Progress` is used as it is, so
            that a subclass is told of every piece of work (`beat`).
        shown: Whether to show a display if there is no report: on a terminal or in a notebook, once
            work has taken two seconds.
    """
    if report is not silent:
        progress = report if isinstance(report, Progress) else Progress(report)
        yield progress
        progress.end()
        return
    display = _Display(title) if shown and _is_watched() else None
    progress = Progress(silent if display is None else display)
    try:
        yield progress
    finally:
        if display is not None:
            display.close()


class _Shown(Protocol):
    """A bar on a terminal or in a notebook."""

    def update(self, share: float, what: str) -> None: ...

    def close(self) -> None: ...


class _Display:
    """A report that shows a bar after two seconds, unless another bar is being shown."""

    def __init__(self, title: str) -> None:
        self._title, self._start = title, time.perf_counter()
        self._bar: _Shown | None = None

    def __call__(self, share: float, what: str) -> None:
        if self._bar is None and time.perf_counter() - self._start >= _SHOWN_AFTER:
            if not _ONE_DISPLAY.acquire(blocking=False):
                return
            try:
                self._bar = _InNotebook(self._title) if _is_notebook() else _OnTerminal(self._title)
            except BaseException:
                _ONE_DISPLAY.release()
                raise
        if self._bar is not None:
            self._bar.update(share, what)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            _ONE_DISPLAY.release()


class _OnTerminal:
    """A bar on stderr that disappears when the work is done."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.fields[title]}"), BarColumn(), TaskProgressColumn())
        words = TextColumn("{task.description}", markup=False)
        console = Console(stderr=True)
        self._bars = Bars(*columns, words, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._bars.add_task("", total=1.0, title=title)
        self._bars.start()

    def update(self, share: float, what: str) -> None:
        self._bars.update(self._task, completed=share, description=what)

    def close(self) -> None:
        self._bars.stop()


class _InNotebook:
    """A line below a notebook cell, updated in place."""

    def __init__(self, title: str) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        self._title = title
        self._handle: Any = display({"text/plain": title}, raw=True, display_id=True)

    def update(self, share: float, what: str) -> None:
        bar = "█" * round(30 * share)
        text = f"{self._title} |{bar:<30}| {share:.0%} {what}"
        self._handle.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        self._handle.update({"text/plain": ""}, raw=True)


def _is_watched() -> bool:
    """Whether this is the main thread of a program on a terminal or in a notebook."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return _is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
