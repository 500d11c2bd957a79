"""The common style of all figures: a colour per method, tidy axes, reproducible PNG and SVG."""

from datetime import tzinfo
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

# Okabe & Ito (2008): distinguishable with any common colour blindness, and in print.
COLOURS = {
    "Auto": "#000000",
    "GVI": "#E69F00",
    "NG": "#882255",
    "NF": "#0072B2",
    "FCN": "#009E73",
    "HMC": "#D55E00",
    "HMC, 1 chain": "#8C4A1F",
    "RS": "#CC79A7",
    "CVAE": "#56B4E9",
    "exact": "#666666",
}
OTHER = "#666666"
_DPI = 150
_SETTINGS: Any = {
    "svg.hashsalt": "crosscoding",  # the same element ids in every run
    "svg.fonttype": "none",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with its size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> Axes:
    """Set the labels of axes and hide the top and right of the frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def logarithmic(axis: Axis) -> None:
    """Give a logarithmic axis a few plain labels, even if it spans less than a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def colour_of(label: str) -> str:
    """The colour of a method, given its label."""
    return COLOURS.get(label, OTHER)


def save(figure: Figure, path: Path) -> list[str]:
    """Write a figure as PNG and SVG; returns the names of the files.

    Args:
        figure: The figure.
        path: Path of the files, without suffix.
    """
    with mpl.rc_context(_SETTINGS):
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=_DPI)
        figure.savefig(path.with_name(f"{path.name}.svg"), dpi=_DPI, metadata={"Date": None})
    return [f"{path.name}.png", f"{path.name}.svg"]


def plain(text: str) -> str:
    """Escape text for matplotlib, which reads what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def as_dates(seconds: NDArray[np.floating]) -> NDArray[np.floating]:
    """Seconds since 1970 as matplotlib counts dates; infinite and NaN stay as they are."""
    known = np.isfinite(seconds)
    origin = float(date2num(np.datetime64("1970-01-01")))
    return np.where(known, origin + np.where(known, seconds, 0.0) / 86400, seconds)


def date_axis(axes: Axes, zone: tzinfo) -> None:
    """Label an x-axis of `as_dates` with few and short dates of a time zone."""
    locator = AutoDateLocator(tz=zone, minticks=3, maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
    axes.xaxis.get_offset_text().set_fontsize(8)
