"""`Description`: title, facts, grids, pictures and notes of an object, without any markup.

An object says what is shown of it in `_described`; `Displayed` gives it a form for terminals
(rich) and one for notebooks (HTML). Text is never markup: both renderers escape it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosscoding.isolation import isolated

if TYPE_CHECKING:
    from rich.console import RenderableType

LABEL_STATUS = {"trusted": "good", "approximate": "doubtful", "unreliable": "bad"}
"""The status of each label of a verdict."""


@dataclass(frozen=True)
class Mark:
    """A word with a status, which decides its colour; the word says the same without it.

    Args:
        text: The word.
        status: "good", "note", "doubtful" or "bad"; "strong" stands out without a judgement.
    """

    text: str
    status: str


Cell = str | Mark


@dataclass(frozen=True)
class Grid:
    """A table.

    Args:
        rows: Cells, row after row.
        columns: The names of the columns; () leaves out the line of names.
        title: Line above; "" for none.
        numbers: Which columns are aligned to the right, by place.
        more: Line below that says what was left out; "" if nothing was.
    """

    rows: tuple[tuple[Cell, ...], ...]
    columns: tuple[str, ...] = ()
    title: str = ""
    numbers: frozenset[int] = frozenset()
    more: str = ""


@dataclass(frozen=True)
class Strip:
    """A picture for notebooks.

    Args:
        png: The file's bytes.
        words: What it shows, for its caption and for those who cannot see it.
        width: Width in pixels of the screen.
    """

    png: bytes
    words: str
    width: int


@dataclass(frozen=True)
class Description:
    """What is shown of an object, from top to bottom.

    Args:
        title: What it is.
        facts: Names and values.
        grids: Tables.
        strips: Pictures, which only notebooks show.
        notes: Sentences.
    """

    title: str = ""
    facts: tuple[tuple[str, Cell], ...] = ()
    grids: tuple[Grid, ...] = ()
    strips: tuple[Strip, ...] = ()
    notes: tuple[str, ...] = ()


class Displayed(ABC):
    """An object with a form for terminals, by `rich.print`, and one for notebooks."""

    __slots__ = ()

    @abstractmethod
    def _described(self, *, pictures: bool) -> Description:
        """What is shown of it; `pictures` is False where they would not be seen."""

    @isolated
    def __rich__(self) -> "RenderableType":
        """What `rich.print` shows."""
        from crosscoding.display.terminal import as_rich  # loads rich

        return as_rich(self._described(pictures=False))

    @isolated
    def _repr_html_(self) -> str:
        """What notebooks show."""
        from crosscoding.display.notebook import as_html

        return as_html(self._described(pictures=True))


def in_columns(names: Sequence[str], *columns: Sequence[Cell]) -> Grid:
    """A grid of columns, of which all but the first hold numbers unless they hold marks."""
    numbers = frozenset(
        place
        for place, column in enumerate(columns)
        if place and not any(isinstance(cell, Mark) for cell in column)
    )
    return Grid(tuple(zip(*columns, strict=True)), tuple(names), numbers=numbers)
