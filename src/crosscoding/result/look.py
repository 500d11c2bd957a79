"""`Look`: what `Posterior.plot` should draw."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator

from crosscoding.errors import check_count, unknown_name

KINDS = ("pictures", "elements", "columns", "latent")


@dataclass(frozen=True)
class Look:
    """What `Posterior.plot` should draw: its arguments, which it documents."""

    kind: str | None
    queries: int | Sequence[int] | None
    only: Sequence[str | int] | None
    shape: Sequence[int] | None
    dims: Sequence[int]
    num: int
    level: float
    limits: tuple[float, float] | None
    seed: int | Generator

    def check(self) -> None:
        """Check what needs no posterior; raise TypeError or ValueError if an argument is wrong."""
        if self.kind is not None and self.kind not in KINDS:
            raise unknown_name("kind", str(self.kind), KINDS)
        check_count("num", self.num, 0)
        if not 0 < self.level < 1:
            raise ValueError(
                f"expected the probability of an interval, between 0 and 1, got {self.level}"
            )
