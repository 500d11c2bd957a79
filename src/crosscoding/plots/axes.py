"""Axes of a picture: the caller's, or those of a new figure that pyplot does not know."""

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crosscoding.plots.style import new_figure

_DPI = 110


class Panels(np.ndarray):
    """An array of axes, which notebooks show as their figure; `figure.savefig(path)` writes it."""

    @property
    def figure(self) -> Figure:
        """The figure that the axes belong to.

        Raises:
            ValueError: There are no axes, or they belong to several figures.
        """
        figures = {axes.figure.figure for axes in self.flat}  # the first may be a subfigure
        if len(figures) != 1:
            raise ValueError(f"expected axes of one figure, got axes of {len(figures)}")
        return figures.pop()

    def _repr_png_(self) -> bytes | None:
        """What notebooks show."""
        if self.ndim == 0 or not self.size:
            return None
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()


def panels_on(
    given: Any, shape: tuple[int, int], size: tuple[float, float], *, columns: int | None = None
) -> Panels:
    """The caller's axes, or new ones.

    Args:
        given: Axes, an array or a list of them, or None for a new figure.
        shape: Rows and columns of the panels.
        size: Width and height in inches of a panel in a new figure.
        columns: Panels side by side in a new figure, if not those of `shape`.
    Returns:
        Axes of this shape.
    Raises:
        TypeError: Something given is not matplotlib axes.
        ValueError: There are more or fewer axes than panels.
    """
    num = shape[0] * shape[1]
    if given is None:
        across = shape[1] if columns is None else min(columns, num)
        down = -(-num // across)
        figure = new_figure(size[0] * across, size[1] * down)
        found = figure.subplots(down, across, squeeze=False).ravel()
        for unused in found[num:]:
            figure.delaxes(unused)
        found = found[:num]
    else:
        found = np.array(
            [given] if isinstance(given, Axes) else list(np.ravel(given)), dtype=object
        )
        for axes in found:
            if not isinstance(axes, Axes):
                raise TypeError(f"expected matplotlib axes, got {type(axes).__name__}")
        if len(found) != num:
            raise ValueError(
                f"expected {num} axes, one for each panel ({shape[0]} x {shape[1]}), got "
                f"{len(found)}"
            )
    return found.reshape(shape).view(Panels)
