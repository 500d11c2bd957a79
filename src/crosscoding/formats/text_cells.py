"""Converts cells of text files to what a table says: numbers, dates, durations, categories."""

from typing import TYPE_CHECKING

import numpy as np

from crosscoding.columns import Column
from crosscoding.columns.cells import dtype_of
from crosscoding.formats.table_style import MISSING, TableStyle

if TYPE_CHECKING:
    import pandas as pd

_ZONE = r":\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"  # at the end of a time


def cells_of_text(
    cells: "pd.Series", column: Column, style: TableStyle, first: int = 1
) -> "pd.Series":
    """Convert the text cells of a column to what the column contains.

    Args:
        cells: The text of each cell.
        column: The column.
        style: How numbers are written.
        first: The number of the first row, for messages.
    Raises:
        ValueError: A cell is not a number, date or duration; the message names the column.
    """
    import pandas as pd

    bare = cells.str.strip()
    missing = bare.str.lower().isin(list(MISSING))
    if column.is_listed:
        written = {str(category): category for category in column.categories}
        if column.kind == "boolean":  # true and TRUE are True
            written |= {cell.lower(): c for cell, c in written.items()}
            bare = bare.where(bare.isin(list(written)), bare.str.lower())
        missing &= ~bare.isin(list(written))
        read = [written.get(cell, _number(cell, style, cell)) for cell in bare]
        return pd.Series(read, dtype=object).where(~missing.to_numpy(), None)
    there = bare.where(~missing, None)
    try:
        if column.kind == "date":
            if "," in column.dtype:
                return _with_zone(there, column)
            return pd.to_datetime(there, format="ISO8601")
        if column.dtype.startswith("timedelta"):
            return pd.to_timedelta(there)
    except ValueError as error:
        reason = str(error).partition("\n")[0].partition(". You might")[0]
        wanted = "dates such as 2020-12-31" if column.kind == "date" else "durations"
        raise ValueError(f"{column.where}: expected {wanted}; {reason}") from None
    numbers = [style.number(cell) for cell in bare]
    for row, (number, cell) in enumerate(zip(numbers, bare, strict=True), first):
        if number is None:
            raise ValueError(
                f"{column.where}: expected a number in row {row}, or an empty cell, got "
                f"{cell[:40]!r}; {style.advice(cell)}"
            )
    return pd.Series(numbers, dtype="float64")


def _with_zone(cells: "pd.Series", column: Column) -> "pd.Series":
    """Dates in the column's time zone, which is also that of cells without one."""
    import pandas as pd

    zone = dtype_of(column).tz
    has_zone = cells.str.contains(_ZONE, na=True)
    given = pd.to_datetime(cells.where(has_zone, None), utc=True, format="ISO8601")
    local = pd.to_datetime(cells.where(~has_zone, None), format="ISO8601")
    return given.dt.tz_convert(zone).fillna(local.dt.tz_localize(zone))


def _number(cell: str, style: TableStyle, other: str) -> float | str:
    """A number, for categories that are numbers but written in another way; else the text."""
    number = style.number(cell)
    return other if number is None or np.isnan(number) else number
