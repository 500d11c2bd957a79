"""Rows of Parquet files: one file, or a folder of them in the order of their names."""

from pathlib import Path
from typing import Any

import numpy as np

from crosscoding.batch.sources.base import Read, Source, needs
from crosscoding.columns import Table
from crosscoding.errors import counted

SUFFIX = ".parquet"
_WIDE = 2**53  # up to here, float64 represents every integer


class ParquetFiles(Source):
    """A .parquet file, or a folder of such files with the same columns.

    Args:
        path: The file or folder.
        table: The model's columns; None: its elements are all columns of the file, in order.
        width: Number of columns that a model without a table expects.
        keep: Columns that are copied to the results.
    Raises:
        ImportError: pyarrow is not installed.
        ValueError: There are no rows, or columns that the model needs are missing.
    """

    kind = "parquet"

    def __init__(
        self, path: Path, table: Table | None, width: int, keep: tuple[str, ...] = ()
    ) -> None:
        files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
        super().__init__(path, files)
        self._table, self._keep = table, keep
        opened = [_opened(file) for file in files]
        schema = opened[0].schema_arrow
        for file, other in zip(files, opened, strict=True):
            if other.schema_arrow.names != schema.names:
                raise ValueError(f"expected the columns of {files[0].name} in {file}, got others")
        sizes = [self._group_sizes(other) for other in opened]
        self._ends = np.cumsum([sum(own) for own in sizes])
        self._group_ends = [np.cumsum(own) for own in sizes]
        self.num_rows = int(self._ends[-1])
        self._set_columns(schema, width)
        self._kept_schema = self._joined([other.schema_arrow for other in opened])
        self.integers = {
            name: schema.field(own).type
            for own, name in self._columns.items()
            if any(_has_wide_integers(other, own) for other in opened)
        }
        if not self.num_rows:
            raise ValueError(f"expected rows in {path}, got none")
        self._cached: tuple[tuple[int, int], Any] | None = None

    @staticmethod
    def _group_sizes(opened: Any) -> list[int]:
        groups = range(opened.metadata.num_row_groups)
        return [opened.metadata.row_group(group).num_rows for group in groups]

    def _set_columns(self, schema: Any, width: int) -> None:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]

        for name in self._keep:
            if name not in schema.names:
                raise ValueError(f"expected a column {name!r} to keep in {self.path}, got none")
        by_text = {str(n): n for n in self._table.names} if self._table is not None else {}
        own: list[str] = [name for name in schema.names if name not in self._keep]
        self._columns = {name: by_text.get(name, name) for name in own}
        self.names = tuple(self._columns.values())
        if self._table is not None:
            return
        for name in own:
            kind = schema.field(name).type
            if not (
                pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            ):
                raise ValueError(f"expected numbers in column {name!r} of {self.path}, got {kind}")
        if len(own) != width:
            raise ValueError(
                f"expected {counted(width, 'column')} in {self.path}, one for each element of the "
                f"model's data, got {len(own)}; others can be copied to the results with keep"
            )

    def _joined(self, schemas: list[Any]) -> Any:
        """The schema of kept columns, whose types may differ between files: int32 and int64."""
        import pyarrow as pa  # pyright: ignore[reportMissingImports]

        own = [pa.schema([schema.field(name) for name in self._keep]) for schema in schemas]
        try:
            return pa.unify_schemas(own, promote_options="permissive").remove_metadata()
        except pa.ArrowException as error:
            raise ValueError(
                f"expected kept columns of one type in all files of {self.path}: {error}"
            ) from None

    def _touched(self, start: int, stop: int) -> range:
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        return range(int(first), int(last) + 1)

    def _read(self, start: int, stop: int) -> Read:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]

        pieces = []
        for place in self._touched(start, stop):
            begin = 0 if not place else int(self._ends[place - 1])
            pieces += self._of_file(place, max(start - begin, 0), stop - begin)
        table = pa.concat_tables(pieces, promote_options="permissive")
        rows = np.arange(start, stop)
        kept = table.select(self._keep).cast(self._kept_schema) if self._keep else None
        table = table.select(list(self._columns))
        integers = None
        if self.integers:
            own = dict(zip(self._columns.values(), table.columns, strict=True))
            integers = pa.table({str(name): own[name].cast(t) for name, t in self.integers.items()})
        frame = table.to_pandas().rename(columns=self._columns)
        if self._table is not None:
            return Read(frame, rows, kept=kept, integers=integers)
        numbers = frame.to_numpy(dtype="float64", na_value=np.nan)
        return Read(numbers, rows, kept=kept, integers=integers)

    def _of_file(self, place: int, start: int, stop: int) -> list[Any]:
        """Rows start to stop of a file, as tables, one for each row group."""
        ends, found = self._group_ends[place], []
        for group, end in enumerate(ends):
            begin = int(ends[group - 1]) if group else 0
            low, high = max(start, begin), min(stop, int(end))
            if low < high:
                found.append(self._group(place, group).slice(low - begin, high - low))
        return found

    def _group(self, place: int, group: int) -> Any:
        """A row group; the last one is cached, as shards are usually smaller."""
        if self._cached is None or self._cached[0] != (place, group):
            names = [*self._columns, *self._keep]
            with _opened(self.files[place]) as opened:
                self._cached = (place, group), opened.read_row_group(group, columns=names)
        return self._cached[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}


def _has_wide_integers(opened: Any, name: str) -> bool:
    """Whether a column has integers beyond 2**53, by its statistics or, if none, by its cells."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.compute as pc  # pyright: ignore[reportMissingImports]

    kind = opened.schema_arrow.field(name).type
    if not pa.types.is_int64(kind) and not pa.types.is_uint64(kind):
        return False
    for group in range(opened.metadata.num_row_groups):
        row_group = opened.metadata.row_group(group)
        chunks = (row_group.column(place) for place in range(row_group.num_columns))
        statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == name)
        if statistics is not None and statistics.has_min_max:
            ends = statistics.min, statistics.max
        else:
            cells = opened.read_row_group(group, columns=[name]).column(0)
            ends = pc.call_function("min_max", [cells]).as_py().values()
        if any(end is not None and abs(end) > _WIDE for end in ends):
            return True
    return False


def _opened(path: Path) -> Any:
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise needs("Parquet", "pyarrow") from None
    try:
        return ParquetFile(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path} as Parquet: {error}") from None
