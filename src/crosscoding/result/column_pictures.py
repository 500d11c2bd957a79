"""Answers for columns of a table: densities of numbers and dates, bars of counts and classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosscoding.columns import Column, Table
from crosscoding.columns.words import in_words, is_duration, unit_of, zone_of
from crosscoding.errors import unknown_name
from crosscoding.plots import (
    Panels,
    as_dates,
    draw_categories,
    draw_counts,
    draw_density,
    draw_given,
    panels_on,
    plain,
    tidy,
)
from crosscoding.result.look import Look
from crosscoding.result.views import View, array, of_categories

_SIZE = (2.7, 2.0)
_ACROSS, _MOST_COLUMNS = 4, 12
_PLACES, _MORE_PLACES = 128, 64  # where a density is evaluated: evenly, and at quantiles of draws
_TAIL = 0.002  # nothing is drawn beyond this quantile and 1 minus it
_LEAST_BAR = 3e-3  # share of the highest bar of a count, below which bars are left out
_MOST_NAMED = 6  # counts of a set that are listed
_MOST_TERMS = 1e8  # evaluations of densities: about two seconds


def draw_columns(view: View, look: Look, given: Any) -> Panels:
    """A panel for each query and column."""
    table = view.target.model.table
    assert table is not None
    places = _chosen(table, view, look.only)
    across = _ACROSS if len(view.names) == 1 else len(places)
    panels = panels_on(given, (len(view.names), len(places)), _SIZE, columns=across)
    answers = _Columns(view, table, look.level)
    lines = [answers.words(q, c).count("\n") + 1 for q in range(len(view.names)) for c in places]
    for query in range(len(view.names)):
        for axes, place in zip(panels[query], places, strict=True):
            answers.draw(axes, query, place, max(lines))
        if len(view.names) > 1:
            panels[query, 0].set_ylabel(plain(view.titles[query].replace(": ", "\n")), fontsize=9)
    if given is None and len(view.names) == 1:
        panels.figure.suptitle(plain(view.titles[0]), fontsize=10, x=0.01, ha="left")
    return panels


def _chosen(table: Table, view: View, only: Sequence[str | int] | None) -> list[int]:
    """Places of the columns to draw; by default all, or if there are many, those not known."""
    if only is None:
        places = list(range(len(table)))
        free = [place for place in places if not view.known.exact[:, place].all()]
        return places if len(places) <= _MOST_COLUMNS else (free or places)[:_MOST_COLUMNS]
    for name in only:
        if name not in table.names:
            raise unknown_name("column in only", str(name), map(str, table.names))
    if not only:
        raise ValueError("expected at least one column in only, got none")
    return [table.names.index(name) for name in only]


class _Columns:
    """Answers to all queries, in the data's units.

    Args:
        view: The queries.
        table: The columns.
        level: Probability of the intervals.
    """

    def __init__(self, view: View, table: Table, level: float) -> None:
        self._known, self._table, self._level = view.known, table, level
        self._mean, (self._low, self._high) = view.mean(), view.interval(level)
        self._probabilities = view.probabilities()
        self._places, self._density = self._densities(view)

    @torch.no_grad()
    def _densities(self, view: View) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values, and p(t|x) there, both (P, B, columns)."""
        num_terms = (_PLACES + _MORE_PLACES) * len(view.names) * len(self._table)
        z = view.latents(int(min(max(_MOST_TERMS / num_terms, 64), 1024)))
        levels = torch.linspace(_TAIL, 1 - _TAIL, _MORE_PLACES, dtype=torch.double)
        quantiles = view.answers.quantile(z, levels, view._generator)
        low, high = quantiles[0], quantiles[-1]
        margin = 0.04 * (high - low)
        shares = torch.linspace(0, 1, _PLACES).to(low)[:, None, None]
        even = (low - margin) + shares * (high - low + 2 * margin)
        values = torch.cat([even, quantiles]).sort(0).values
        for place, column in enumerate(self._table.columns):
            if column.is_listed:
                values[..., place] = 0.0
            elif column.kind == "count":
                values[..., place] = self._counts(values[..., place])
            elif column.kind == "positive":
                values[..., place] = values[..., place].clamp_min(
                    1e-6 * float(high[:, place].max())
                )
        known = view.target.evidence.uncertain
        if known is not None:  # the ends of an interval are drawn, not what is beyond
            bounded = known.is_bounded
            values = torch.where(bounded, values.clamp(known.low, known.high), values)
        return array(values), array(view.answers.density(z, values))

    @staticmethod
    def _counts(values: torch.Tensor) -> torch.Tensor:
        """Whole numbers between the ends of values (P, B): all, or evenly spread if too many."""
        low, high = values.amin(0).floor().clamp_min(0), values.amax(0).ceil()
        num = len(values)
        step = ((high - low) / (num - 1)).clamp_min(1.0).ceil()
        return low + step * torch.arange(num, device=values.device).to(values)[:, None]

    def draw(self, axes: Any, query: int, place: int, num_lines: int) -> None:
        """One panel, with its name above `num_lines` lines of words."""
        column, exact = self._table.columns[place], bool(self._known.exact[query, place])
        tidy(axes)
        if column.is_listed:
            self._draw_listed(axes, query, place)
        elif exact:
            self._draw_given(axes, query, place)
        else:
            self._draw_number(axes, query, place)
        axes.tick_params(labelsize=8)
        axes.set_title(plain(f"{column.name}"), fontsize=10, loc="left", pad=8 + 11 * num_lines)
        words = {"transform": axes.transAxes, "fontsize": 8, "color": "0.35", "va": "bottom"}
        axes.text(0.0, 1.03, plain(self.words(query, place)), **words)

    def _draw_listed(self, axes: Any, query: int, place: int) -> None:
        column, known = self._table.columns[place], self._known
        names = [str(category) for category in column.categories]
        status = [""] * len(names)
        if known.exact[query, place]:
            status[round(known.value[query, place])] = "given"
        else:
            allowed = np.ones(len(names), dtype=bool)
            if known.allowed is not None:
                own = known.allowed[query, place][: len(names)]
                allowed[: len(own)] = own
            numbers = np.arange(len(names))
            allowed &= numbers >= known.low[query, place]
            allowed &= numbers <= known.high[query, place]
            status = ["" if free else "excluded" for free in allowed]
        probabilities = of_categories(self._probabilities[query, place], len(names))
        draw_categories(axes, [plain(name) for name in names], probabilities, status)

    def _draw_given(self, axes: Any, query: int, place: int) -> None:
        column, value = self._table.columns[place], self._known.value[query, place]
        around = (value - 3, value + 3) if column.kind in ("number", "date") else (0, 2 * value + 1)
        unit = _Unit(column)
        shown, *ends = unit.shown(np.array([value, *around]))
        draw_given(axes, shown, *ends, integer=column.kind == "count")
        unit.set_axis(axes)

    def _draw_number(self, axes: Any, query: int, place: int) -> None:
        column, known, unit = (
            self._table.columns[place],
            self._known,
            _Unit(self._table.columns[place]),
        )
        places, density = self._places[:, query, place], self._density[:, query, place]
        ends = (self._low[query, place], self._high[query, place])
        value = None
        if known.noise[query, place] > 0:
            seen, noise = known.value[query, place], known.noise[query, place]
            spread = unit.shown(np.array([seen, seen + noise]))
            value = (float(spread[0]), float(spread[1] - spread[0]))
        kind = draw_counts if column.kind == "count" else draw_density
        if column.kind == "count":
            places, first = np.unique(places, return_index=True)
            density = density[first]
            keep = density > _LEAST_BAR * density.max()
            places, density = places[keep], density[keep]
        kind(
            axes,
            unit.shown(places),
            density,
            tuple(unit.shown(np.array(ends))),
            float(unit.shown(self._mean[query, place])),
            bounds=tuple(unit.shown(np.array([known.low[query, place], known.high[query, place]]))),
            value=value,
        )
        unit.set_axis(axes)

    def words(self, query: int, place: int) -> str:
        """What was known, and the interval."""
        column, known = self._table.columns[place], self._known

        def said(value: float, *, given: bool = False) -> str:
            return in_words(column, float(column.from_tensor(np.array(value))), given=given)

        if known.exact[query, place]:
            return f"given: {said(known.value[query, place], given=True)}"
        parts = []
        bounds = known.low[query, place], known.high[query, place]
        low, high = (said(b, given=True) if np.isfinite(b) else "" for b in bounds)
        if low or high:
            words = f"{low} to {high}" if low and high else f"≥ {low}" if low else f"≤ {high}"
            parts.append(f"known: {words}")
        if known.noise[query, place] > 0:
            parts.append(f"given with noise: {said(known.value[query, place], given=True)}")
        if column.kind == "count" and known.allowed is not None:
            allowed = known.allowed[query, place]
            if not allowed.all():
                parts.append(f"known: one of {_listed(np.flatnonzero(allowed).tolist())}")
        if not column.is_listed:
            ends = self._low[query, place], self._high[query, place]
            parts.append(f"{self._level:.0%}: {said(ends[0])} to {said(ends[1])}")
        return "\n".join(parts)


def _listed(numbers: list[int]) -> str:
    """The first of some numbers."""
    return ", ".join(map(str, numbers[:_MOST_NAMED])) + ", …" * (len(numbers) > _MOST_NAMED)


class _Unit:
    """How a column's numbers are put on an axis: as they are, as dates, or as a unit of time."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._name, self._seconds = "", 1.0
        if is_duration(column):
            self._name, self._seconds = unit_of(column.scale)

    def shown(self, values: NDArray[Any]) -> NDArray[Any]:
        """Places on the axis of numbers in tensors."""
        column = self._column
        shift, scale = (0.0, 1.0) if column.is_listed else (column.shift, column.scale)
        in_units = shift + scale * np.asarray(values, dtype="float64")
        return as_dates(in_units) if column.kind == "date" else in_units / self._seconds

    def set_axis(self, axes: Any) -> None:
        """Set the axis's ticks and label."""
        if self._column.kind == "date":
            from crosscoding.plots import date_axis

            date_axis(axes, zone_of(self._column))
        elif self._name:
            axes.set_xlabel(self._name, fontsize=9)
