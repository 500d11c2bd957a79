"""What one stage of the cascade hands on to a later one, for some of the queries."""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class _Selectable(Protocol):
    """A value for a batch of queries, which can be selected and joined."""

    def select(self, index: Tensor) -> Any: ...

    @staticmethod
    def joined(parts: Sequence[Any]) -> Any: ...


Value = TypeVar("Value", bound=_Selectable)


class HandedOn(Generic[Value]):
    """Values for some of the queries: those for which a stage found one.

    The budget may keep a stage from running for some queries. So a later stage cannot assume that
    there is a value; it asks which queries have one.

    Args:
        like: Any tensor with one entry per query.
    """

    def __init__(self, like: Tensor) -> None:
        self._place = torch.full((len(like),), -1, dtype=torch.long, device=like.device)
        self._values: Value | None = None
        self._count = 0

    def put(self, rows: Tensor, value: Value) -> None:
        """Store the value for these queries."""
        together = value if self._values is None else type(value).joined([self._values, value])
        self._place[rows] = self._count + torch.arange(len(rows), device=rows.device)
        self._values, self._count = together, self._count + len(rows)

    def has(self, rows: Tensor) -> Tensor:
        """Which of these queries have a value, boolean, shape of rows."""
        return self._place[rows] >= 0

    def of(self, rows: Tensor) -> Value:
        """The value for these queries: at least one, all of which must have a value."""
        if self._values is None or not bool(self.has(rows).all()):
            raise LookupError("expected queries that have a value; check with `has` first")
        return self._values.select(self._place[rows])
