"""Opens the source at a path."""

from pathlib import Path

import numpy as np

from crosscoding.batch.sources import array_files, csv_file, parquet_files
from crosscoding.batch.sources.array_files import NumpyFile, ZarrArray
from crosscoding.batch.sources.base import Source
from crosscoding.batch.sources.csv_file import CsvFile
from crosscoding.batch.sources.parquet_files import ParquetFiles
from crosscoding.columns import Table
from crosscoding.errors import unknown_name
from crosscoding.formats.table_style import TableStyle
from crosscoding.model.vae import VAE

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def open_source(
    words: str, vae: VAE, style: TableStyle, every: int, keep: tuple[str, ...]
) -> Source:
    """Open the source at a path.

    Args:
        words: FILE.csv, .tsv, .txt, .parquet, .npy, .npz, a Zarr folder, or a folder of .parquet
            files or pictures; :NAME may follow for one array in a .npz file or Zarr group.
        vae: The model.
        style: How a text file is written.
        every: Number of rows of a shard.
        keep: Columns that are copied to the results.
    Raises:
        ImportError: A library that reads it is not installed.
        ValueError: There is no such source, or it does not fit the model.
    """
    path, name = _parsed(words)
    if not path.exists():
        raise ValueError(f"expected data in {words}, but there is no such file or folder")
    found = _opened(path, name, vae, style, every, keep)
    if found.kind not in ("csv", "parquet"):
        if keep:
            raise ValueError(
                f"expected columns, here {keep[0]!r}, only from CSV or Parquet, got {path}"
            )
        if vae.table is not None:
            raise ValueError(
                f"expected CSV or Parquet for a model with a table, got {path}: its columns are "
                "found by name"
            )
    if vae.table is not None:
        _check_columns(found, vae.table)
    if found.kind != "csv" and style != TableStyle():
        raise ValueError(f"expected a delimiter, decimal or header only for CSV, got {path}")
    return found


def open_array(words: str, shape: tuple[int, ...]) -> Source:
    """Open an array with a row for each row of a source.

    Args:
        words: FILE.npy, FILE.npz or a Zarr folder; :NAME may follow.
        shape: Shape of a row.
    Raises:
        ImportError: A library that reads it is not installed.
        ValueError: There is no such array, or its rows have another shape.
    """
    path, name = _parsed(words)
    if not is_array(words):
        raise ValueError(
            f"expected an array in {words}, with a row for each row of the source: an existing "
            ".npy or .npz file, or a Zarr folder"
        )
    kind = NumpyFile if path.suffix.lower() in array_files.SUFFIXES else ZarrArray
    return kind(path, name, shape)


def is_array(words: str) -> bool:
    """Whether there is a .npy or .npz file, or a Zarr folder, of this name, as for `open_array`."""
    path, _ = _parsed(words)
    if path.is_dir():
        return any((path / file).exists() for file in _ZARR_FILES)
    return path.suffix.lower() in array_files.SUFFIXES and path.exists()


def _parsed(words: str) -> tuple[Path, str | None]:
    """A path, and the name after its colon, if it has one."""
    path, name = Path(words), None
    if not path.exists() and ":" in words:
        path, name = Path(words.rpartition(":")[0]), words.rpartition(":")[2]
    return path, name


def _opened(
    path: Path, name: str | None, vae: VAE, style: TableStyle, every: int, keep: tuple[str, ...]
) -> Source:
    suffix, shape = path.suffix.lower(), tuple(vae.data_shape)
    if suffix in array_files.SUFFIXES:
        return NumpyFile(path, name, shape)
    if path.is_dir() and is_array(str(path)):
        return ZarrArray(path, name, shape)
    if name is not None:
        raise ValueError(f"expected :{name} only after a .npz file or a Zarr group, got {path}")
    if suffix in csv_file.SUFFIXES and path.is_file():
        return CsvFile(path, style, vae.table, vae.data_size, every, keep)
    if suffix == parquet_files.SUFFIX or (path.is_dir() and any(path.glob("*.parquet"))):
        return ParquetFiles(path, vae.table, vae.data_size, keep)
    if path.is_dir():
        return _pictures(path, vae)
    raise ValueError(
        "expected .csv, .tsv, .txt, .parquet, .npy or .npz, a Zarr folder, or a folder of Parquet "
        f"files or pictures, got {path}"
    )


def _pictures(path: Path, vae: VAE) -> Source:
    from crosscoding.batch.sources.pictures import Pictures  # which loads Pillow
    from crosscoding.formats.pixels import Pixels

    if not Pixels.suit(vae):
        raise ValueError(
            f"expected a folder of .parquet files in {path}; pictures are only for models of grey "
            f"or colour pictures, not for data of shape {tuple(vae.data_shape)}"
        )
    return Pictures(path, Pixels.of(vae))


def _check_columns(source: Source, table: Table) -> None:
    """Raise ValueError if a source has columns that the table lacks, or none of the table's."""
    names = source.names or ()
    for name in names:
        if name not in table.names:
            found = unknown_name("column", str(name), map(str, table.names))
            raise ValueError(
                f"{found} in {source.path}; drop or rename it, or keep it beside the answers: "
                f"keep=[{name!r}], on the command line --keep {name}"
            )
    if not names:
        raise ValueError(f"expected a column of the model's table in {source.path}, got none")


def holds_pixels(source: Source, vae: VAE, every: int) -> bool:
    """Whether an array holds pixels from 0 to 255, to be rescaled as in `Pixels.of`.

    It does if its numbers are bytes, some above 1, and the model's data are pictures.
    """
    if source.kind not in ("numpy", "zarr"):
        return False
    from crosscoding.formats.pixels import Pixels  # which loads Pillow

    if not Pixels.suit(vae):
        return False
    for start in range(0, source.num_rows, every):
        cells = source.read(start, min(start + every, source.num_rows)).cells
        assert isinstance(cells, np.ndarray)
        if cells.dtype != np.uint8:
            return False
        if (cells > 1).any():
            return True
    return False
