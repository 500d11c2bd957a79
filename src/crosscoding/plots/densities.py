"""Contours of a density in two dimensions with draws over them, as in the paper's Figures 3, 9."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

_GRID = 300
_MASSES = (0.999, 0.99, 0.95, 0.8, 0.5, 0.2)


def density_panels(
    log_density: Callable[[Tensor], Tensor],
    draws: Mapping[str, Tensor],
    path: Path,
    *,
    title: str,
    reference: Tensor,
) -> None:
    """One panel for each set of draws, over contours that hold 20 to 99.9 % of the mass.

    Args:
        log_density: Maps points (N, 2) to log-densities (N,), normalised or not.
        draws: Sets of points, (num, 2), by the name of their panel.
        path: File to write, of any ending that matplotlib knows.
        title: Line above the panels.
        reference: Exact draws, (num, 2), which decide what part of the plane is shown.
    """
    low, high = _window(reference)
    x, y = (torch.linspace(float(low[d]), float(high[d]), _GRID) for d in (0, 1))
    points = torch.cartesian_prod(x, y).to(reference)
    density = (lambda v: (v - v.amax()).exp())(log_density(points)).reshape(_GRID, _GRID)
    levels = _levels_of_mass(density)
    shades = [str(0.92 - 0.72 * i / len(levels)) for i in range(len(levels))]
    columns = min(len(draws), 3)
    rows = math.ceil(len(draws) / columns)
    figure = Figure(figsize=(3.3 * columns, 3.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for index, (name, points_of_name) in enumerate(draws.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.contourf(x, y, density.T.cpu().numpy(), levels=levels, colors=shades, extend="max")
        axes.plot(*points_of_name.T.cpu().numpy(), ".", ms=2.5, alpha=0.5, color="tab:orange")
        axes.set_title(name, fontsize=10)
        axes.set_xlim(float(low[0]), float(high[0]))
        axes.set_ylim(float(low[1]), float(high[1]))
    figure.savefig(path, dpi=120)


def _window(reference: Tensor) -> tuple[Tensor, Tensor]:
    low, high = reference.amin(0), reference.amax(0)
    margin = 0.25 * (high - low)
    return low - margin, high + margin


def _levels_of_mass(density: Tensor) -> list[float]:
    """Heights above which lie the shares `_MASSES` of all mass, ascending."""
    heights = density.flatten().double().sort(descending=True).values
    share = heights.cumsum(0) / heights.sum()
    index = torch.searchsorted(share, torch.tensor(_MASSES, dtype=share.dtype).to(share))
    levels = heights[index.clamp_max(len(heights) - 1)].tolist()
    return [float(v) for v in np.unique(np.maximum(levels, 1e-300))]
