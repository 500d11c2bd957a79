"""What the models of the zoo are trained on, read from a folder of the user's.

| file | what |
| --- | --- |
| mnist.npz | `train_images` and `test_images`, uint8, (N, 28, 28) |
| anime_64.zip, celeba_64.zip | pictures of one size, 64 x 64, ordered by name |

None of it is in this package but forty digits. Archives are read without trusting them: every
member's size is checked before it is decoded.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_MOST_MEMBER_BYTES = 2**20
_MOST_BYTES = 4 * 2**30


def load_digits(folder: Path, split: str) -> Tensor:
    """MNIST digits, black and white: pixels above 127 are 1. Shape (N, 28, 28), float32.

    Args:
        folder: Holds `mnist.npz` with `train_images` and `test_images`, uint8, (N, 28, 28).
        split: "train" or "test".
    Raises:
        ValueError: There is no such file.
    """
    path = Path(folder) / "mnist.npz"
    if not path.is_file():
        raise ValueError(f"expected MNIST in {path}, and there is no such file; name its folder")
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[f"{split}_images"] > 127).float()


def load_pictures(path: Path, side: int, *, last: int | None = None) -> Tensor:
    """The pictures of a zip archive, ordered by name: uint8, shape (N, 3, side, side).

    Args:
        path: The archive; it holds pictures and nothing else.
        side: Height and width that every picture must have.
        last: How many, from the end; None: all.
    Raises:
        ValueError: There is no such archive, or a member of it is no picture of that size.
    """
    if not path.is_file():
        raise ValueError(f"expected pictures in {path}, and there is no such file; name its folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            members.sort(key=lambda member: member.filename)
            members = members if last is None else members[-last:]
            if not members or len(members) * 3 * side**2 > _MOST_BYTES:
                raise ValueError(
                    f"expected 1 to {_MOST_BYTES // (3 * side**2)} pictures in {path}, "
                    f"got {len(members)}"
                )
            pictures = torch.empty(len(members), 3, side, side, dtype=torch.uint8)
            for picture, member in zip(pictures, members, strict=True):
                picture.copy_(_read_member(archive, member, path, side))
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"expected a zip archive in {path}: {error}") from None
    return pictures


def scaled(pictures: Tensor) -> Tensor:
    """Pixels from 0…255 to [−1, 1] by / 127.5 − 1, as the paper scales them, float32."""
    return pictures.float() / 127.5 - 1


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, side: int
) -> Tensor:
    """One picture, (3, side, side); what is too large is neither unpacked nor decoded."""
    name = f"{member.filename} in {path}"
    if member.file_size > _MOST_MEMBER_BYTES:
        raise ValueError(
            f"expected pictures of at most {_MOST_MEMBER_BYTES} bytes, "
            f"got {member.file_size} for {name}"
        )
    try:
        with Image.open(io.BytesIO(archive.read(member))) as picture:
            if picture.size != (side, side):
                width, height = picture.size
                raise ValueError(
                    f"expected pictures of {side} x {side} pixels, "
                    f"got {width} x {height} for {name}"
                )
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a picture, got {name}: {error}") from None
