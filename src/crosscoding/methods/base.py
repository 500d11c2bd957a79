"""What a method is: it looks at a target, all queries of it at once, and says what it found."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Generator

from crosscoding.model.bank import MAX_POINTS
from crosscoding.progress import Report, silent
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

__all__ = ["Method", "Report", "silent"]


class Method(ABC):
    """A small frozen object: its settings, and how to run them.

    Attributes:
        points_at_once: Latent points of a query that are held at once, about; it bounds how many
            queries are worked on together.
    """

    points_at_once: ClassVar[int] = MAX_POINTS  # as many as a bank has

    @abstractmethod
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        """Work on all queries of a target of batch shape (B,), B ≥ 0.

        Entry b of every figure is what the method gives for query b alone.
        """

    def of_block(self, left: int, seconds: float, *, interrupted: bool) -> "Method":
        """This method for the next of the blocks of queries that a large batch is worked on in.

        Args:
            left: Blocks to go, this one included.
            seconds: Since the first began.
            interrupted: Whether the block before was.
        """
        return self
