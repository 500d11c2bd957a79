"""`Source`: rows in files, read range by range, with a check that the files have not changed.

A source is opened once, when its rows are counted. Workers get a copy of what was found
then, and open the files again. Every read checks the size and times of the files that it touched.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of the last changes of content and of status in nanoseconds, and inode.

A program that changes a file can set the first time back, as `cp -p` does, but not the second.
"""


class SourceChangedError(RuntimeError):
    """A file of the source has changed since the run began."""


@dataclass(frozen=True, eq=False)
class Read:
    """The result of reading a range of rows.

    Attributes:
        cells: One row for each that could be read: numbers of shape (n, ...) with NaN where
            missing, or a DataFrame.
        rows: The numbers of these rows in the source, (n,).
        bad: Why each of the other rows could not be read, by number.
        kept: Columns to be copied to the results, if any were asked for.
        integers: The columns of `Source.integers`, as they are in the file, if there are any.
    """

    cells: "np.ndarray | pd.DataFrame"
    rows: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    kept: "pa.Table | None" = None
    integers: "pa.Table | None" = None


class Source(ABC):
    """Rows in files, in a fixed order, counted from 0.

    Attributes:
        kind: What messages and the manifest call it.
        path: As the user gave it.
        num_rows: Number of rows.
        name: Name of the array within the file, if there are several.
        names: Names of the columns that the model gets, if the file has any.
        integers: Arrow types of columns with integers beyond 2**53, which float64 rounds.
    """

    kind: ClassVar[str]
    num_rows: int
    name: str | None = None
    names: tuple[str | int, ...] | None = None
    integers: Mapping[str | int, Any] = MappingProxyType({})

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self.path = path
        self.files = list(files)
        self._stamps = [stamp_of(file) for file in self.files]

    @abstractmethod
    def _read(self, start: int, stop: int) -> Read:
        """Read rows start to stop."""

    def _touched(self, start: int, stop: int) -> Sequence[int]:
        """Which of the files contain these rows; by default all of them."""
        return range(len(self.files))

    def cells_of(self, cells: "pd.DataFrame", first: int) -> "pd.DataFrame":
        """Convert cells from text to what the columns contain; by default, return them as they are.

        Args:
            cells: Some of the rows that were read.
            first: Number of the first of them.
        Raises:
            ValueError: A cell cannot be converted.
        """
        return cells

    def read(self, start: int, stop: int) -> Read:
        """Read rows start to stop, where start is a multiple of the number of rows per shard.

        Raises:
            ValueError: They cannot be read.
            SourceChangedError: A file that contains them has changed since the source was opened.
        """
        try:
            found = self._read(start, stop)
        except (OSError, ValueError, EOFError) as error:
            self._check_same(start, stop)
            raise ValueError(
                f"cannot read rows {start} to {stop - 1} of {self.path}: {error}"
            ) from error
        self._check_same(start, stop)
        return found

    def stamp(self, start: int, stop: int) -> list[list[int]]:
        """Stamps, taken on opening, of the files that contain these rows."""
        return [list(self._stamps[place]) for place in self._touched(start, stop)]

    def _check_same(self, start: int, stop: int) -> None:
        for place in self._touched(start, stop):
            file, was = self.files[place], self._stamps[place]
            try:
                now = stamp_of(file)
            except ValueError:
                now = None
            if now is None or now[:3] != was[:3]:  # machines may number a shared file differently
                raise SourceChangedError(
                    f"expected {file} as it was when the run began, but it "
                    f"{'is gone' if now is None else 'has changed'}; finished shards are kept if "
                    "their rows are still the same when you run again"
                )

    def describe(self) -> dict[str, Any]:
        """The source for the manifest."""
        within = f":{self.name}" if self.name else ""
        return {"kind": self.kind, "path": f"{self.path}{within}", "rows": self.num_rows}


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file, or of all files in a folder together.

    Raises:
        ValueError: There is no such file.
    """
    try:
        found = path.stat()
        if not path.is_dir():
            return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        size = modified = changed = inodes = 0
        for folder, _, names in os.walk(path):
            for name in names:
                own = os.stat(os.path.join(folder, name))
                size, inodes = size + own.st_size, inodes ^ own.st_ino
                modified = max(modified, own.st_mtime_ns)
                changed = max(changed, own.st_ctime_ns)
        return size, modified, changed, inodes
    except OSError as error:
        raise ValueError(f"expected data in {path}: {error.strerror}") from None


def needs(what: str, module: str) -> ImportError:
    """The error for a library that is not installed."""
    return ImportError(
        f"expected {module} for {what}, but it is not installed; pip install 'crosscoding[batch]'"
    )
