"""Reading pictures: the same pixels from every format, and nothing guessed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from crosscoding.zoo.pictures import read_pixels

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
WHITE, BLACK = np.full_like(GREY, 255), np.zeros_like(GREY)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # a quarter turn


def picture(*channels) -> Image.Image:
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    pixels = np.stack(channels, -1) if len(channels) > 1 else channels[0]
    return Image.fromarray(pixels, modes[len(channels)])


def read(image: Image.Image, kind="PNG", channels=1, **options) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return read_pixels(file, (channels, 6, 8), "a.png")


def seen(image: Image.Image, **options) -> np.ndarray:
    return read(image, **options)[0].numpy()


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize(
    ("image", "options"),
    [
        (picture(GREY), {}),
        (picture(GREY), {"transparency": int(np.setdiff1d(np.arange(256), GREY)[0])}),
        (picture(GREY, WHITE), {}),
        (picture(GREY, GREY, GREY), {}),
        (picture(GREY, GREY, GREY, WHITE), {}),
        (picture(GREY).convert("P"), {}),
        (picture(GREY), {"kind": "GIF"}),
        (picture(GREY, GREY, GREY).convert("CMYK"), {"kind": "TIFF"}),
        (Image.fromarray(GREY.astype(np.uint16) * 257), {}),
        (Image.fromarray(GREY.astype(np.uint16) * 257), {"kind": "TIFF"}),
        (Image.fromarray(GREY.astype(np.int32) * 257), {"kind": "PPM"}),
        (picture(np.rot90(GREY)), {"exif": ROTATED}),
        (picture(np.rot90(GREY)), {"kind": "TIFF", "exif": ROTATED}),
    ],
)
def test_every_format_shows_the_same_pixels(image, options):
    assert (seen(image, **options) == GREY).all()
    assert (read(image, channels=3, **options).numpy() == GREY).all()


def test_one_bit_is_black_and_white():
    assert (seen(picture(GREY).convert("1", dither=Image.Dither.NONE)) == 255 * (GREY > 127)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image", "options"),
    [
        (picture(BLACK, GREY), {}),  # ink only in the alpha channel, black or white
        (picture(WHITE, GREY), {}),
        (picture(BLACK, BLACK, BLACK, GREY), {}),
        (picture(WHITE, WHITE, WHITE, GREY), {}),
        (picture(GREY, BLACK), {}),  # nothing is seen
        (picture(GREY), {"transparency": int(GREY[0, 0])}),
        (picture(GREY).convert("P"), {"transparency": int(GREY[0, 0])}),
        (picture(WHITE, GREY), {"kind": "WEBP", "lossless": True}),
    ],
)
def test_transparent_pixels_are_refused(image, options, channels):
    with pytest.raises(ValueError, match=r"without transparent pixels.*got a\.png; flatten it"):
        read(image, channels=channels, **options)


@pytest.mark.parametrize(
    ("kind", "frames", "message"),
    [
        ("GIF", [picture(255 - GREY)], "a picture of a single frame, got a.png"),
        ("PNG", [picture(255 - GREY)], "a picture of a single frame"),
        ("TIFF", [picture(255 - GREY)], "a picture of a single frame"),
    ],
)
def test_animations_and_pages_are_refused(kind, frames, message):
    with pytest.raises(ValueError, match=message):
        read(picture(GREY), kind, save_all=True, append_images=frames)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_an_unknown_range_are_refused(dtype):
    with pytest.raises(
        ValueError, match=r"with 8 or 16 bits per pixel, not in .*, got a.png; save it"
    ):
        read(Image.fromarray(GREY.astype(dtype)), "TIFF")


def test_transparent_pixels_of_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="expected a picture with 8 or 16 bits"):
        read(Image.fromarray(GREY.astype(np.uint16)), transparency=0)


@pytest.mark.parametrize("image", [picture(GREY.T), picture(GREY[:5])])
def test_another_size_is_refused(image):
    width, height = image.size
    with pytest.raises(ValueError, match=f"of 8 x 6 pixels, got {width} x {height} for a.png"):
        read(image)
