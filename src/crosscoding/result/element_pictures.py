"""Answers for vectors and signals: intervals or bands over the elements' numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscoding.plots import ElementValues, Panels, lines_of, panels_on, plain, tidy
from crosscoding.plots import draw_classes as draw_circles
from crosscoding.plots import draw_elements as draw_intervals
from crosscoding.result.look import Look
from crosscoding.result.picture_answers import picture_shape
from crosscoding.result.views import View

_SIZE = (8.0, 2.3)


def draw_elements(view: View, look: Look, given: Any) -> Panels:
    """A panel for each query and each of its lines."""
    num_lines, length = lines_of(picture_shape(view, look.shape))
    panels = panels_on(given, (len(view.names), num_lines), _SIZE, columns=1)
    known, mean, (low, high) = view.known, view.mean(), view.interval(look.level)
    probabilities, draws = view.probabilities(), view.means_at_draws(look.num)
    is_class = ~np.isnan(probabilities[..., 0])
    many = is_class & (np.nan_to_num(probabilities[..., 2:]).sum(-1) > 0)
    blank = np.where(is_class, np.nan, 0.0)
    blank_mean = np.where(many & ~known.exact, np.nan, 0.0)
    for query, title in enumerate(view.titles):
        for line, axes in enumerate(panels[query]):
            own = slice(line * length, (line + 1) * length)
            elements = ElementValues(
                mean=(mean + blank_mean)[query, own],
                low=(low + blank)[query, own],
                high=(high + blank)[query, own],
                value=known.value[query, own],
                noise=known.noise[query, own],
                at_least=known.low[query, own],
                at_most=known.high[query, own],
                draws=(draws + blank_mean)[:, query, own],
                is_class=is_class[query, own],
            )
            first = query == 0 and line == 0
            draw_intervals(axes, elements, interval=f"{look.level:.0%} interval", legend=first)
            _circles(view, axes, probabilities[query, own], many[query, own], query, own)
            last = query == len(view.names) - 1 and line == num_lines - 1
            tidy(axes, x="element" if last else "", y=f"channel {line}" if num_lines > 1 else "")
            axes.set_title(plain(title), fontsize=9, loc="right")
    return panels


def _circles(
    view: View,
    axes: Any,
    probabilities: NDArray[Any],
    many: NDArray[np.bool_],
    query: int,
    own: slice,
) -> None:
    """Draw class probabilities of elements with more than two classes, where not observed."""
    free = many & ~view.known.exact[query, own]
    if not free.any():
        return
    allowed = np.ones_like(probabilities)
    if view.known.allowed is not None:
        given = view.known.allowed[query, own][:, : allowed.shape[1]]
        allowed[:, : given.shape[1]] = given
    exists = probabilities[free] > 0
    shown = np.where(exists | (allowed[free] == 0), probabilities[free], np.nan)
    draw_circles(axes, np.flatnonzero(free).astype(float), shown, allowed[free])
