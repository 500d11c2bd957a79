"""Finds the line of a text file whose quotes do not match, so that a message can name it."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from crosscoding.formats.table_style import TableStyle

_PIECE = 2**22  # bytes that are read at once
_QUOTES = "a quote is not closed, or is inside a cell that is not quoted"
_BREAKS = "lines do not end in line feeds"


def fault_of_lines(path: Path, begin: int, style: TableStyle) -> str:
    """What is wrong with the first row whose quotes do not match, with its line number.

    Args:
        path: The file.
        begin: Offset in bytes at which a row begins; all rows before it are fine.
        style: How the file is written.
    """
    number = 1 + _num_line_feeds(path, begin)
    with path.open("rb") as file:
        file.seek(begin)
        lines = _Lines(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""))
        delimiter = style.delimiter or ","
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter == " ")
        while True:
            first, lines.num_quotes = number + lines.num, 0
            try:
                next(reader)
            except StopIteration:
                return _BREAKS
            except csv.Error as error:
                return f"line {first}: {error}"
            if lines.num_quotes % 2:
                return f"line {first}: {_QUOTES}"


class _Lines:
    """Lines of a file, counted, and the quotes in them."""

    def __init__(self, file: TextIO) -> None:
        self.num = self.num_quotes = 0
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.num += 1
        self.num_quotes += line.count('"')
        return line


def _num_line_feeds(path: Path, stop: int) -> int:
    """The number of line feeds in the first `stop` bytes of a file."""
    num = 0
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE, stop - file.tell())):
            num += piece.count(b"\n")
    return num
