"""Reads and writes tables as text: one datum per line, one element per column.

The first line names the columns if all its cells are words (a single word among numbers is a
mistake), or if `table_headers` recognises its numbers as names.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosscoding.errors import counted
from crosscoding.formats.table_headers import check_index, find_header
from crosscoding.formats.table_style import TableStyle

SUFFIXES = (".csv", ".tsv", ".txt")
STDIN = "-"
_SHOWN = 8  # column names listed in an error

_Line = tuple[int, list[str]]


@dataclass(frozen=True, eq=False)
class DataTable:
    """A table of numbers.

    Attributes:
        rows: The numbers, (N, columns), NaN where a value is missing.
        names: The column names, if there are any.
        lines: The line of the file that each row is on.
        style: How the table is written, with the delimiter that was used.
        name: The file's name, for messages.
        notes: Assumptions made while reading, to be shown to the user.
    """

    rows: np.ndarray
    names: list[str] | None
    lines: list[int]
    style: TableStyle
    name: str
    notes: tuple[str, ...] = ()

    def column(self, index: int) -> str:
        """A column's number and name, for messages."""
        return _column(index, self.names)


def is_table(path: Path) -> bool:
    """Whether a path stands for a table: a text file, or - for standard input."""
    return str(path) == STDIN or path.suffix.lower() in SUFFIXES


def read_table(path: Path, style: TableStyle | None = None) -> DataTable:
    """Read a table from a file, or from standard input if the path is `-`.

    Raises:
        ValueError: The table cannot be read, has no rows or lines of different lengths, a cell is
            not a number, or it is unclear whether the first line names the columns.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    style = (style or TableStyle()).of(path.suffix.lower())
    lines = _lines(path, name, style)
    if not lines:
        raise ValueError(f"expected a table in {name}, got an empty file")
    cells = [each for _, each in lines]
    named, note = find_header(cells[0], cells[1:], style, name)
    names = lines.pop(0)[1] if named else None
    if names is not None and not lines:
        other = style.other_delimiter(style.joined(names))
        raise ValueError(
            f"expected rows in {name}, got only column names, "
            f"{shown(names)}; {other or 'if line 1 is a row, give --no-header'}"
        )
    _check_widths(lines, len(cells[0]), names is not None, name, style)
    if names is not None:
        check_index(names, cells[1:], style, name)
    rows = np.array([_numbers(line, each, names, name, style) for line, each in lines])
    notes = [note] if note else []
    nothing = [line for (line, _), row in zip(lines, rows, strict=True) if np.isnan(row).all()]
    if nothing and len(nothing) < len(rows):
        number = counted(len(nothing), "row")
        notes.append(f"no values in {number} of {name}, the first on line {nothing[0]}")
    return DataTable(rows, names, [line for line, _ in lines], style, name, tuple(notes))


def write_table(
    path: Path, rows: np.ndarray, names: Sequence[str] | None, style: TableStyle
) -> None:
    """Write rows (N, columns) in full precision, below the column names if there are any.

    NaN becomes an empty cell.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=style.delimiter or ",")
        if names is not None:
            writer.writerow(names)
        writer.writerows(map(style.text, row) for row in rows)


def _lines(path: Path, name: str, style: TableStyle) -> list[_Line]:
    """The number and the cells of each line that is not blank."""
    try:
        content = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
        text = content.decode("utf-8-sig")
        if style.delimiter == " ":
            text = "\n".join(line.strip() for line in text.splitlines())
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=style.delimiter or ",",
            skipinitialspace=style.delimiter == " ",  # there may be several spaces
        )
        return [(reader.line_num, cells) for cells in reader if not _is_blank(cells)]
    except UnicodeDecodeError:
        raise ValueError(
            f"cannot read the table in {name}: it is not UTF-8 text; save it as CSV in UTF-8"
        ) from None
    except (csv.Error, OSError) as error:
        raise ValueError(f"cannot read the table in {name}: {error}") from None


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and cells[0].isspace())


def _check_widths(
    lines: Sequence[_Line], width: int, named: bool, name: str, style: TableStyle
) -> None:
    """Raise ValueError unless every line has as many cells as the first."""
    for line, cells in lines:
        if len(cells) != width:
            advice = style.other_delimiter(style.joined(cells))
            if not advice and named and all(len(each) == width + 1 for _, each in lines):
                advice = "is the first column, which has no name, an index? Then leave it out"
            raise ValueError(
                f"expected {counted(width, 'column')} in line {line} of {name}, as in its first "
                f"line, got {len(cells)}; {advice or 'leave the cells of missing values empty'}"
            )


def _numbers(
    line: int, cells: Sequence[str], names: Sequence[str] | None, name: str, style: TableStyle
) -> list[float]:
    """The numbers of a line."""
    numbers = [style.number(cell) for cell in cells]
    row = [math.inf if number is None else number for number in numbers]
    for index, number in enumerate(row):
        if math.isinf(number):
            raise _no_number(line, index, cells, names, name, style)
    return row


def _no_number(
    line: int,
    index: int,
    cells: Sequence[str],
    names: Sequence[str] | None,
    name: str,
    style: TableStyle,
) -> ValueError:
    cell = cells[index]
    where = f"in line {line}, {_column(index, names)} of {name}"
    if style.number(cell) is not None:
        return ValueError(f"expected a finite number {where}, or an empty cell, got {cell[:40]!r}")
    advice = style.advice(cell)
    if line == 1 and names is None:
        advice += "; or give --header if this line names the columns"
    if names is not None and index == 0 and not names[0].strip():
        advice = (
            "is this column, which has no name, a pandas index? Then leave it out, with "
            "to_csv(..., index=False)"
        )
    return ValueError(f"expected a number {where}, or an empty cell, got {cell[:40]!r}; {advice}")


def _column(index: int, names: Sequence[str] | None) -> str:
    return f"column {index + 1}" + (f" ({names[index]!r})" if names else "")


def shown(names: Sequence[str]) -> str:
    """The first few names, comma-separated."""
    return ", ".join([*names[:_SHOWN], *["…"] * (len(names) > _SHOWN)])
