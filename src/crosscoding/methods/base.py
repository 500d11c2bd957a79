"""`Method`: takes a target with all its queries at once, and returns `Findings`."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Generator

from crosscoding.model.bank import MAX_POINTS
from crosscoding.progress import Report, silent
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

__all__ = ["Method", "Report", "silent"]


class Method(ABC):
    """A method: a small frozen object that holds settings and runs with them.

    Attributes:
        points_at_once: Roughly how many latent points per query are in memory at once; it limits
            how many queries are processed together.
        takes_continuous, takes_discrete: Whether the method works for such latents.
    """

    points_at_once: ClassVar[int] = MAX_POINTS  # as many as a bank has
    takes_continuous: ClassVar[bool] = True
    takes_discrete: ClassVar[bool] = False

    @abstractmethod
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        """Findings for all queries of a target of batch shape (B,), B ≥ 0.

        Entry b of every figure is what the method gives for query b alone.
        """

    def of_block(self, left: int, seconds: float, *, interrupted: bool) -> "Method":
        """This method as it should run on the next block, if a large batch is split into blocks.

        Args:
            left: Number of blocks left, including this one.
            seconds: Time since the first block started.
            interrupted: Whether the previous block was interrupted.
        """
        return self
