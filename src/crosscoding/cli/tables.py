"""Tables as CSV: a line a datum, a column an element; the first line may name the columns.

It names them where it holds words and no number: among numbers a word is a mistake, not a name.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


def read_table(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """The numbers of a table, (N, columns), NaN where one is missing; and its columns' names.

    Raises:
        ValueError: It cannot be read, a line has another length, or what stands there is no number.
    """
    lines = list(_lines(path))
    names = lines.pop(0)[1] if lines and _are_names(lines[0][1]) else None
    width = len(names or (lines[0][1] if lines else []))
    rows = np.empty((len(lines), width))
    for row, (line, cells) in zip(rows, lines, strict=True):
        if len(cells) != width:
            raise ValueError(
                f"expected {width} columns in line {line} of {path}, got {len(cells)}; leave a "
                "cell empty where a value is missing"
            )
        for column, cell in enumerate(cells):
            if not (_is_missing(cell) or _is_number(cell)):
                raise ValueError(
                    f"expected a number in line {line}, column {column + 1} of {path}, or nothing "
                    f"where it is missing, got {cell[:40]!r}; write classes as numbers from 0"
                )
            row[column] = np.nan if _is_missing(cell) else float(cell)
    return rows, names


def read_names(path: Path) -> list[str] | None:
    """The names of a table's columns, if it has some; errors as `read_table`."""
    _, cells = next(_lines(path), (0, []))
    return cells if _are_names(cells) else None


def write_table(path: Path, rows: np.ndarray, names: Sequence[str] | None) -> None:
    """Write rows (N, columns) in full precision, below the columns' names if they have some."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if names is not None:
            writer.writerow(names)
        writer.writerows(map(str, row) for row in rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that has some, and its number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a table in {path}, and it cannot be read: {error}") from None


def _are_names(cells: list[str]) -> bool:
    return not (any(map(_is_number, cells)) or all(map(_is_missing, cells)))


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in _MISSING


def _is_number(cell: str) -> bool:
    """Whether it is one, written as other programs read it too: without _ between digits."""
    try:
        float(cell)
    except ValueError:
        return False
    return not _is_missing(cell) and "_" not in cell
