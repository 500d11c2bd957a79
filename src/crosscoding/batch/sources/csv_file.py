"""Rows of a text file: one row per line, or several lines if a quoted cell has line breaks.

One pass finds where each shard begins, so that any range can be read later by itself. A line break
ends a row if the number of quotes before it is even, which holds for everything that CSV writers
produce, as they double quotes within cells.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crosscoding.batch.sources.base import Read, Source
from crosscoding.batch.sources.csv_faults import fault_of_lines
from crosscoding.columns import Table
from crosscoding.columns.frames import column_of
from crosscoding.errors import counted
from crosscoding.formats.table_headers import check_index, find_header
from crosscoding.formats.table_style import TableStyle
from crosscoding.formats.text_cells import cells_of_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

SUFFIXES = (".csv", ".tsv", ".txt")
_PIECE = 2**22  # bytes that are scanned at once
_FIRST_LINES = 1000  # rows that decide whether the first line names the columns
_SPACES = " \t\r\n\v\f"
_MARK = "\ufeff"  # at the start of files from Excel
_UNREADABLE = "\ufffd"  # in place of bytes that are not UTF-8
_QUOTE, _LINE_BREAK = ord('"'), ord("\n")


class CsvFile(Source):
    """A .csv, .tsv or .txt file.

    Args:
        path: The file.
        style: How it is written.
        table: The model's columns, which say what text means; None: all cells are numbers.
        width: Number of columns that a model without a table expects.
        every: Number of rows of a shard.
        keep: Columns that are copied to the results.
    Raises:
        ValueError: The file is empty, its first line may be names or a row, or columns that
            the model needs are missing.
    """

    kind = "csv"

    def __init__(
        self,
        path: Path,
        style: TableStyle,
        table: Table | None,
        width: int,
        every: int,
        keep: tuple[str, ...] = (),
    ) -> None:
        super().__init__(path, [path])
        self._style, self._table, self._every, self._keep = (
            style.of(path.suffix.lower()),
            table,
            every,
            keep,
        )
        self._set_columns(width)
        has_header = self._header is not None
        self._offsets, self.num_rows = _row_offsets(path, int(has_header), every, self._style)
        if not self.num_rows:
            raise ValueError(f"expected rows in {path}, got none")

    def _set_columns(self, width: int) -> None:
        """Names of all columns, and of those that the model gets."""
        first = list(self._first_rows())
        if not first:
            raise ValueError(f"expected a table in {self.path}, got an empty file")
        table, header = self._table, None
        if table is None:
            if find_header(first[0], first[1:], self._style, str(self.path))[0]:
                check_index(first[0], first[1:], self._style, str(self.path))
                header = tuple(first[0])
        elif self._style.header is not False:
            by_text = {str(name): name for name in table.names}
            header = tuple(by_text.get(cell, cell) for cell in first[0])
        self._header = header
        self._width = len(first[0])
        missing = [name for name in self._keep if name not in (header or ())]
        if missing:
            raise ValueError(f"expected a column {missing[0]!r} to keep in {self.path}, got none")
        if header is not None and len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ValueError(
                f"expected columns of different names in {self.path}, got two called {twice!r}"
            )
        self.names = None if header is None else tuple(n for n in header if n not in self._keep)
        own = self._width - len(self._keep)
        wanted = len(table) if table is not None and header is None else width
        if (table is None or header is None) and own != wanted:
            raise ValueError(
                f"expected {counted(wanted, 'column')} in {self.path}, as the model has, got "
                f"{own}; other columns can be copied to the results by name, with keep"
            )
        if table is not None:
            self.names = table.names if header is None else self.names

    def _first_rows(self) -> Iterator[list[str]]:
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            try:
                for number, cells in enumerate(_rows_in(file, self._style)):
                    if number > _FIRST_LINES:
                        return
                    yield cells
            except csv.Error:
                fault = fault_of_lines(self.path, 0, self._style)
                raise ValueError(f"cannot read the table in {self.path}: {fault}") from None

    def _read(self, start: int, stop: int) -> Read:
        import pandas as pd

        lines = self._lines(start, stop)
        why = {n: self._fault(cells) for n, cells in enumerate(lines)}
        places = [n for n in why if not why[n]]
        bad = {start + n: fault for n, fault in why.items() if fault}
        good = [lines[place] for place in places]
        columns = range(self._width) if self._header is None else self._header
        if self._header is None and self._table is not None:
            columns = self._table.names
        frame = pd.DataFrame(good, columns=list(columns), dtype=object)
        kept = self._kept(frame) if self._keep else None
        frame = frame.drop(columns=list(self._keep))
        rows = np.array(places, dtype=np.int64) + start
        if self._table is not None:
            return Read(frame, rows, bad, kept)
        numbers, fine = self._numbers(frame, rows, bad)
        return Read(numbers[fine], rows[fine], bad, None if kept is None else kept.filter(fine))

    def _kept(self, frame: "pd.DataFrame") -> "pa.Table":
        import pyarrow as pa  # pyright: ignore[reportMissingImports]

        return pa.table({name: pa.array(frame[name], pa.string()) for name in self._keep})

    def _fault(self, cells: list[str]) -> str:
        """Why the cells of a line do not form a row; "" if they do."""
        if len(cells) != self._width:
            return f"expected {counted(self._width, 'cell')}, got {len(cells)}"
        unreadable = any(_UNREADABLE in cell for cell in cells)
        return "expected text in UTF-8, got other bytes" if unreadable else ""

    def _lines(self, start: int, stop: int) -> list[list[str]]:
        """The cells of each row."""
        shard, last = start // self._every, -(-stop // self._every)
        if start % self._every:
            raise ValueError(f"expected a start at a multiple of {self._every}, got {start}")
        with self.path.open("rb") as file:
            file.seek(self._offsets[shard])
            text = file.read(self._offsets[last] - self._offsets[shard])
        content = text.decode(errors="replace").removeprefix(_MARK)
        try:
            lines = list(_rows_in(io.StringIO(content, newline=""), self._style))
        except csv.Error:
            lines = []
        if len(lines) != min(last * self._every, self.num_rows) - start:
            raise ValueError(fault_of_lines(self.path, int(self._offsets[shard]), self._style))
        return lines[: stop - start]

    def _numbers(
        self, frame: "pd.DataFrame", rows: np.ndarray, bad: dict[int, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells as numbers, (n, columns), and which rows are numbers only; others go into `bad`."""
        found = np.full(frame.shape, np.nan)
        fine = np.ones(len(frame), dtype=bool)
        for place, name in enumerate(frame.columns):
            read = [self._style.number(cell) for cell in frame[name]]
            wrong = [n for n, number in enumerate(read) if number is None]
            for n in wrong:
                fine[n] = False
                cell = frame[name].iloc[n]
                label = f"column {name!r}" if self.names else f"column {place + 1}"
                bad.setdefault(
                    int(rows[n]),
                    f"{label}: expected a number, or an empty cell, got {cell[:40]!r}",
                )
            found[:, place] = [np.nan if number is None else number for number in read]
        return found, fine

    def cells_of(self, cells: "pd.DataFrame", first: int) -> "pd.DataFrame":
        import pandas as pd

        assert self._table is not None  # cells of a source without a table are numbers
        known = {column.name: column for column in self._table.columns}
        read = {
            name: cells_of_text(column_of(cells, name), known[name], self._style, first)
            if name in known
            else cells[name]
            for name in cells.columns
        }
        made = {place: column.reset_index(drop=True) for place, column in enumerate(read.values())}
        frame = pd.DataFrame(made)
        frame.columns = list(read)
        return frame


def _rows_in(lines: Iterable[str], style: TableStyle) -> Iterator[list[str]]:
    """The cells of each line that is not blank."""
    if style.delimiter == " ":
        lines = (line.strip(" ") for line in lines)
    reader = csv.reader(
        lines, delimiter=style.delimiter or ",", skipinitialspace=style.delimiter == " "
    )
    return (cells for cells in reader if cells and not (len(cells) == 1 and _is_blank(cells[0])))


def _is_blank(cell: str) -> bool:
    return cell != "" and not cell.strip(_SPACES)


class _RowCounter:
    """Finds where shards begin in a file that is scanned piece by piece.

    Args:
        skipped: Number of rows at its start that do not count, as a header.
        every: Number of rows of a shard.
        delimiter: The delimiter; unless it is a space, it does not count as blank.
    """

    def __init__(self, skipped: int, every: int, delimiter: str) -> None:
        self.num, self._every = -skipped, every
        self._offsets: list[np.ndarray] = []
        self._begin = self._base = self._quotes = self._content = 0
        blank = [ord(space) for space in _SPACES if space != delimiter or space == " "]
        self._is_content = np.ones(256, dtype=np.int64)
        self._is_content[blank] = 0

    @property
    def is_within_quotes(self) -> bool:
        """Whether a quote was opened, and not closed yet."""
        return self._quotes % 2 == 1

    def scan(self, piece: np.ndarray) -> None:
        """Scan the next bytes, uint8."""
        breaks = np.flatnonzero(piece == _LINE_BREAK)
        quotes = np.flatnonzero(piece == _QUOTE)
        even = (np.searchsorted(quotes, breaks) + self._quotes) % 2 == 0
        ends = breaks[even] + 1
        content = np.concatenate([[0], self._is_content[piece].cumsum()])
        there = np.diff(content[ends], prepend=-self._content)
        begins = np.concatenate([[self._begin], ends[:-1] + self._base])[: len(ends)]
        self._count(begins[there > 0])
        self._quotes += len(quotes)
        if len(ends):
            self._begin, self._content = self._base + int(ends[-1]), -int(content[ends[-1]])
        self._content += int(content[-1])
        self._base += len(piece)

    def _count(self, begins: np.ndarray) -> None:
        numbers = self.num + np.arange(len(begins))
        self._offsets.append(begins[(numbers >= 0) & (numbers % self._every == 0)])
        self.num += len(begins)

    def end(self) -> np.ndarray:
        """Where each shard begins, and the end of the file."""
        if self._content > 0:  # the last line has no line break
            self._count(np.array([self._begin]))
        return np.concatenate([*self._offsets, [self._base]]).astype(np.int64)


def _row_offsets(path: Path, skipped: int, every: int, style: TableStyle) -> tuple[np.ndarray, int]:
    """Offsets at which shards begin, followed by the end of the file; and the number of rows.

    Raises:
        ValueError: A quote is not closed.
    """
    counter = _RowCounter(skipped, every, style.delimiter or ",")
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            counter.scan(np.frombuffer(piece, dtype=np.uint8))
    if counter.is_within_quotes:
        raise ValueError(f"cannot read the table in {path}: {fault_of_lines(path, 0, style)}")
    offsets = counter.end()
    return offsets, max(counter.num, 0)
