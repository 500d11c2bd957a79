"""Draws what an answer says about single elements: intervals, densities, probabilities.

Evidence is orange, answers are blue: colours of Okabe & Ito (2008), which differ for every common
kind of colour blindness, and markers differ too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWNBASE, CARETUPBASE
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from crosscoding.plots.style import COLOURS, tidy

ANSWER, EVIDENCE, NEUTRAL = COLOURS["NF"], COLOURS["HMC"], "0.75"
_MOST_BARS = 40  # elements or counts that are drawn one by one; more are drawn as lines
_MOST_LISTED = 12  # categories with a bar of their own
_MOST_TEXT = 16  # characters of a category

Values = NDArray[np.floating]


@dataclass(frozen=True)
class ElementValues:
    """An answer for a row of elements, and what was known of them, each of shape (E,).

    Args:
        mean: E[t|x].
        low, high: Ends of the interval; NaN where there is none, as for classes.
        value: Observed values; NaN where there is none.
        noise: Standard deviations of observed values; 0 where they are exact.
        at_least, at_most: Known bounds; ±∞ where there are none.
        draws: Lines E[t|z] at draws of z, shape (num, E).
        is_class: Which elements are zeros and ones or classes; no line joins their numbers.
    """

    mean: Values
    low: Values
    high: Values
    value: Values
    noise: Values
    at_least: Values
    at_most: Values
    draws: Values
    is_class: NDArray[np.bool_]


def draw_elements(axes: Axes, elements: ElementValues, *, interval: str, legend: bool) -> None:
    """Draw intervals over the number of the element: bars if they are few, otherwise a band.

    Args:
        axes: Where to draw.
        elements: What to draw.
        interval: The name of the interval.
        legend: Whether to explain colours.
    """
    num = len(elements.mean)
    places = np.arange(num, dtype=float)
    free = np.isnan(elements.value)
    few = num <= _MOST_BARS
    if few:
        axes.vlines(
            places[free], elements.low[free], elements.high[free], color=ANSWER, lw=4, alpha=0.4
        )
        axes.plot(places[free], elements.mean[free], "o", color=ANSWER, ms=5, ls="none")
    else:
        joined = np.where(elements.is_class, np.nan, 0.0)
        for line in elements.draws:
            axes.plot(places, line + joined, color=ANSWER, lw=0.6, alpha=0.45)
        axes.fill_between(places, elements.low, elements.high, color=ANSWER, alpha=0.25, lw=0)
        axes.plot(places, elements.mean + joined, color=ANSWER, lw=1.6)
        apart = elements.is_class & free
        axes.plot(places[apart], elements.mean[apart], ".", color=ANSWER, ms=4)
    _mark_values(axes, elements, places, few)
    _mark_bounds(axes, elements, places, few)
    axes.set_xlim(-0.6 if few else 0, num - 0.4 if few else max(num - 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, x="element")
    if legend:
        axes.legend(handles=_legend(elements, interval, few), **_OUTSIDE)


_OUTSIDE = {
    "fontsize": 8,
    "frameon": False,
    "loc": "lower left",
    "bbox_to_anchor": (0.0, 1.0),
    "ncols": 5,
    "columnspacing": 1.4,
    "handletextpad": 0.5,
    "borderaxespad": 0.2,
}


def _mark_values(axes: Axes, elements: ElementValues, places: Values, few: bool) -> None:
    """Observed values, with two standard deviations of their noise."""
    seen = ~np.isnan(elements.value)
    size = 7 if few else 4
    marker = {"color": EVIDENCE, "ls": "none", "ms": size, "zorder": 4, "mec": "white", "mew": 0.6}
    axes.plot(places[seen], elements.value[seen], "D", **marker)
    noisy = seen & (elements.noise > 0)
    if noisy.any():
        spread = 1.96 * elements.noise[noisy]
        axes.errorbar(
            places[noisy], elements.value[noisy], spread, fmt="none", color=EVIDENCE, lw=1.2
        )
        # a value with noise has an answer, drawn beside it
        low, high = elements.low[noisy], elements.high[noisy]
        axes.vlines(places[noisy] + 0.22, low, high, color=ANSWER, lw=4, alpha=0.4)
        axes.plot(places[noisy] + 0.22, elements.mean[noisy], "o", color=ANSWER, ms=4, ls="none")


def _mark_bounds(axes: Axes, elements: ElementValues, places: Values, few: bool) -> None:
    """Known bounds as dashes: two are joined by a line, one alone points to what is possible."""
    low, high = elements.at_least, elements.at_most
    style = {"color": EVIDENCE, "ls": "none", "zorder": 3}
    both = np.isfinite(low) & np.isfinite(high)
    axes.vlines(places[both], low[both], high[both], color=EVIDENCE, lw=1.2)
    for bound, pointing in ((low, CARETUPBASE), (high, CARETDOWNBASE)):
        known = np.isfinite(bound)
        axes.plot(places[known], bound[known], "_", ms=12 if few else 5, mew=1.8, **style)
        alone = known & ~both
        axes.plot(places[alone], bound[alone], marker=pointing, ms=6 if few else 3, **style)


def _legend(elements: ElementValues, interval: str, few: bool) -> list[Line2D]:
    dots, lines = few or elements.is_class.all(), []
    if not np.isnan(elements.mean).all():
        marker, width = ("o", 0.0) if dots else ("", 1.6)
        lines.append(Line2D([], [], color=ANSWER, marker=marker, lw=width, ms=5, label="mean"))
    if not elements.is_class.all():
        lines.append(Line2D([], [], color=ANSWER, lw=5, alpha=0.4 if few else 0.25, label=interval))
    if (np.isnan(elements.mean) & elements.is_class & np.isnan(elements.value)).any():
        words = "class (area: probability)"
        lines.append(Line2D([], [], color=ANSWER, marker="o", lw=0, ms=8, alpha=0.7, label=words))
    if not dots and len(elements.draws):
        lines.append(Line2D([], [], color=ANSWER, lw=0.6, label="draws"))
    if not np.isnan(elements.value).all():
        lines.append(Line2D([], [], color=EVIDENCE, marker="D", lw=0, ms=5, label="observed"))
    if np.isfinite(elements.at_least).any() or np.isfinite(elements.at_most).any():
        lines.append(Line2D([], [], color=EVIDENCE, marker="_", lw=0, ms=9, mew=2, label="bound"))
    return lines


def draw_classes(axes: Axes, places: Values, probabilities: Values, allowed: Values) -> None:
    """Probabilities of classes as circles, of area p, at height k over the number of the element.

    Args:
        axes: Where to draw.
        places: Numbers of elements, shape (E,).
        probabilities: Shape (E, K), NaN where an element has no such class.
        allowed: 0 for classes that evidence excludes, shape (E, K).
    """
    x, k = np.broadcast_arrays(places[:, None], np.arange(probabilities.shape[1]))
    p = np.nan_to_num(probabilities)
    axes.scatter(x.ravel(), k.ravel(), s=90 * p.ravel(), color=ANSWER, alpha=0.7, lw=0)
    out = (allowed == 0) & ~np.isnan(probabilities)
    axes.plot(x[out], k[out], "x", color=EVIDENCE, ms=4, ls="none")


# ---- one element ---------------------------------------------------------------------------------


def draw_density(
    axes: Axes,
    places: Values,
    density: Values,
    interval: tuple[float, float],
    mean: float,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    value: tuple[float, float] | None = None,
) -> None:
    """The density of a number, with its interval below and what was known in orange.

    Args:
        axes: Where to draw.
        places: Shape (P,), ascending, in any unit that the axes take as a number.
        density: Shape (P,).
        interval: Ends of the interval, drawn below the density.
        mean: Drawn as a point.
        bounds: Known bounds.
        value: A value and the standard deviation of its noise, if one was observed with noise.
    """
    top = float(density.max()) or 1.0
    axes.fill_between(places, density, color=ANSWER, alpha=0.25, lw=0)
    axes.plot(places, density, color=ANSWER, lw=1.4)
    _draw_interval(axes, interval, mean, top)
    _draw_knowledge(axes, bounds, value, top)
    _without_heights(axes)


def draw_counts(
    axes: Axes,
    counts: Values,
    probabilities: Values,
    interval: tuple[float, float],
    mean: float,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    value: tuple[float, float] | None = None,
) -> None:
    """Probabilities of counts as bars, or a line if they are many; arguments as `draw_density`."""
    top = float(probabilities.max()) or 1.0
    if len(counts) <= _MOST_BARS:
        axes.bar(counts, probabilities, width=0.8, color=ANSWER, alpha=0.55, lw=0)
    else:
        axes.fill_between(counts, probabilities, step="mid", color=ANSWER, alpha=0.45, lw=0)
    _draw_interval(axes, interval, mean, top)
    _draw_knowledge(axes, bounds, value, top)
    _without_heights(axes, integer=True)


def draw_categories(
    axes: Axes, names: Sequence[str], probabilities: Values, status: Sequence[str]
) -> None:
    """Probabilities of categories as horizontal bars; if many, those after the likeliest as one.

    Args:
        axes: Where to draw.
        names: Categories.
        probabilities: Shape (K,).
        status: "given", "excluded" or "" for each category.
    """
    shown = list(range(len(names)))
    if len(names) > _MOST_LISTED:
        likeliest = np.argsort(-probabilities, kind="stable")[: _MOST_LISTED - 1]
        shown = sorted(likeliest.tolist())
    labels = [_short(names[k]) for k in shown]
    values = [float(probabilities[k]) for k in shown]
    states = [status[k] for k in shown]
    if len(shown) < len(names):
        labels.append(f"{len(names) - len(shown)} others")
        values.append(max(1.0 - sum(values), 0.0))
        states.append("")
    colours = [EVIDENCE if state == "given" else ANSWER for state in states]
    places = np.arange(len(labels))
    axes.barh(places, values, height=0.7, color=colours, alpha=0.75, lw=0)
    for place, (value, state) in enumerate(zip(values, states, strict=True)):
        words = state or (f"{value:.0%}" if value >= 0.005 else "<1%")
        words = "" if "given" in states and not state else words
        colour = EVIDENCE if state else "0.25"
        axes.text(value + 0.02, place, words, va="center", fontsize=8, color=colour)
    axes.set_yticks(places, labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 1.22)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def draw_given(axes: Axes, value: float, low: float, high: float, *, integer: bool = False) -> None:
    """A value that was observed exactly, on an axis from low to high; `integer`: whole ticks."""
    axes.axvline(value, color=EVIDENCE, lw=2)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1)
    _without_heights(axes, integer=integer)


def _without_heights(axes: Axes, *, integer: bool = False) -> None:
    """Hide the vertical axis, and leave few ticks on the other, as numbers may be long."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=integer))
    axes.xaxis.get_offset_text().set_fontsize(8)


def _draw_interval(axes: Axes, interval: tuple[float, float], mean: float, top: float) -> None:
    """The interval and the mean, in a strip below zero."""
    height = -0.09 * top
    axes.plot(list(interval), [height] * 2, color=ANSWER, lw=4, solid_capstyle="butt", alpha=0.9)
    axes.plot([mean], [height], "o", color="white", mec="0.1", ms=5, zorder=4)
    axes.set_ylim(-0.18 * top, 1.08 * top)
    axes.axhline(0.0, color=NEUTRAL, lw=0.8, zorder=0)


def _draw_knowledge(
    axes: Axes, bounds: tuple[float, float], value: tuple[float, float] | None, top: float
) -> None:
    for bound in bounds:
        if np.isfinite(bound):
            axes.axvline(bound, color=EVIDENCE, lw=1.4, ls=(0, (4, 2)))
    if value is not None:
        seen, noise = value
        axes.errorbar([seen], [0.5 * top], xerr=[1.96 * noise], fmt="none", color=EVIDENCE, lw=1.4)
        axes.plot([seen], [0.5 * top], "D", color=EVIDENCE, ms=6, mec="white", mew=0.6)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_TEXT else f"{name[: _MOST_TEXT - 1]}…"
