"""Draws the calibration of answers: ranks, their ECDFs, coverage, and bounds on log p(x)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from crosscoding.plots.style import COLOURS, new_figure, tidy

_BINS = 10
_COLOUR, _BAND = COLOURS["NF"], "0.88"


def calibration_figure(
    ranks: tuple[str, ArrayLike],
    places: ArrayLike,
    curves: Mapping[str, ArrayLike],
    band: ArrayLike,
    coverage: Sequence[tuple[float, float, float]],
    gaps: tuple[ArrayLike, ArrayLike],
) -> Figure:
    """Four panels of calibration.

    Args:
        ranks: Name of a quantity, and its ranks between 0 and 1, shape (N,).
        places: Where ECDFs are compared, shape (P,).
        curves: For each quantity, the share of ranks below each place, less the place, (P,).
        band: Half the width of the band that contains a whole curve, (P,).
        coverage: Nominal coverage, estimated coverage and its standard error, for several levels.
        gaps: Lower and upper bound on log p(x), less the answer's, in nats, each (N,).
    """
    figure = new_figure(11.0, 2.9)
    axes = [figure.add_subplot(1, 4, place) for place in range(1, 5)]
    _histogram(axes[0], *ranks)
    _curves(axes[1], np.asarray(places), curves, np.asarray(band))
    _coverage(axes[2], coverage)
    _bounds(axes[3], *gaps)
    return figure


def _histogram(axes: Axes, name: str, ranks: ArrayLike) -> None:
    """Counts in bins, over the range of 95 % of counts if ranks are uniform."""
    ranks = np.asarray(ranks)
    mean = len(ranks) / _BINS
    spread = 1.96 * np.sqrt(mean * (1 - 1 / _BINS))
    axes.axhspan(max(mean - spread, 0.0), mean + spread, color=_BAND, zorder=0)
    axes.hist(ranks, np.linspace(0, 1, _BINS + 1).tolist(), color=_COLOUR, alpha=0.8, rwidth=0.9)
    tidy(axes, title=f"ranks of {name}", x="rank of the truth", y="twins")


def _curves(
    axes: Axes, places: np.ndarray, curves: Mapping[str, ArrayLike], band: np.ndarray
) -> None:
    axes.fill_between(places, -band, band, color=_BAND, zorder=0)
    for curve in curves.values():
        axes.plot(places, np.asarray(curve), color=_COLOUR, lw=0.9, alpha=0.6)
    tidy(axes, title="ECDFs, less uniform", x="rank of the truth", y="difference")


def _coverage(axes: Axes, coverage: Sequence[tuple[float, float, float]]) -> None:
    axes.plot([0, 1], [0, 1], "-", color="0.75", lw=1, zorder=0)
    for nominal, found, error in coverage:
        if np.isfinite(found):
            axes.errorbar(nominal, found, 1.96 * error, fmt="o", ms=4, color=_COLOUR, capsize=3)
    axes.set_xlim(0.4, 1.0)
    axes.set_ylim(0.0, 1.02)
    tidy(axes, title="missing elements", x="central interval", y="coverage")


def _bounds(axes: Axes, lower: ArrayLike, upper: ArrayLike) -> None:
    lower, upper = np.asarray(lower), np.asarray(upper)
    order = np.argsort(upper - lower)
    place = np.arange(len(order))
    axes.axhline(0.0, color="0.75", lw=1, zorder=0)
    axes.plot(place, lower[order], ".", ms=3, color=COLOURS["FCN"], label="lower bound")
    axes.plot(place, upper[order], ".", ms=3, color=COLOURS["HMC"], label="upper bound")
    axes.legend(fontsize=7, frameon=False)
    tidy(axes, title="bounds, less log p(x)", x="twins, by gap", y="nats")
