"""How much time and memory is left: a clock that is handed on to wherever something is decoded.

Work that iterates asks it when to stop, so that what it has can still be used. Before every piece
that is decoded the clock is told, and where time is up it raises `OutOfTime`: no method overruns
its time by more than a piece, whatever it does. The same place tells the user that work goes on,
and how large a piece may be.
"""

import math
import time
from collections.abc import Callable, Iterator

_FOR_ANSWER = 0.15  # share of all time that fits leave to those who weigh what they found
_PIECE = 0.02  # of all time, that a piece may take and the next be larger
_LEAST_SHARE = 0.2  # of all time, that `within` shares out even where less is left
MAX_BYTES = 2**30  # memory to work in, where no other is asked for


class OutOfTime(Exception):  # noqa: N818 (no error: whoever set the time catches it)
    """Time is up: raised in place of work that would begin after that."""


class Clock:
    """The time that a run may take, from now on.

    Args:
        max_seconds: Of wall-clock time; None: it is never late.
        beat: Called before every piece of work, to show that work goes on.
        max_bytes: Memory to work in.

    Attributes:
        has_cut: Whether a loop that asked was told to end; whoever wants to know sets it to False
            beforehand.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        beat: Callable[[], None] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._max_seconds = math.inf if max_seconds is None else max_seconds
        self._deadline = time.perf_counter() + self._max_seconds
        self._beat = beat
        self._max_bytes = max_bytes
        self.has_cut = False
        self._sizes: dict[str, int] = {}

    @property
    def is_limited(self) -> bool:
        """Whether there is a time at which it is over."""
        return self._deadline < math.inf

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or more."""
        return max(self._deadline - time.perf_counter(), 0.0)

    @property
    def share(self) -> float:
        """What has passed of the time there is, 0 to 1."""
        return 1 - self.left / self._max_seconds if self.is_limited else 0.0

    def limited(self, max_seconds: float | None) -> "Clock":
        """One with so much time from now on, that is told and asked by the same."""
        return Clock(max_seconds, self._beat, self._max_bytes)

    def piece_bytes(self, usual: int) -> int:
        """Bytes for a piece of work that usually takes so many: fewer where memory is short."""
        return usual * min(self._max_bytes, MAX_BYTES) // MAX_BYTES

    def reserve(self, seconds: float) -> None:
        """Have it over by so much earlier, to leave time for what comes then."""
        self._deadline -= seconds

    def tick(self) -> None:
        """Told before every piece of work.

        Raises:
            OutOfTime: It is over.
        """
        self.beat()
        if self.is_over():
            raise OutOfTime

    def beat(self) -> None:
        """Show that work goes on."""
        if self._beat is not None:
            self._beat()

    def is_over(self) -> bool:
        """Whether no further work begins."""
        return time.perf_counter() > self._deadline

    def is_late(self) -> bool:
        """Whether work that can end at any time should, so that its result can be weighed."""
        return time.perf_counter() > self._fit_deadline

    def within(self, share: float = 1.0) -> Callable[[], bool]:
        """To be asked before each step of a loop: whether to end it there.

        A loop gets this share of the time that fits have left, or of a fifth of all if that is
        more. The next step is expected to take as long as the longest one so far.
        """
        if not self.is_limited:
            return lambda: False
        asked = time.perf_counter()
        least = _LEAST_SHARE * self._max_seconds
        return self._until(asked + share * max(self._fit_deadline - asked, least))

    def to_the_end(self) -> Callable[[], bool]:
        """The same for a loop that gets all of the time that is left."""
        return self._until(math.inf)

    def _until(self, end: float) -> Callable[[], bool]:
        asked, longest, end = time.perf_counter(), 0.0, min(end, self._deadline)

        def stop() -> bool:
            nonlocal asked, longest
            now = time.perf_counter()
            longest, asked = max(longest, now - asked), now
            over = now + longest > end
            self.has_cut = self.has_cut or over
            return over

        return stop

    def slices(self, num: int, most: int, kind: str) -> Iterator[slice]:
        """Pieces of a number of points that are worked on one after the other.

        Where time is limited they begin small and grow, so that none takes long, however slow a
        decoder is.

        Args:
            num: Of points in all.
            most: Of points in a piece, ≥ 1.
            kind: Of work: what pieces of it took before tells how large the first one is.
        """
        start = 0
        while start < max(num, 1):
            size = min(self._sizes.get(kind, 1), most) if self.is_limited else most
            began = time.perf_counter()
            done = min(size, num - start)
            yield slice(start, start + size)
            start += size
            if self.is_limited:
                took = time.perf_counter() - began
                longest = _PIECE * self._max_seconds
                if took >= longest:
                    self._sizes[kind] = max(size // 2, 1)
                elif done == size:  # fewer tell nothing of what more of them take
                    self._sizes[kind] = 2 * size

    @property
    def _fit_deadline(self) -> float:
        if not self.is_limited:
            return math.inf
        return self._deadline - _FOR_ANSWER * self._max_seconds


UNLIMITED = Clock()
"""A clock by which it is never late."""
