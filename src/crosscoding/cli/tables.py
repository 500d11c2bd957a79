"""Tables as CSV: a line a datum, a column an element; the first line may name the columns."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


def read_table(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """The numbers of a table, (N, columns), NaN where one is missing; and its columns' names.

    Raises:
        ValueError: It cannot be read, a line has another length, or what stands there is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a table in {path}, and it cannot be read: {error}") from None
    names = None
    if lines and not all(_is_number(cell) for cell in lines[0][1]):
        names = lines.pop(0)[1]
    width = len(names or (lines[0][1] if lines else []))
    rows = np.empty((len(lines), width))
    for row, (line, cells) in zip(rows, lines, strict=True):
        if len(cells) != width:
            raise ValueError(
                f"expected {width} columns in line {line} of {path}, got {len(cells)}; leave a "
                "cell empty where a value is missing"
            )
        for column, cell in enumerate(cells):
            if not _is_number(cell):
                raise ValueError(
                    f"expected a number in line {line}, column {column + 1} of {path}, or nothing "
                    f"where it is missing, got {cell[:40]!r}; write classes as numbers from 0"
                )
            row[column] = np.nan if cell.strip().lower() in _MISSING else float(cell)
    return rows, names


def write_table(path: Path, rows: np.ndarray, names: Sequence[str] | None) -> None:
    """Write rows (N, columns) in full precision, below the columns' names if they have some."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if names is not None:
            writer.writerow(names)
        writer.writerows(map(str, row) for row in rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in _MISSING
    return True
