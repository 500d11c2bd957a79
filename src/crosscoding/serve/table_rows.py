"""Rows of a table in JSON: a value, null, an interval or a set in each cell."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from crosscoding.columns import Column, Table
from crosscoding.columns.table_evidence import Limits
from crosscoding.errors import first_line, unknown_name
from crosscoding.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd

CELL = 'a value, null, {"low": …, "high": …} or {"one_of": […]} with at least one member'


_MOST_CLASSES = 50_000_000  # over all cells of all rows, one byte each


def evidence_of_rows(
    table: Table, rows: Sequence[Mapping[str, Any]], dtype: torch.dtype
) -> tuple[Evidence, Limits]:
    """The evidence of rows, one query each, and the bounds of their columns in their units.

    Args:
        table: The columns.
        rows: Objects by column. A cell is a value, null, `{"low": …, "high": …}`, where one end may
            be left out, or `{"one_of": […]}`. Columns that a row lacks are asked for.
        dtype: The dtype of the evidence.
    Raises:
        ValueError: A column is unknown, or a cell does not suit its column. The message names the
            column.
    """
    import pandas as pd

    by_text = {str(column.name): column for column in table.columns}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in by_text:
            raise unknown_name("column", name, by_text)
    exact, bounds, sets = {}, {}, {}
    for text, column in by_text.items():
        cells = [_Cell.of(column, row.get(text)) for row in rows]
        if any(cell.value is not None for cell in cells):
            exact[column.name] = _series(column, [cell.value for cell in cells])
        if any(cell.low is not None or cell.high is not None for cell in cells):
            ends = [cell.low for cell in cells], [cell.high for cell in cells]
            bounds[column.name] = tuple(_series(column, end) for end in ends)
        sets |= {(row, column.name): c.one_of for row, c in enumerate(cells) if c.one_of}
    frame = pd.DataFrame(exact, index=pd.RangeIndex(len(rows)))
    found = table.query(bounds, rows=frame, dtype=dtype)
    if not sets:
        return found, found.limits
    return found & _one_of(table, sets, found.values), found.limits


class _Cell:
    """A cell of a row: a value, the ends of an interval, or the members of a set."""

    def __init__(self, value: Any = None, low: Any = None, high: Any = None, one_of: Any = ()):
        self.value, self.low, self.high, self.one_of = value, low, high, tuple(one_of)

    @classmethod
    def of(cls, column: Column, cell: Any) -> "_Cell":
        """The cell that JSON describes.

        Raises:
            ValueError: It is an object or a list of another form.
        """
        if not isinstance(cell, (Mapping, list)):
            return cls(cell)
        if isinstance(cell, Mapping):
            if cell and set(cell) <= {"low", "high"}:
                return cls(low=cell.get("low"), high=cell.get("high"))
            members = cell.get("one_of")
            if set(cell) == {"one_of"} and isinstance(members, list) and members:
                return cls(one_of=members)
        raise ValueError(f"{column.where}: expected {CELL}, got {cell!r:.80}")


def _one_of(
    table: Table, sets: Mapping[tuple[int, str | int], Any], like: torch.Tensor
) -> Evidence:
    """The sets of some cells as evidence of the shape of `like`."""
    for _, name in sets:
        column = table[name]
        if not column.is_listed and column.kind != "count":
            raise ValueError(
                f"{column.where}: expected a value or an interval, as a {column.kind} has no "
                "categories, got a set"
            )
    found = {}
    for name, members in {(name, members) for (_, name), members in sets.items()}:
        cells = _series(table[name], list(members))
        one = table.query({name: set(cells)}, dtype=like.dtype).uncertain
        assert one is not None
        assert one.allowed is not None
        found[name, members] = one.allowed[0, table.names.index(name)].clone()
    num_classes = max(len(allowed) for allowed in found.values())
    if like.numel() * num_classes > _MOST_CLASSES:
        raise ValueError(
            f"expected smaller counts in sets, or fewer rows, got counts up to {num_classes - 1} "
            f"and {len(like)} rows; use an interval, or ask in parts"
        )
    allowed = torch.ones(*like.shape, num_classes, dtype=torch.bool)
    for (row, name), members in sets.items():
        own = found[name, members]
        place = table.names.index(name)
        allowed[row, place] = False
        allowed[row, place, : len(own)] = own
    return Evidence.one_of(allowed).in_dtype(like.dtype)


def _series(column: Column, cells: list[Any]) -> "pd.Series":
    """Convert cells in JSON to what the column contains.

    Raises:
        ValueError: A cell has another type, or is not a date or duration; the message names it.
    """
    import pandas as pd

    if column.is_listed:
        return pd.Series(cells, dtype=object)
    is_date, is_duration = column.kind == "date", column.dtype.startswith("timedelta")
    words = "a duration in seconds" if is_duration else "a number"
    words = "a date such as 2020-12-31" if is_date else words
    wanted = (str,) if is_date else (int, float, str) if is_duration else (int, float)
    for cell in cells:
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, wanted)):
            raise ValueError(f"{column.where}: expected {words}, got {cell!r:.80}")
    try:
        if is_date:
            found = _dates(column, cells)
        elif is_duration:
            found = _durations(cells)
        else:
            return pd.Series(cells, dtype="float64")
    except (ValueError, OverflowError) as error:
        reason = first_line(error).partition(". ")[0]  # what follows is advice on pandas
        raise ValueError(f"{column.where}: expected {words}; {reason}") from None
    for cell, is_none in zip(cells, found.isna(), strict=True):
        if cell is not None and is_none:
            raise ValueError(f"{column.where}: expected {words}, got {cell!r:.80}")
    return found


def _dates(column: Column, cells: list[Any]) -> "pd.Series":
    """Texts as dates, NaT where they are not dates."""
    import pandas as pd

    zone = "," in column.dtype
    return pd.to_datetime(pd.Series(cells), utc=zone, format="ISO8601", errors="coerce")


def _durations(cells: list[Any]) -> "pd.Series":
    """Seconds, or texts such as "1h", as durations, NaT where they are not."""
    import pandas as pd

    seconds = [c if c is None or isinstance(c, str) else f"{c} s" for c in cells]
    return pd.to_timedelta(pd.Series(seconds), errors="coerce")
