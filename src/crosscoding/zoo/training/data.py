"""Reads the training data of the zoo's models from the user's folder.

| file | content |
| --- | --- |
| mnist.npz | `train_images` and `test_images`, uint8, (N, 28, 28) |
| anime_64.zip, celeba_64.zip | pictures of one size, 64 x 64, ordered by name |

The package itself contains only forty digits. Archives are not trusted: a member's stated size is
checked before it is unpacked, no more than that is unpacked, and pictures are decoded only if they
have the required size.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crosscoding.persistence.archives import ARCHIVE_ERRORS, COMPRESSIONS
from crosscoding.zoo.pictures import read_pixels

_MOST_PICTURE_BYTES = 2**20
_MOST_ARRAY_BYTES = 2**28
_MOST_BYTES = 4 * 2**30  # of all pictures in an archive, encoded or decoded


def load_digits(folder: Path, split: str) -> Tensor:
    """Black and white MNIST digits, shape (N, 28, 28), float32; pixels above 127 become 1.

    Args:
        folder: Holds `mnist.npz` with `train_images` and `test_images`, uint8, (N, 28, 28).
        split: "train" or "test".
    Raises:
        ValueError: The file is missing, or does not hold these arrays.
    """
    path = Path(folder) / "mnist.npz"
    if not path.is_file():
        raise ValueError(f"expected MNIST in {path}, but there is no such file; give its folder")
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{split}_images.npy")
            content = io.BytesIO(_unpacked(archive, member, path, _MOST_ARRAY_BYTES))
        images = np.lib.format.read_array(content, allow_pickle=False)
    except (*ARCHIVE_ERRORS, KeyError, MemoryError, OverflowError, ValueError) as error:
        raise ValueError(f"expected MNIST in {path}: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(
            f"expected uint8 images of shape (N, 28, 28) in {path}, "
            f"got {images.dtype} of shape {images.shape}"
        )
    return torch.from_numpy(images > 127).float()


def load_pictures(path: Path, side: int, *, last: int | None = None) -> Tensor:
    """The pictures of a zip archive, ordered by name: uint8, shape (N, 3, side, side).

    Args:
        path: The archive; it holds nothing but pictures.
        side: Required height and width of every picture.
        last: How many to read, counted from the end; None: all.
    Raises:
        ValueError: There is no such archive, or a member is not a picture of that size.
    """
    if not path.is_file():
        raise ValueError(f"expected pictures in {path}, but there is no such file; give its folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            members.sort(key=lambda member: member.filename)
            members = members if last is None else members[-last:]
            packed = sum(member.file_size for member in members)
            if not members or max(packed, len(members) * 3 * side**2) > _MOST_BYTES:
                raise ValueError(
                    f"expected 1 to {_MOST_BYTES // (3 * side**2)} pictures in {path}, "
                    f"got {len(members)}"
                )
            pictures = torch.empty(len(members), 3, side, side, dtype=torch.uint8)
            for picture, member in zip(pictures, members, strict=True):
                picture.copy_(_read_member(archive, member, path, side))
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"expected a zip archive in {path}: {error}") from None
    return pictures


def scaled(pictures: Tensor) -> Tensor:
    """Rescale pixels from 0…255 to [−1, 1], by / 127.5 − 1 as in the paper, float32."""
    return pictures.float() / 127.5 - 1


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, side: int
) -> Tensor:
    """One picture, (3, side, side); one that is too large is neither unpacked nor decoded."""
    content = io.BytesIO(_unpacked(archive, member, path, _MOST_PICTURE_BYTES))
    return read_pixels(content, (3, side, side), f"{member.filename} in {path}")


def _unpacked(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, most_bytes: int
) -> bytes:
    """A member's bytes, at most `most_bytes`."""
    name = f"{member.filename} in {path}"
    if member.file_size > most_bytes:
        raise ValueError(
            f"expected members of at most {most_bytes} bytes, got {member.file_size} for {name}"
        )
    if member.compress_type not in COMPRESSIONS:
        raise ValueError(f"expected members that are stored or deflated, got {name}")
    with archive.open(member) as file:
        return file.read(most_bytes)  # limited, as the stated size may be false
