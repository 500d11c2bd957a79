"""How data of any shape are shown: as pictures, or as lines over their elements."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_LINES = 4  # rows of a matrix up to which it is taken for signals side by side
_COLOURS = (1, 3)
_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_SLACK = 0.05  # of a usual range, by which noise may leave it
_LEAST_SHARE = 0.2  # of a usual range, that data must span to be taken for it

Shape = Sequence[int]


def is_picture(shape: Shape) -> bool:
    """Whether data look best as pictures.

    These are (height, width) with more than 4 rows and columns, (channels, height, width) and
    (height, width, 1 or 3).
    """
    if len(shape) == 3:
        return min(_size(shape)) > 1
    return len(shape) == 2 and min(shape) > _MOST_LINES


def images_of(data: NDArray[np.floating], shape: Shape) -> dict[str, NDArray[np.floating]]:
    """Data (N, *shape) as pictures (N, 1 or 3, height, width), by name.

    There is one entry, "", for grey and colour pictures; otherwise one for each channel.

    Raises:
        ValueError: The data do not have the number of dimensions of pictures.
    """
    if len(shape) not in (2, 3):
        raise ValueError(
            "expected data of shape (height, width) or (channels, height, width) for pictures, got "
            f"{tuple(shape)}; use kind='elements'"
        )
    if len(shape) == 2:
        return {"": data[:, None]}
    data = np.moveaxis(data, -1, 1) if _channels_last(shape) else data
    if data.shape[1] in _COLOURS:
        return {"": data}
    return {f"channel {c}": data[:, c : c + 1] for c in range(data.shape[1])}


def lines_of(shape: Shape) -> tuple[int, int]:
    """How many lines show a datum, and the number of elements of each.

    A vector is one line and a matrix of up to 4 rows one for each; all else is flattened into one.
    """
    if len(shape) == 2 and shape[0] <= _MOST_LINES:
        return shape[0], shape[1]
    return 1, int(np.prod(shape))


def value_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """The values to show as black and white: 0 to 1, −1 to 1 or 0 to 255 if they fit one of these.

    Otherwise the smallest and the largest value.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for usual in _USUAL_RANGES:
        width = usual[1] - usual[0]
        fits = usual[0] - _SLACK * width <= low and high <= usual[1] + _SLACK * width
        if fits and high - low >= _LEAST_SHARE * width:
            return usual
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _channels_last(shape: Shape) -> bool:
    return shape[2] in _COLOURS and shape[0] not in _COLOURS and min(shape[:2]) > _MOST_LINES


def _size(shape: Shape) -> tuple[int, int]:
    """Height and width."""
    return (shape[0], shape[1]) if _channels_last(shape) else (shape[1], shape[2])
