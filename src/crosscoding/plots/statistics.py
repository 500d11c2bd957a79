"""Draws scatter plots, violins and box plots of figures over queries or chains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from crosscoding.plots.style import colour_of, tidy


def scatter_pair(axes: Axes, x: ArrayLike, y: ArrayLike, names: tuple[str, str]) -> None:
    """Scatter y against x, with the line y = x and the mean of y − x in the title.

    Args:
        axes: Where to draw.
        x, y: Two figures of each query in nats, shape (N,).
        names: Names of x and y.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low) + 1e-9
    ends = [low - margin, high + margin]
    axes.plot(ends, ends, "-", color="0.75", lw=1, zorder=0)
    axes.plot(x, y, "o", ms=4, alpha=0.7, mec="none", color=colour_of(names[1]))
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    mean, error = mean_and_error(y - x)
    title = f"{names[1]} − {names[0]}: {mean:.3g} ± {error:.2g} nats"
    tidy(axes, title=title, x=f"{names[0]}, nats", y=f"{names[1]}, nats")


def violins(
    axes: Axes, values: Mapping[str, ArrayLike], *, title: str, y: str, body: bool = True
) -> None:
    """One violin per name, with its quartiles and every value as a dot.

    Args:
        axes: Where to draw.
        values: Values by name, each of shape (N,); NaN is left out.
        title: Title of the axes.
        y: Name of the values, with their unit.
        body: Whether to draw the violin itself, which would mislead on a logarithmic axis.
    """
    for position, (name, column) in enumerate(values.items()):
        column = _finite(column)
        if not len(column):
            continue
        if body and np.ptp(column) > 0:
            parts: Any = axes.violinplot([column], [position], widths=0.8, showextrema=False)
            for shape in parts["bodies"]:
                shape.set(facecolor=colour_of(name), alpha=0.35)
        spread = np.linspace(-0.12, 0.12, len(column))
        axes.plot(position + spread, column, ".", ms=5, color=colour_of(name), alpha=0.8)
        low, middle, high = np.percentile(column, [25, 50, 75])
        axes.plot([position] * 2, [low, high], "-", color="0.15", lw=3, solid_capstyle="butt")
        axes.plot(position, middle, "o", color="white", mec="0.15", ms=5, zorder=3)
    axes.set_xticks(range(len(values)), list(values))
    tidy(axes, title=title, y=y)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def boxes(axes: Axes, values: Sequence[ArrayLike], names: Sequence[str], colour: str) -> None:
    """One box per column of values, with every value as a dot."""
    columns = [_finite(column) for column in values]
    axes.boxplot(
        columns,
        positions=range(len(columns)),
        widths=0.6,
        showfliers=False,
        medianprops={"color": "black"},
        boxprops={"color": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    for position, column in enumerate(columns):
        spread = np.linspace(-0.2, 0.2, len(column))
        axes.plot(position + spread, column, ".", ms=3, color=colour, alpha=0.6)
    axes.set_xticks(range(len(columns)), list(names))


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and standard error of values, shape (N,); the error of a single value is NaN."""
    values = np.asarray(values, float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def _finite(values: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]
