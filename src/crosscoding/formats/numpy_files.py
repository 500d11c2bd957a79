"""Reads headers of .npy files and of arrays in .npz archives, without reading the arrays."""

import zipfile
from typing import IO, NamedTuple

import numpy as np

from crosscoding.persistence.archives import COMPRESSIONS

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """What an array's header states."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype


def read_header(file: IO[bytes], name: str) -> Header:
    """Read the header of an array; the file is then at the start of its data.

    Args:
        file: A file, at the start of an array in .npy format.
        name: What messages call the array.
    Raises:
        ValueError: There is no header, or one of a version for names in Unicode.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"{name} is not an array of numbers")
    return Header(*_READERS[version](file))


def names_in(archive: zipfile.ZipFile) -> list[str]:
    """Names of the arrays in a .npz archive."""
    return [key.removesuffix(".npy") for key in archive.namelist() if key.endswith(".npy")]


def header_in(archive: zipfile.ZipFile, name: str) -> Header:
    """The header of an array in a .npz archive.

    Raises:
        ValueError: It is damaged, or compressed by another method than deflate.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is neither stored nor deflated")
    with archive.open(member) as file:
        return read_header(file, name)
