"""`Description`: title, facts, grids, pictures and notes of an object, without any markup.

Text is never markup: the renderers, `terminal` and `notebook`, escape it.
"""

from dataclasses import dataclass

LABEL_STATUS = {"trusted": "good", "approximate": "doubtful", "unreliable": "bad"}
"""The status of each label of a verdict."""


@dataclass(frozen=True)
class Mark:
    """A word with a status, which decides its colour; the word alone says the same.

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
