"""What is known of a trained amortised cross-coder: how it was trained, and what it reaches."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crosscoding.errors import ModelFormatError


@dataclass(frozen=True)
class ShareRecord:
    """What bare proposals reach for simulated queries with some share of elements observed.

    Args:
        low, high: Bounds of the share.
        num: How many queries there were.
        median, tenth: Median and lower decile of ESS per draw.
    """

    low: float
    high: float
    num: int
    median: float
    tenth: float


@dataclass(frozen=True)
class Record:
    """How an amortised cross-coder was trained, and what it reaches.

    Args:
        masks: The distribution of masks.
        steps: Steps of training.
        seconds: Their time.
        bound: E log q(z*|x*) of held-out simulated z* and x*, in nats: the cross-entropy of q,
            negative, at most the negative entropy of p(z|x) on average.
        error: Its standard error.
        outside: Share of held-out z* where p(z, x) / q(z|x) is over e times that at any of 500
            draws from q: about the share of p(z|x) that so many draws do not cover, on average.
        shares: ESS of bare proposals by share observed.
    """

    masks: str
    steps: int
    seconds: float
    bound: float
    error: float
    outside: float
    shares: tuple[ShareRecord, ...]

    def __str__(self) -> str:
        lines = [
            f"trained for {self.seconds:.0f} s, {self.steps:,} steps, on {self.masks}",
            f"E log q(z|x) on held-out twins: {self.bound:.2f} ± {self.error:.2f} nats; "
            f"{self.outside:.1%} of them lie outside of the proposals",
            "observed   queries   ESS per draw: median, lower decile",
        ]
        for part in self.shares:
            span = f"{part.low:.0%} to {part.high:.0%}"
            lines.append(f"{span:<10} {part.num:>7}   {part.median:>20.1%}, {part.tenth:.1%}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return asdict(self) | {"shares": [asdict(part) for part in self.shares]}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Record":
        """What `to_json` returned.

        Raises:
            ModelFormatError: It is malformed.
        """
        try:
            shares = tuple(ShareRecord(**part) for part in entry["shares"])
            found = Record(**{**entry, "shares": shares})
            numbers = [found.steps, found.seconds, found.bound, found.error, found.outside]
            numbers += [value for part in shares for value in asdict(part).values()]
            if not isinstance(found.masks, str) or not all(map(math.isfinite, numbers)):
                raise ValueError("numbers are missing")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(
                f"expected the record of a training, got {entry!r:.80}"
            ) from error
        return found
