"""Tables as text: a line a datum, a column an element; the first line may name the columns.

It names them where it holds words and no number, among which a word is a mistake, not a name; or
where `headers` takes its numbers for names.
"""

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosscoding.cli.table_headers import check_index, find_header
from crosscoding.cli.table_style import TableStyle
from crosscoding.errors import counted

SUFFIXES = (".csv", ".tsv", ".txt")
STDIN = "-"
_SHOWN = 8  # names of columns, in an error

_Line = tuple[int, list[str]]


@dataclass(frozen=True, eq=False)
class DataTable:
    """A table of numbers.

    Attributes:
        rows: The numbers, (N, columns), NaN where one is missing.
        names: Of the columns, if they have some.
        lines: In which line of the file each row is.
        style: How it is written, its delimiter as it was found.
        name: The file's, for messages.
        notes: What was assumed, for the user to read.
    """

    rows: np.ndarray
    names: list[str] | None
    lines: list[int]
    style: TableStyle
    name: str
    notes: tuple[str, ...] = ()

    def column(self, index: int) -> str:
        """A column in words."""
        return _column(index, self.names)


def is_table(path: Path) -> bool:
    """Whether a table is expected at a path: a file of text, or the standard input."""
    return str(path) == STDIN or path.suffix.lower() in SUFFIXES


def read_table(path: Path, style: TableStyle | None = None) -> DataTable:
    """The table in a file, or on the standard input where the path is `-`.

    Raises:
        ValueError: It cannot be read, has no rows, a line has another length, what stands there is
            no number, or it is not plain whether the first line names the columns.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    style = (style or TableStyle()).of(path.suffix.lower())
    lines = _lines(path, name, style)
    if not lines:
        raise ValueError(f"expected a table in {name}, got no rows: it is empty")
    cells = [each for _, each in lines]
    named, note = find_header(cells[0], cells[1:], style, name)
    names = lines.pop(0)[1] if named else None
    if names is not None and not lines:
        other = style.other_delimiter(style.joined(names))
        raise ValueError(
            f"expected rows in {name}, got no rows below the names of the columns, "
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
        notes.append(f"nothing is observed in {number} of {name}, line {nothing[0]} first")
    return DataTable(rows, names, [line for line, _ in lines], style, name, tuple(notes))


def write_table(
    path: Path, rows: np.ndarray, names: Sequence[str] | None, style: TableStyle
) -> None:
    """Write rows (N, columns) in full precision, below the columns' names if they have some.

    A cell is left empty where there is NaN.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=style.delimiter or ",")
        if names is not None:
            writer.writerow(names)
        writer.writerows(map(style.text, row) for row in rows)


def _lines(path: Path, name: str, style: TableStyle) -> list[_Line]:
    """The cells of each line that has some, and its number."""
    try:
        content = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
        text = content.decode("utf-8-sig")
        if style.delimiter == " ":
            text = "\n".join(line.strip() for line in text.splitlines())
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=style.delimiter or ",",
            skipinitialspace=style.delimiter == " ",  # of which there may be many
        )
        return [(reader.line_num, cells) for cells in reader if not _is_blank(cells)]
    except UnicodeDecodeError:
        raise ValueError(
            f"expected a table in {name}, and it cannot be read: it is no text in UTF-8; save it "
            "as CSV in that encoding"
        ) from None
    except (csv.Error, OSError) as error:
        raise ValueError(f"expected a table in {name}, and it cannot be read: {error}") from None


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and cells[0].isspace())


def _check_widths(
    lines: Sequence[_Line], width: int, named: bool, name: str, style: TableStyle
) -> None:
    """Raise ValueError unless each line has as many cells as the first."""
    for line, cells in lines:
        if len(cells) != width:
            advice = style.other_delimiter(style.joined(cells))
            if not advice and named and all(len(each) == width + 1 for _, each in lines):
                advice = "is the first, which has no name, an index? Then leave it out"
            raise ValueError(
                f"expected {counted(width, 'column')} in line {line} of {name}, as in its first "
                f"line, got {len(cells)}; {advice or 'leave a cell empty where a value is missing'}"
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
        return ValueError(
            f"expected a finite number {where}, or nothing where it is missing, got {cell[:40]!r}"
        )
    advice = style.advice(cell)
    if line == 1 and names is None:
        advice += "; or give --header if this line names the columns"
    if names is not None and index == 0 and not names[0].strip():
        advice = (
            "is this column, which has no name, the index of pandas? Then leave it out, with "
            "to_csv(..., index=False)"
        )
    return ValueError(
        f"expected a number {where}, or nothing where it is missing, got {cell[:40]!r}; {advice}"
    )


def _column(index: int, names: Sequence[str] | None) -> str:
    return f"column {index + 1}" + (f" ({names[index]!r})" if names else "")


def shown(names: Sequence[str]) -> str:
    """The first of some names, in words."""
    return ", ".join([*names[:_SHOWN], *["…"] * (len(names) > _SHOWN)])
