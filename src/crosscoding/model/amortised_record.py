"""How an amortised cross-coder was trained, and how good its proposals are."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crosscoding.errors import ModelFormatError
from crosscoding.model.amortised_coverage import Coverage


@dataclass(frozen=True)
class ShareRecord:
    """How good bare proposals are for simulated queries with some share of elements observed.

    Args:
        low, high: Bounds of the share.
        num: How many queries there were.
        median, tenth: Median and lower decile of ESS per draw.
        even: Share of them with weights so even that the cascade would take draws of the network.
    """

    low: float
    high: float
    num: int
    median: float
    tenth: float
    even: float | None = None


@dataclass(frozen=True)
class Record:
    """How an amortised cross-coder was trained, and how good its proposals are.

    Args:
        masks: The distribution of masks, in words.
        steps: Number of training steps.
        seconds: Time of training.
        bound: E log q(z*|x*) of held-out simulated z* and x*, in nats: the cross-entropy of q,
            negative, at most the negative entropy of p(z|x) on average.
        error: Its standard error.
        outside: Share of held-out z* where p(z, x) / q(z|x) is over e times that at any of 500
            draws from q: about the share of p(z|x) that so many draws do not cover, on average.
        shares: ESS of bare proposals by share observed.
        coverage: For which queries twins vouch that the proposals cover p(z|x); None: for none.
        ended_early: Whether training ended because the bound stopped improving.
    """

    masks: str
    steps: int
    seconds: float
    bound: float
    error: float
    outside: float
    shares: tuple[ShareRecord, ...]
    coverage: Coverage | None = None
    ended_early: bool = False

    def __str__(self) -> str:
        why = "the bound no longer improved" if self.ended_early else "the budget was used"
        lines = [
            f"trained for {self.seconds:.0f} s, {self.steps:,} steps, until {why}, on {self.masks}",
            f"E log q(z|x) on held-out twins: {self.bound:.2f} ± {self.error:.2f} nats; "
            f"{self.outside:.1%} of them lie outside of the proposals",
            "observed   ESS per draw: median, lower decile   even weights   outside, at most",
        ]
        known = {} if self.coverage is None else {part.low: part for part in self.coverage.shares}
        for part in self.shares:
            span = f"{part.low:.0%} to {part.high:.0%}"
            ess = f"{part.median:.1%}, {part.tenth:.1%}"
            even = "" if part.even is None else f"{part.even:.0%} of {part.num}"
            own = known.get(part.low)
            bound = "not used" if own is None else f"{own.lacking:.1%} ({own.num} twins)"
            lines.append(f"{span:<10} {ess:>35}   {even:>12}   {bound:>16}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        coverage = None if self.coverage is None else self.coverage.to_json()
        shares = [asdict(part) for part in self.shares]
        return vars(self) | {"shares": shares, "coverage": coverage}

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> "Record":
        """What `to_json` returned.

        Raises:
            ModelFormatError: It is malformed.
        """
        try:
            shares = tuple(ShareRecord(**part) for part in entry["shares"])
            known = entry.get("coverage")
            coverage = None if known is None else Coverage.from_json(known)
            found = Record(**{**entry, "shares": shares, "coverage": coverage})
            numbers = [found.steps, found.seconds, found.bound, found.error, found.outside]
            parts = (*shares, *(() if coverage is None else coverage.shares))
            values = (value for part in parts for value in asdict(part).values())
            numbers += [value for value in values if value is not None]
            if not isinstance(found.masks, str) or not all(map(math.isfinite, numbers)):
                raise ValueError("numbers are missing")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(f"expected a training record, got {entry!r:.80}") from error
        return found
