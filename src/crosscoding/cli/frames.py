"""Reads rows for a model with a table, and writes its answers in the user's units.

A .parquet file has dtypes. In a text file every cell is text, which the table says how to read: as
a number, a date, or the category that is written like it.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscoding.cli.table_style import MISSING, TableStyle
from crosscoding.columns import Column, Table
from crosscoding.columns.cells import dtype_of
from crosscoding.result.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd

PARQUET = ".parquet"
_ZONE = r":\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"  # at the end of a time
_FRAMES: dict[str, dict[str, Any]] = {
    "mean": {"what": "mean"},
    "low": {"what": "quantile", "q": 0.05},
    "high": {"what": "quantile", "q": 0.95},
}


def read_frame(path: Path, table: Table, style: TableStyle) -> "pd.DataFrame":
    """The rows of a file, by the names of the table's columns.

    Args:
        path: A .parquet file, a text file, or - for a table on standard input.
        table: The model's columns.
        style: How a text file is written.
    Raises:
        ValueError: pandas, or what it needs for .parquet, is not installed; the file cannot be
            read, has no rows, or a cell is not what its column holds. The message names the column.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ValueError(
            f"expected pandas to read {path}; pip install 'crosscoding[tables]'"
        ) from None
    try:
        if is_parquet(path):
            _check_parquet(path)
            frame = pd.read_parquet(path)
        else:
            frame = _text(path, table, style.of(path.suffix.lower()))
    except (ImportError, OSError, UnicodeError, pd.errors.ParserError) as error:
        raise ValueError(f"cannot read the table in {path}: {error}") from None
    except pd.errors.EmptyDataError:
        raise ValueError(f"expected a table in {path}, got an empty file") from None
    if not len(frame):
        raise ValueError(f"expected rows in {path}, got none")
    return frame


def is_parquet(path: Path) -> bool:
    """Whether a file is one of Parquet, by its name."""
    return path.suffix.lower() == PARQUET


def _check_parquet(path: Path) -> None:
    """Raise ValueError unless a library is installed with which pandas reads Parquet."""
    if not any(importlib.util.find_spec(name) for name in ("pyarrow", "fastparquet")):
        raise ValueError(
            f"expected pyarrow to read {path}; pip install pyarrow, or convert the file to .csv"
        )


def _text(path: Path, table: Table, style: TableStyle) -> "pd.DataFrame":
    import pandas as pd

    cells: pd.DataFrame = pd.read_csv(
        sys.stdin if str(path) == "-" else path,
        sep=style.delimiter or ",",
        header=None if style.header is False else 0,
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",
    )
    if style.header is False:
        if cells.shape[1] != len(table):
            raise ValueError(
                f"expected {len(table)} columns in {path}, as the model has, got {cells.shape[1]}"
            )
        cells.columns = list(table.names)
    by_text = {str(column.name): column for column in table.columns}
    read = {}
    for place, name in enumerate(cells.columns):
        column, own = by_text.get(str(name)), cells.iloc[:, place]
        read[place] = own if column is None else _read(own, column, style)
    frame = pd.DataFrame(read)
    frame.columns = [by_text[str(n)].name if str(n) in by_text else n for n in cells.columns]
    return frame


def _read(cells: "pd.Series", column: Column, style: TableStyle) -> "pd.Series":
    """The cells of a column, which are text, as what it holds."""
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
    for line, (number, cell) in enumerate(zip(numbers, bare, strict=True)):
        if number is None:
            raise ValueError(
                f"{column.where}: expected a number in row {line + 1}, or an empty cell, got "
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


def write_frames(
    folder: Path, posterior: Posterior, style: TableStyle, seed: int, *, parquet: bool
) -> None:
    """Write mean, low and high, the ends of 90 % intervals, in the user's units.

    They are .csv files, or .parquet files with the dtypes of the rows.
    """
    for name, asked in _FRAMES.items():
        frame = posterior.frame(**asked, seed=seed)
        text, binary = folder / f"{name}.csv", folder / f"{name}{PARQUET}"
        if parquet:
            frame.to_parquet(binary, index=False)
        else:
            frame.to_csv(text, index=False, sep=style.delimiter or ",", decimal=style.decimal)
        (text if parquet else binary).unlink(missing_ok=True)  # of an earlier run
