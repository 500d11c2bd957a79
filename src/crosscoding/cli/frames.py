"""Reads rows for a model with a table, and writes its answers in the user's units.

A .parquet file has dtypes. In a text file every cell is text, and the table says whether to read it
as a number, a date, or a category.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscoding.columns import Table
from crosscoding.formats.table_style import TableStyle
from crosscoding.formats.text_cells import cells_of_text
from crosscoding.result.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd

PARQUET = ".parquet"
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
            read, has no rows, or a cell does not suit its column. The message names the column.
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
    """Whether a file is a Parquet file, by its name."""
    return path.suffix.lower() == PARQUET


def _check_parquet(path: Path) -> None:
    """Raise ValueError unless a library with which pandas reads Parquet is installed."""
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
        read[place] = own if column is None else cells_of_text(own, column, style)
    frame = pd.DataFrame(read)
    frame.columns = [by_text[str(n)].name if str(n) in by_text else n for n in cells.columns]
    return frame


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
