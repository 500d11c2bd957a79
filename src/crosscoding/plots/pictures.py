"""Draws data as pictures, with observed pixels from blue (black) to orange (white), as in Figure 2.

A picture is an array (height, width, 3) of red, green and blue from 0 to 1.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from crosscoding.plots.style import new_figure

Picture = NDArray[np.floating]

_ORANGE = np.array([1.0, 0.6, 0.1])
_BLUE = np.array([0.1, 0.3, 0.85])
_DARK_GREEN, _LIGHT_GREEN = np.array([0.0, 0.3, 0.25]), np.array([0.55, 0.95, 0.75])
_UNKNOWN = 0.5


def colour(data: NDArray[np.floating], low: float = 0.0, high: float = 1.0) -> Picture:
    """A datum as a picture.

    Args:
        data: Shape (height, width) or (channels, height, width) with 1 or 3 channels.
        low, high: Values shown as black and white.
    """
    if data.ndim == 2:
        data = data[None]
    if data.ndim != 3 or len(data) not in (1, 3):
        raise ValueError(
            "expected a grey or a colour image, (height, width) or (1 or 3, height, width), got "
            f"data of shape {data.shape}"
        )
    shades = np.clip((data - low) / (high - low), 0, 1)
    return np.broadcast_to(shades, (3, *data.shape[1:])).transpose(1, 2, 0).copy()


def mark_evidence(
    picture: Picture,
    mask: NDArray[np.bool_],
    *,
    hide: bool = False,
    tint: bool = True,
    partly: NDArray[np.bool_] | None = None,
) -> Picture:
    """Mark the observed pixels of a picture.

    Args:
        picture: Shape (height, width, 3).
        mask: True = observed, shape (height, width).
        hide: Whether to show all other pixels in grey, as unknown.
        tint: Whether to tint observed pixels from blue (black) to orange (white).
        partly: Pixels known to be within an interval or a set, or with noise, of the mask's shape;
            they are tinted from dark to light green.
    """
    shade = picture.mean(-1, keepdims=True)
    marked = (1 - shade) * _BLUE + shade * _ORANGE if tint else picture
    rest = np.full_like(picture, _UNKNOWN) if hide else picture
    if partly is not None:
        green = (1 - shade) * _DARK_GREEN + shade * _LIGHT_GREEN
        rest = np.where(partly[..., None], green, rest)
    return np.where(mask[..., None], marked, rest)


def uncertainty(deviation: NDArray[np.floating], high: float) -> Picture:
    """Standard deviations (height, width) as a picture, from dark blue (0) to yellow (`high`)."""
    shades = np.nan_to_num(deviation / high if high > 0 else 0 * deviation, nan=1.0)
    return np.asarray(colormaps["cividis"](np.clip(shades, 0, 1)))[..., :3]


def sheet(rows: Sequence[Sequence[Picture]], *, gap: int = 2) -> Picture:
    """Arrange pictures of one size in rows, with white gaps of `gap` pixels."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3)
    canvas = np.ones(shape)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def labelled(
    rows: Mapping[str, Sequence[Picture]], columns: Sequence[str], *, gap: int = 2
) -> Figure:
    """Rows of pictures with the rows' names; `columns` are the names of the first columns."""
    pictures = list(rows.values())
    canvas = sheet(pictures, gap=gap)
    figure = new_figure(0.02 * canvas.shape[1] + 0.7, 0.02 * canvas.shape[0] + 0.3)
    draw_sheet(figure.add_subplot(), pictures, list(rows), columns, gap=gap)
    return figure


def draw_sheet(
    axes: Axes,
    pictures: Sequence[Sequence[Picture]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    gap: int = 2,
) -> None:
    """Draw a `sheet` of pictures, with names of its rows and of its first columns, on axes."""
    height, width = pictures[0][0].shape[:2]
    axes.imshow(sheet(pictures, gap=gap), interpolation="nearest")
    middles = [gap + i * (height + gap) + (height - 1) / 2 for i in range(len(rows))]
    axes.set_yticks(middles, list(rows))
    middles = [gap + i * (width + gap) + (width - 1) / 2 for i in range(len(columns))]
    axes.set_xticks(middles, list(columns))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def sheet_figure(rows: Sequence[Sequence[Picture]], title: str, *, gap: int = 2) -> Figure:
    """A `sheet` of pictures with a title."""
    canvas = sheet(rows, gap=gap)
    width = 7.0
    figure = new_figure(width, width * canvas.shape[0] / canvas.shape[1] + 0.35)
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.axis("off")
    return figure


def panels(blocks: Mapping[str, Picture], title: str) -> Figure:
    """Pictures side by side at the same height, each below its name."""
    widths = [picture.shape[1] / picture.shape[0] for picture in blocks.values()]
    height = 3.0
    figure = new_figure(height * sum(widths) + 0.2 * len(blocks), height + 0.85)
    figure.suptitle(title, fontsize=11)
    places = figure.subplots(1, len(blocks), width_ratios=widths, squeeze=False)[0]
    for axes, (name, picture) in zip(places, blocks.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    return figure


def write_labelled(
    rows: Mapping[str, Sequence[Picture]], columns: Sequence[str], path: Path, *, gap: int = 2
) -> None:
    """Write `labelled` pictures to a file."""
    labelled(rows, columns, gap=gap).savefig(path, dpi=150)


def write_png(picture: Picture, path: Path, *, magnify: int = 1) -> None:
    """Write a picture as PNG, with every pixel magnified to a square of side `magnify`."""
    _image(picture, magnify).save(path)


def png_bytes(picture: Picture, *, magnify: int = 1) -> bytes:
    """A picture as the bytes of a PNG file; as `write_png`."""
    buffer = BytesIO()
    _image(picture, magnify).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _image(picture: Picture, magnify: int) -> Image.Image:
    known = np.nan_to_num(picture, nan=_UNKNOWN)
    pixels = (255 * known + 0.5).astype(np.uint8).repeat(magnify, 0).repeat(magnify, 1)
    return Image.fromarray(pixels)
