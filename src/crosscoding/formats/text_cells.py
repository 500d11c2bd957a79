"""Cells of text files as what a table says they hold: numbers, dates, durations, categories."""

from typing import TYPE_CHECKING

import numpy as np

from crosscoding.columns import Column
from crosscoding.formats.table_style import MISSING, TableStyle

if TYPE_CHECKING:
    import pandas as pd


def cells_of_text(
    cells: "pd.Series", column: Column, style: TableStyle, first: int = 1
) -> "pd.Series":
    """The cells of a column, which are text, as what it holds.

    Args:
        cells: The text of each cell.
        column: What the column holds.
        style: How numbers are written.
        first: The number of the first row, for messages.
    Raises:
        ValueError: A cell is no number, date or duration; the message names the column.
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
            found = pd.to_datetime(there, utc="," in column.dtype, format="ISO8601")
            return found if "," not in column.dtype else found.dt.tz_convert("UTC")
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


def _number(cell: str, style: TableStyle, other: str) -> float | str:
    """A number, for categories that are numbers but written in another way; else the text."""
    number = style.number(cell)
    return other if number is None or np.isnan(number) else number
