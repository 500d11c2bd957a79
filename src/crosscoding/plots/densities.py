"""Draws contours of a two-dimensional density with draws over them, as in Figures 3 and 9."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from crosscoding.plots.style import COLOURS, new_figure, tidy

_GRID = 300
_MASSES = (0.999, 0.99, 0.95, 0.8, 0.5, 0.2)
_DRAWS = "tab:orange"
_MARKS = COLOURS["HMC"]


def density_panels(
    log_density: Callable[[Tensor], Tensor],
    draws: Mapping[str, Tensor],
    path: Path,
    *,
    title: str,
    reference: Tensor,
) -> None:
    """Write `contour_panels` of a density to a file.

    Args:
        log_density: Maps points (N, 2) to log-densities (N,), normalised or not.
        draws: Sets of points, (num, 2), by the name of their panel.
        path: File to write, in any format that matplotlib supports.
        title: Line above the panels.
        reference: Exact draws, (num, 2); they determine which part of the plane is shown.
    """
    axes = window(reference)
    values = on_grid(log_density, axes).cpu().numpy()
    points = {name: each.cpu().numpy() for name, each in draws.items()}
    contour_panels(axes.cpu().numpy(), values, points, title=title).savefig(path, dpi=120)


def window(reference: Tensor, size: int = _GRID) -> Tensor:
    """Axes of a grid, (2, size), over the bounding box of points (num, 2) with a margin."""
    low, high = reference.amin(0), reference.amax(0)
    margin = 0.25 * (high - low)
    shares = torch.linspace(0, 1, size).to(reference)
    return (low - margin)[:, None] + (high - low + 2 * margin)[:, None] * shares


def on_grid(log_density: Callable[[Tensor], Tensor], axes: Tensor) -> Tensor:
    """A log-density on a grid: axes (2, N) -> (N, N), indexed by the first axis first."""
    size = axes.shape[1]
    return log_density(torch.cartesian_prod(*axes)).reshape(size, size)


def contour_panels(
    axes: NDArray[np.floating],
    log_density: NDArray[np.floating],
    draws: Mapping[str, NDArray[np.floating]],
    *,
    title: str,
    subtitles: Mapping[str, str] | None = None,
) -> Figure:
    """One panel per set of draws, over contours that enclose 20 to 99.9 % of the mass.

    Args:
        axes: Axes of the grid, shape (2, N).
        log_density: Values on the grid, shape (N, N), normalised or not.
        draws: Sets of points, (num, 2), by the name of their panel.
        title: Line above the panels.
        subtitles: Text to append to the names of panels.
    """
    columns = math.ceil(len(draws) / max(1, round(len(draws) / 3.5)))
    rows = math.ceil(len(draws) / columns)
    figure = new_figure(2.9 * columns, 2.9 * rows + 0.4)
    figure.suptitle(title, fontsize=11)
    for index, (name, points) in enumerate(draws.items()):
        panel = figure.add_subplot(rows, columns, index + 1)
        draw_contours(panel, axes, log_density)
        panel.plot(*points.T, ".", ms=3, alpha=0.5, mec="none", color=COLOURS.get(name, _DRAWS))
        panel.set_title(f"{name}{(subtitles or {}).get(name, '')}", fontsize=10)
        panel.tick_params(labelsize=8)
    return figure


def draw_contours(
    panel: Axes, axes: NDArray[np.floating], log_density: NDArray[np.floating]
) -> None:
    """Fill contours that enclose 20 to 99.9 % of the mass; arguments as for `contour_panels`."""
    density = np.exp(log_density - log_density.max())
    levels = _levels_of_mass(torch.from_numpy(density))
    levels = levels if len(levels) > 1 else [0.5 * levels[0], *levels]  # all in one cell
    shades = [str(0.95 - 0.4 * i / len(levels)) for i in range(len(levels))]
    panel.contourf(*axes, density.T, levels=levels, colors=shades, extend="max")
    panel.set_xlim(*axes[0, [0, -1]])
    panel.set_ylim(*axes[1, [0, -1]])


def draw_plane(
    panel: Axes,
    draws: NDArray[np.floating],
    dims: tuple[int, int],
    *,
    grid: NDArray[np.floating] | None = None,
    log_density: NDArray[np.floating] | None = None,
) -> None:
    """Draws in two dimensions of z, over contours if the density is known on a grid.

    Args:
        panel: Where to draw.
        draws: Shape (num, 2).
        dims: Which dimensions these are.
        grid: Axes of the grid, shape (2, N).
        log_density: Values on the grid, shape (N, N), normalised or not.
    """
    if grid is not None and log_density is not None:
        draw_contours(panel, grid, log_density)
    panel.plot(*draws.T, ".", ms=4, alpha=0.55, mec="none", color=_MARKS)
    tidy(panel, x=f"z$_{{{dims[0]}}}$", y=f"z$_{{{dims[1]}}}$")


def draw_curve(
    panel: Axes,
    places: NDArray[np.floating],
    density: NDArray[np.floating] | None,
    draws: NDArray[np.floating],
) -> None:
    """Draws in one dimension as ticks, below their density (N,) at places (N,) if it is known."""
    if density is not None:
        panel.fill_between(places, density, color="0.85", lw=0)
        panel.plot(places, density, color="0.35", lw=1.2)
    panel.plot(draws, np.zeros_like(draws), "|", ms=9, alpha=0.4, color=_MARKS)
    panel.set_xlim(places[0], places[-1])
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    tidy(panel, x="z")


def _levels_of_mass(density: Tensor) -> list[float]:
    """Density levels that enclose the shares `_MASSES` of the mass, ascending."""
    heights = density.flatten().double().sort(descending=True).values
    share = heights.cumsum(0) / heights.sum()
    index = torch.searchsorted(share, torch.tensor(_MASSES, dtype=share.dtype).to(share))
    levels = heights[index.clamp_max(len(heights) - 1)].tolist()
    return [float(v) for v in np.unique(np.maximum(levels, 1e-300))]
