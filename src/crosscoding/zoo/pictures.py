"""The pixels of a picture file: those that any viewer shows, or an error that says why not.

A format can leave open what is seen: behind transparent pixels, in which frame, for which numbers.
Nothing of that is guessed, as every guess is a datum that a model answers without complaint.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that runs programs
_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # in Exif
_DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError),
    *(struct.error, Image.DecompressionBombError),
)


class _OpenError(Exception):
    """A picture that can be read and leaves open what is seen: what was expected, what to do."""


def read_pixels(file: Path | BinaryIO, shape: Sequence[int], name: str) -> Tensor:
    """A picture's pixels, 0 to 255, uint8, turned upright where Exif says how.

    Args:
        file: The picture.
        shape: What it must have: (channels, height, width) with 1 or 3 channels.
        name: Of the picture, for errors.

    Raises:
        ValueError: There is no such file, it is no picture, its size is another, or it leaves open
            what is seen.
    """
    channels, height, width = shape
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            if picture.size in ((width, height), (height, width)):  # else it need not be decoded
                picture = _upright(picture)
            if picture.size == (width, height):
                pixels = _pixels(picture, channels).reshape(height, width, channels)
                return torch.from_numpy(pixels).permute(2, 0, 1)
            found = picture.size
    except _OpenError as error:
        wanted, advice = error.args
        raise ValueError(f"expected a picture {wanted}, got {name}; {advice}") from None
    except _DAMAGED as error:
        raise ValueError(f"expected a picture, got {name}, which cannot be read: {error}") from None
    raise ValueError(
        f"expected pictures of {width} x {height} pixels, got {found[0]} x {found[1]} for {name}; "
        "scale it first"
    )


def _upright(picture: Image.Image) -> Image.Image:
    turned = picture.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """The pixels, (height, width) or (height, width, 3)."""
    if getattr(picture, "n_frames", 1) > 1:
        raise _OpenError("of a single frame", "save the one that is meant by itself")
    if picture.mode not in _EIGHT_BITS:
        return _of_sixteen_bits(picture, channels)
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = _opaque(picture)
    if picture.mode in ("CMYK", "YCbCr", "P"):
        picture = picture.convert("RGB")
    return np.array(picture.convert(_MODES[channels]))


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture without its transparency, where black behind it looks as white does."""
    picture = picture.convert("RGBA")
    on_black, on_white = (
        Image.alpha_composite(Image.new("RGBA", picture.size, (shade,) * 3 + (255,)), picture)
        for shade in (0, 255)
    )
    if on_black.tobytes() != on_white.tobytes():
        raise _OpenError(
            "without transparent pixels, which look like whatever is behind them",
            "flatten it onto the background that the model was trained with (black for MNIST)",
        )
    return on_black.convert("RGB")


def _of_sixteen_bits(picture: Image.Image, channels: int) -> np.ndarray:
    """Grey pixels of 16 bits in eight: Pillow cuts them off at 255."""
    sixteen = picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format in ("PNG", "PPM")
    )
    if not sixteen or "transparency" in picture.info:
        raise _OpenError(
            f"of 8 or 16 bits a pixel, not of Pillow's mode {picture.mode!r}",
            "save it as a plain PNG, or give its numbers as .npy by --data",
        )
    grey = np.rint(np.array(picture).astype(np.float64) / 257).astype(np.uint8)
    return grey if channels == 1 else np.repeat(grey[..., None], channels, axis=-1)
