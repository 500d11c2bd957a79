"""Data from files: arrays of NumPy, tables, or a zip of pictures. Nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crosscoding.cli.pixels import Pixels
from crosscoding.cli.tables import read_table
from crosscoding.likelihoods import Bernoulli
from crosscoding.vae import VAE
from crosscoding.zoo.data import load_pictures

_MOST_PICTURES = 1000
_MOST_BYTES = 2**32  # of an array that is unpacked
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_NO_ARCHIVE = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, zlib.error)


def read_data(words: str, vae: VAE) -> Tensor:
    """Data for a model, (N, *data), in its dtype; NaN where a file has it.

    Pixels from 0 to 255 are scaled as `Pixels.of` says: a zip of pictures, and arrays of uint8 that
    hold more than 0 and 1, where data can be pictures. Other numbers are taken as they are.

    Args:
        words: FILE.npy, FILE.npz, FILE.npz:NAME of an array in it, FILE.csv of numbers, in which
            nothing stands for NaN, or FILE.zip of colour pictures.
        vae: The model, whose shape an array must have, or at least its number of elements.

    Raises:
        ValueError: There is no such file or array, or none that fits.
    """
    path, name = Path(words), None
    if not path.is_file() and ":" in words:
        path, name = Path(words.rpartition(":")[0]), words.rpartition(":")[2]
    if not path.is_file():
        raise ValueError(f"expected data in {path}, and there is no such file")
    if path.suffix == ".zip":
        return _pictures(path, vae)
    array = _array(path, name, vae)
    data = torch.from_numpy(array.reshape(len(array), *vae.data_shape))
    pixels = array.dtype == np.uint8 and array.max() > 1  # and no zeros and ones
    if pixels and (isinstance(vae.likelihood, Bernoulli) or Pixels.suit(vae)):
        return Pixels.of(vae).scaled(data).to(vae.dtype)
    return data.to(vae.dtype)


def _pictures(path: Path, vae: VAE) -> Tensor:
    shape = tuple(vae.data_shape)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"expected a .npy or .npz file of data of shape {shape}: a zip of pictures is for "
            "models of square colour pictures"
        )
    pictures = load_pictures(path, shape[-1], last=_MOST_PICTURES)
    return Pixels.of(vae).scaled(pictures).to(vae.dtype)


def _array(path: Path, name: str | None, vae: VAE) -> np.ndarray:
    """The array of that name, or the only one that fits the model."""
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise ValueError(
            f"expected data as .npy, .npz, .csv or .zip, got {path}; write it by numpy.save"
        )
    arrays = {"": read_table(path)[0]} if path.suffix == ".csv" else _arrays(path, name)
    fitting = {
        key: array
        for key, array in arrays.items()
        if array.ndim > 1 and len(array) and array[0].size == vae.data_size
        if array.dtype.kind in "fiub"
    }
    if len(fitting) == 1:
        ((key, array),) = fitting.items()
        if path.suffix == ".npz":
            array = _unpacked(path, key)
        return array.astype(array.dtype.newbyteorder("="))
    there = ", ".join(f"{key or 'one'} {array.shape}" for key, array in arrays.items())
    wanted = ", ".join(["N", *map(str, vae.data_shape)])
    what = "one array, by FILE.npz:NAME," if fitting else "an array of numbers"
    raise ValueError(f"expected {what} of shape ({wanted}) in {path}, got {there or 'none'}")


def _arrays(path: Path, name: str | None) -> dict[str, np.ndarray]:
    """The arrays in a file by name, or the one of that name; of an archive, zeros of their shapes.

    The zeros take no memory: what is not asked for is not unpacked.
    """
    with _reading(path):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {"": np.lib.format.read_array(file, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            names = [key.removesuffix(".npy") for key in archive.namelist() if key.endswith(".npy")]
            if name is not None and name not in names:
                raise ValueError(f"there is none named {name}, but {', '.join(names)}")
            return {key: _zeros(archive, key) for key in names if name in (None, key)}


def _zeros(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """As an array of an archive, by its header, without memory."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{name} is neither stored nor deflated")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is no array of numbers")
        shape, _, dtype = _HEADERS[version](file)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _unpacked(path: Path, name: str) -> np.ndarray:
    """An array of an archive: as much as its header says is read."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        size = _zeros(archive, name).nbytes
        if size > _MOST_BYTES:
            raise ValueError(
                f"{name} takes {size} bytes, of at most {_MOST_BYTES}; write it by numpy.save"
            )
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says ValueError for all that may be wrong about a file of arrays."""
    try:
        yield
    except (*_NO_ARCHIVE, MemoryError, OverflowError, ValueError) as error:
        raise ValueError(f"expected arrays in {path}, and they cannot be read: {error}") from None
