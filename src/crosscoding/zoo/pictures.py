"""Reads the pixels of a picture file as a viewer shows them, or raises if that is ambiguous.

With transparent pixels, several frames, or an unknown range of numbers, what a viewer shows is not
defined. Nothing is guessed, as a model would complete a wrongly guessed datum without complaint.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none starts external programs
_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # in Exif
_READ_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError),
    *(struct.error, Image.DecompressionBombError),
)


class _AmbiguousError(Exception):
    """A readable but ambiguous picture; its arguments are what was expected and what to do."""


def read_pixels(file: Path | BinaryIO, shape: Sequence[int], name: str) -> Tensor:
    """A picture's pixels, 0 to 255, uint8, rotated as its Exif data say.

    Args:
        file: The picture.
        shape: The required shape: (channels, height, width) with 1 or 3 channels.
        name: The picture's name, for errors.

    Raises:
        ValueError: There is no such file, it is not a picture, its size is wrong, or it is
            ambiguous.
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
    except _AmbiguousError as error:
        wanted, advice = error.args
        raise ValueError(f"expected a picture {wanted}, got {name}; {advice}") from None
    except _READ_ERRORS as error:
        raise ValueError(f"expected a picture, got {name}, which cannot be read: {error}") from None
    raise ValueError(
        f"expected pictures of {width} x {height} pixels, got {found[0]} x {found[1]} for {name}; "
        "resize it first"
    )


def _upright(picture: Image.Image) -> Image.Image:
    turned = picture.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """The pixels, (height, width) or (height, width, 3)."""
    if getattr(picture, "n_frames", 1) > 1:
        raise _AmbiguousError("of a single frame", "save the one you mean as a picture of its own")
    if picture.mode not in _EIGHT_BITS:
        return _of_sixteen_bits(picture, channels)
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = _opaque(picture)
    if picture.mode in ("CMYK", "YCbCr", "P"):
        picture = picture.convert("RGB")
    return np.array(picture.convert(_MODES[channels]))


def _opaque(picture: Image.Image) -> Image.Image:
    """Remove transparency, provided that the background would not show through."""
    picture = picture.convert("RGBA")
    on_black, on_white = (
        Image.alpha_composite(Image.new("RGBA", picture.size, (shade,) * 3 + (255,)), picture)
        for shade in (0, 255)
    )
    if on_black.tobytes() != on_white.tobytes():
        raise _AmbiguousError(
            "without transparent pixels, whose colour depends on the background",
            "flatten it onto the background that the model was trained with (black for MNIST)",
        )
    return on_black.convert("RGB")


def _of_sixteen_bits(picture: Image.Image, channels: int) -> np.ndarray:
    """Convert 16-bit grey pixels to 8 bits; Pillow would clip them at 255."""
    sixteen = picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format in ("PNG", "PPM")
    )
    if not sixteen or "transparency" in picture.info:
        raise _AmbiguousError(
            f"with 8 or 16 bits per pixel, not in Pillow's mode {picture.mode!r}",
            "save it as a plain PNG, or give its numbers as .npy with --data",
        )
    grey = np.rint(np.array(picture).astype(np.float64) / 257).astype(np.uint8)
    return grey if channels == 1 else np.repeat(grey[..., None], channels, axis=-1)
