"""Rows of arrays: .npy and .npz files, and Zarr. Nothing is unpickled or mapped into memory."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from crosscoding.batch.sources.base import Read, Source, needs
from crosscoding.formats.numpy_files import header_in, names_in, read_header
from crosscoding.persistence.archives import ARCHIVE_ERRORS

SUFFIXES = (".npy", ".npz")


def _fits(shape: Sequence[int], data_shape: Sequence[int]) -> bool:
    """Whether the first dimension of an array of this shape runs over rows of `data_shape`.

    Rows may be flat or have any shape with as many elements; rows of shape () need no dimension.
    """
    has_rows = len(shape) > (1 if data_shape else 0)
    return has_rows and math.prod(shape[1:]) == math.prod(data_shape)


def check_shape(
    shape: Sequence[int], dtype: np.dtype, data_shape: Sequence[int], where: str
) -> None:
    """Raise ValueError unless an array contains rows of a model's data.

    Args:
        shape, dtype: Shape and dtype of the array.
        data_shape: Shape of a datum.
        where: The array, for messages.
    """
    if dtype.kind not in "fiub" or not _fits(shape, data_shape):
        wanted = ", ".join(["N", *map(str, data_shape)])
        raise ValueError(
            f"expected an array of numbers of shape ({wanted}) in {where}, got shape "
            f"{tuple(shape)} of {dtype}"
        )
    if 0 in shape:
        raise ValueError(f"expected rows in {where}, got none")


class NumpyFile(Source):
    """An array in a .npy file, or in a .npz file, where it may be compressed.

    Args:
        path: The file.
        name: Name of the array in a .npz file; None: the only one that fits.
        data_shape: Shape of a datum.
    Raises:
        ValueError: There is no such array, or it does not hold rows of such data.
    """

    kind = "numpy"

    def __init__(self, path: Path, name: str | None, data_shape: Sequence[int]) -> None:
        super().__init__(path, [path])
        self.name = self._found(path, name, data_shape) if path.suffix.lower() == ".npz" else None
        self._opened: Any = None
        with self._open() as file:
            try:
                shape, is_fortran, self._dtype = read_header(file, str(path))
            except (ValueError, OSError) as error:
                raise ValueError(f"cannot read the array in {path}: {error}") from None
            self._begin = file.tell()
        check_shape(shape, self._dtype, data_shape, str(path))
        if is_fortran and len(shape) > 1:
            raise ValueError(
                f"expected an array in C order in {path}, got one in Fortran order; save "
                "numpy.ascontiguousarray(array) instead"
            )
        self.num_rows = next(iter(shape))
        self._shape = tuple(data_shape)
        self._row_bytes = self._dtype.itemsize * math.prod(data_shape)

    @staticmethod
    def _found(path: Path, name: str | None, data_shape: Sequence[int]) -> str:
        """The name of the array to read."""
        try:
            with zipfile.ZipFile(path) as archive:
                shapes = {key: header_in(archive, key).shape for key in names_in(archive)}
        except (*ARCHIVE_ERRORS, ValueError) as error:
            raise ValueError(f"cannot read the arrays in {path}: {error}") from None
        fitting = [key for key, shape in shapes.items() if _fits(shape, data_shape)]
        wanted = fitting if name is None else [key for key in shapes if key == name]
        if len(wanted) != 1:
            there = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "none"
            what = (
                f"an array {name!r}"
                if name is not None
                else (
                    "one array, as FILE.npz:NAME," if fitting else "an array of rows for the model"
                )
            )
            raise ValueError(f"expected {what} in {path}, got {there}")
        return wanted[0]

    def _open(self) -> BinaryIO:
        if self.name is None:
            return self.path.open("rb")
        return cast(BinaryIO, zipfile.ZipFile(self.path).open(f"{self.name}.npy"))

    def _read(self, start: int, stop: int) -> Read:
        try:
            content = self._bytes(start * self._row_bytes, (stop - start) * self._row_bytes)
        except ARCHIVE_ERRORS as error:
            raise ValueError(str(error)) from error
        if len(content) < (stop - start) * self._row_bytes:
            raise ValueError("the file ends early")
        found = np.frombuffer(content, dtype=self._dtype).reshape(-1, *self._shape)
        return Read(found.astype(self._dtype.newbyteorder("=")), np.arange(start, stop))

    def _bytes(self, begin: int, num: int) -> bytes:
        """Read bytes of the array. An archive stays open, as seeking in it reads from its start."""
        if self.name is None:
            with self._open() as file:
                file.seek(self._begin + begin)
                return file.read(num)
        if self._opened is None:
            self._opened = self._open()
        self._opened.seek(self._begin + begin)
        return self._opened.read(num)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class ZarrArray(Source):
    """A Zarr array, or the only array of rows for the model in a Zarr group.

    Args:
        path: The folder.
        name: Name of the array in a group; None: the only one that fits.
        data_shape: Shape of a datum.
    Raises:
        ImportError: zarr is not installed.
        ValueError: There is no such array, or it does not hold rows of such data.
    """

    kind = "zarr"

    def __init__(self, path: Path, name: str | None, data_shape: Sequence[int]) -> None:
        super().__init__(path, [path])
        self._shape, self._opened = tuple(data_shape), None
        self.name = name
        opened = self._open()
        if not hasattr(opened, "shape"):
            there = {key: array.shape for key, array in opened.arrays()}
            fitting = [key for key, shape in there.items() if _fits(shape, data_shape)]
            if len(fitting) != 1:
                raise ValueError(
                    f"expected one array of rows for the model in {path}, got {there or 'none'}; "
                    "choose one by PATH:NAME"
                )
            self.name = fitting[0]
            opened = self._open()
        check_shape(opened.shape, np.dtype(opened.dtype), data_shape, str(path))
        self.num_rows = int(opened.shape[0])

    def _open(self) -> Any:
        try:
            import zarr  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise needs("Zarr", "zarr") from None
        try:
            return zarr.open(self.path, mode="r", path=self.name or "")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read {self.path} as Zarr: {error}") from None

    def _read(self, start: int, stop: int) -> Read:
        if self._opened is None:
            self._opened = self._open()
        found = np.asarray(self._opened[start:stop]).reshape(-1, *self._shape)
        return Read(found, np.arange(start, stop))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
