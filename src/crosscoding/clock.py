"""How much time and memory is left: a clock that is passed to everything that decodes.

Loops ask it when to stop, so that their results can still be used. Before every piece of work the
clock is ticked, and raises `OutOfTime` if time is up: no method overruns its limit by more than one
piece. The tick also reports progress, and the clock says how large a piece may be.
"""

import math
import time
from collections.abc import Callable, Iterator

_FOR_ANSWER = 0.15  # share of the total time that fits leave for weighing their results
_PIECE = 0.02  # share of the total time below which the next piece may be larger
_LEAST_SHARE = 0.2  # share of the total time that `within` divides even if less is left
MAX_BYTES = 2**30  # default working memory


class OutOfTime(Exception):  # noqa: N818 (not an error: whoever set the limit catches it)
    """Raised in place of work that would begin after time is up."""


class Clock:
    """The time that a run may take, starting now.

    Args:
        max_seconds: Wall-clock time; None: no limit.
        beat: Called before every piece of work, to show that work goes on.
        max_bytes: Working memory.

    Attributes:
        has_cut: Whether the clock told a loop to stop since this was last set to False.
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
        """Whether there is a time limit."""
        return self._deadline < math.inf

    @property
    def left(self) -> float:
        """Seconds left, ≥ 0."""
        return max(self._deadline - time.perf_counter(), 0.0)

    @property
    def share(self) -> float:
        """The share of the time that has passed, 0 to 1; 0 without a limit."""
        return 1 - self.left / self._max_seconds if self.is_limited else 0.0

    def limited(self, max_seconds: float | None) -> "Clock":
        """A clock with this limit from now on, and the same beat and memory."""
        return Clock(max_seconds, self._beat, self._max_bytes)

    def piece_bytes(self, usual: int) -> int:
        """Bytes for a piece of work: the usual number, or fewer if memory is limited."""
        return usual * min(self._max_bytes, MAX_BYTES) // MAX_BYTES

    def reserve(self, seconds: float) -> None:
        """End this many seconds earlier, to leave time for what follows."""
        self._deadline -= seconds

    def tick(self) -> None:
        """Call this before every piece of work.

        Raises:
            OutOfTime: Time is up.
        """
        self.beat()
        if self.is_over():
            raise OutOfTime

    def beat(self) -> None:
        """Show that work goes on."""
        if self._beat is not None:
            self._beat()

    def is_over(self) -> bool:
        """Whether time is up, so that no further work may begin."""
        return time.perf_counter() > self._deadline

    def is_late(self) -> bool:
        """Whether work that can stop at any time should, to leave time for weighing its result."""
        return time.perf_counter() > self._fit_deadline

    def within(self, share: float = 1.0) -> Callable[[], bool]:
        """A function that a loop calls before each step, and that returns whether to stop.

        The loop may use this share of the time left for fits, or, if less than a fifth of the total
        time is left, this share of that fifth. The next step is assumed to take as long as the
        longest one so far.
        """
        if not self.is_limited:
            return lambda: False
        asked = time.perf_counter()
        least = _LEAST_SHARE * self._max_seconds
        return self._until(asked + share * max(self._fit_deadline - asked, least))

    def to_the_end(self) -> Callable[[], bool]:
        """The function of `within` for a loop that gets all the time left."""
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
        """Slices of `num` points, to be processed one after the other.

        If time is limited, pieces start small and grow, so that none takes long however slow the
        decoder is.

        Args:
            num: Number of points.
            most: Most points in a piece, ≥ 1.
            kind: The kind of work; the first piece is as large as earlier ones of its kind allow.
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
                elif done == size:  # a smaller last piece says nothing about larger ones
                    self._sizes[kind] = 2 * size

    @property
    def _fit_deadline(self) -> float:
        if not self.is_limited:
            return math.inf
        return self._deadline - _FOR_ANSWER * self._max_seconds


UNLIMITED = Clock()
"""A clock without a limit."""
