"""Reads data from files: NumPy arrays, tables, or a zip of pictures. Nothing is unpickled."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crosscoding.cli.frames import is_parquet, read_frame
from crosscoding.cli.tables import STDIN, DataTable, is_table, read_table, shown
from crosscoding.errors import counted
from crosscoding.formats.numpy_files import header_in, names_in
from crosscoding.formats.pixels import Pixels
from crosscoding.formats.table_headers import UNNAMED, counts
from crosscoding.formats.table_style import TableStyle
from crosscoding.likelihoods import Bernoulli
from crosscoding.model.vae import VAE
from crosscoding.persistence.archives import ARCHIVE_ERRORS
from crosscoding.zoo.training.data import load_pictures

if TYPE_CHECKING:
    import pandas as pd

_MOST_PICTURES = 1000
_MOST_BYTES = 2**32  # of an unpacked array


@dataclass(frozen=True, eq=False)
class Data:
    """The data in a file.

    Attributes:
        values: Shape (N, *data), in the model's dtype; NaN where a value is missing.
        name: The file's name, for messages.
        table: The table that the values come from, if the file is one.
        frame: The rows in the user's units, if both the model and the file have a table.
    """

    values: Tensor
    name: str
    table: DataTable | None = None
    frame: "pd.DataFrame | None" = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Assumptions made while reading, to be shown to the user."""
        return () if self.table is None else self.table.notes

    def place(self, marked: Tensor) -> str:
        """Where in the file the first marked element is, in words."""
        row, *index = marked.nonzero()[0].tolist()
        if self.table is None:
            return f"at index {(row, *index)} of {self.name}"
        column = int(np.ravel_multi_index(index, marked.shape[1:]))
        return f"in line {self.table.lines[row]}, {self.table.column(column)} of {self.name}"

    def check(self, vae: VAE) -> None:
        """Raise ValueError unless every value that is present is valid data for this model."""
        there = ~self.values.isnan()
        values = self.values.where(there, 0.0)
        if (infinite := values.isinf()).any():
            raise ValueError(
                f"expected a finite number {self.place(infinite)}, or none where it is missing, "
                f"got infinity, or more than {torch.finfo(vae.dtype).max:.3g}, the largest number "
                "of the model's dtype"
            )
        wrong = there & ~vae.likelihood.in_support(values)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            try:
                vae.likelihood.check_values(values[row], wrong[row], "values")
            except ValueError as error:
                raise ValueError(f"{self.place(wrong)}: {error}") from None


def read_data(words: str, vae: VAE, style: TableStyle | None = None) -> Data:
    """Read data for a model from a file.

    Pixels from 0 to 255 are rescaled as in `Pixels.of`: those of zipped pictures, and uint8 arrays
    with values above 1 if the model's data are pictures. Other numbers are left as they are.

    Args:
        words: FILE.npy, FILE.npz, FILE.npz:NAME for one array in it, a table FILE.csv, .tsv or
            .txt, or - for a table on standard input (empty cells become NaN), FILE.parquet for a
            model with a table, or FILE.zip of colour pictures.
        vae: The model. An array must have as many elements per row as the model's data.
        style: How a table is written, if options say so.

    Raises:
        ValueError: There is no such file or array, or none that fits the model.
    """
    path, name = Path(words), None
    if not path.is_file() and ":" in words:
        path, name = Path(words.rpartition(":")[0]), words.rpartition(":")[2]
    if words != STDIN and not path.is_file():
        raise ValueError(f"expected data in {path}, but there is no such file")
    if vae.table is not None and (is_table(path) or is_parquet(path)):
        frame = read_frame(path, vae.table, style or TableStyle())
        return Data(vae.table.to_tensors(frame, dtype=vae.dtype)[0], str(path), frame=frame)
    if is_parquet(path):
        raise ValueError(f"expected a model with a table for {path}; convert it to .csv")
    if is_table(path):
        return _of_table(read_table(path, style or TableStyle()), vae)
    if style not in (None, TableStyle()):
        raise ValueError(
            f"expected --delimiter, --decimal and --header only with a table, got {path}"
        )
    if path.suffix.lower() == ".zip":
        return Data(_pictures(path, vae), str(path))
    array = _array(path, name, vae)
    data = torch.from_numpy(array.reshape(len(array), *vae.data_shape))
    pixels = array.dtype == np.uint8 and array.max() > 1  # not merely zeros and ones
    if pixels and (isinstance(vae.likelihood, Bernoulli) or Pixels.suit(vae)):
        return Data(Pixels.of(vae).scaled(data).to(vae.dtype), str(path))
    return Data(data.to(vae.dtype), str(path))


def _of_table(table: DataTable, vae: VAE) -> Data:
    """The rows of a table as data.

    Raises:
        ValueError: The number of columns differs from the number of elements of the model's data.
    """
    rows, size, shape = table.rows, vae.data_size, tuple(vae.data_shape)
    if rows.shape[1] == size:
        values = torch.from_numpy(rows.reshape(len(rows), *shape)).to(vae.dtype)
        return Data(values, table.name, table)
    raise ValueError(
        f"expected {counted(size, 'column')} in {table.name}, as many as the model's data of shape "
        f"{shape} have elements, got {rows.shape[1]}{_named(table)}; "
        f"{_advice_on_width(table, size)}"
    )


def _named(table: DataTable) -> str:
    return f" ({shown([repr(name) for name in table.names])})" if table.names else ""


def _advice_on_width(table: DataTable, size: int) -> str:
    rows, names = table.rows, table.names
    if np.isnan(rows[:, -1]).all() and not (names and names[-1].strip()):
        return "the last column is empty: remove the delimiter at the end of each line"
    if rows.shape[1] == size + 1 and (
        counts(rows[:, 0].tolist()) or (names and names[0] in UNNAMED)
    ):
        return (
            f"is the first, {table.column(0)}, a pandas index? Then leave it out, with "
            "to_csv(..., index=False)"
        )
    return "give the columns that the model was trained on, in the same order"


def _pictures(path: Path, vae: VAE) -> Tensor:
    shape = tuple(vae.data_shape)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"expected a .npy or .npz file with data of shape {shape}: zipped pictures are only "
            "for models of square colour pictures"
        )
    pictures = load_pictures(path, shape[-1], last=_MOST_PICTURES)
    return Pixels.of(vae).scaled(pictures).to(vae.dtype)


def _array(path: Path, name: str | None, vae: VAE) -> np.ndarray:
    """The named array, or the only one that fits the model."""
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz"):
        raise ValueError(
            "expected data as .npy, .npz, .csv, .tsv, .txt or .zip, or - for a table on standard "
            f"input, got {path}; convert or unpack it first"
        )
    arrays = _arrays(path, name)
    fitting = {
        key: array
        for key, array in arrays.items()
        if array.ndim > 1 and len(array) and array[0].size == vae.data_size
        if array.dtype.kind in "fiub"
    }
    if len(fitting) == 1:
        ((key, array),) = fitting.items()
        if suffix == ".npz":
            array = _unpacked(path, key)
        return array.astype(array.dtype.newbyteorder("="))
    there = ", ".join(f"{key or 'one'} {_described(array)}" for key, array in arrays.items())
    wanted = ", ".join(["N", *map(str, vae.data_shape)])
    what = "one array, as FILE.npz:NAME," if fitting else "an array of numbers"
    raise ValueError(f"expected {what} of shape ({wanted}) in {path}, got {there or 'none'}")


def _described(array: np.ndarray) -> str:
    return f"{array.shape}" + (f" of {array.dtype}" if array.dtype.kind not in "fiub" else "")


def _arrays(path: Path, name: str | None) -> dict[str, np.ndarray]:
    """The arrays in a file by name, or only the named one; for .npz, zeros of the same shapes.

    The zeros take no memory, and arrays that are not needed are not unpacked.
    """
    with _reading(path):
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"": np.lib.format.read_array(file, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            names = names_in(archive)
            if name is not None and name not in names:
                raise ValueError(f"there is no array {name}, only {', '.join(names)}")
            return {key: _zeros(archive, key) for key in names if name in (None, key)}


def _zeros(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Zeros with the shape and dtype that an array's header states; they take no memory."""
    header = header_in(archive, name)
    return np.broadcast_to(np.zeros((), header.dtype), header.shape)


def _unpacked(path: Path, name: str) -> np.ndarray:
    """An array of an archive, after checking the size that its header states."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        size = _zeros(archive, name).nbytes
        if size > _MOST_BYTES:
            raise ValueError(
                f"{name} takes {size} bytes, more than the limit of {_MOST_BYTES}; "
                "save it with numpy.save instead"
            )
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error in reading a file of arrays into a ValueError."""
    try:
        yield
    except (*ARCHIVE_ERRORS, MemoryError, OverflowError, ValueError) as error:
        objects = "allow_pickle" in str(error)  # NumPy's option, which does not exist here
        reason = "they hold Python objects, not numbers" if objects else error
        raise ValueError(f"cannot read the arrays in {path}: {reason}") from None
