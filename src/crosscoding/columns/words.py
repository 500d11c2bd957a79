"""A value of a column as text, in the user's units."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from crosscoding.columns.cells import units_of
from crosscoding.columns.column import Column, Limits
from crosscoding.columns.frames import column_of
from crosscoding.display import Cell, Grid, shown_number

if TYPE_CHECKING:
    import pandas as pd

_DIGITS = 4
_WEEK = 7 * 86400.0
_PRECISION = 2.0**-22  # twice the relative precision of a float32
_ROWS, _COLUMNS = 5, 8  # of a table that are shown
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def in_words(column: Column, value: float, *, given: bool = False) -> str:
    """A value in the column's units as text: a category, a date, a duration or a number.

    Args:
        column: The value's column.
        value: As `Column.from_tensor` gives it; NaN is shown as a dash.
        given: Whether it is a user's value, whose last digits a tensor may have lost. Other dates
            are rounded to days if the column's scale is more than a week.
    """
    if math.isnan(value):
        return shown_number(value)
    if given:
        value = float(column.rounded(np.array(value)))
    if column.is_listed:
        return str(column.categories[min(max(round(value), 0), len(column.categories) - 1)])
    if column.kind == "date":
        slack = _PRECISION * (abs(value - column.shift) + column.scale) if given else 0.0
        return _date(value, zone_of(column), slack, whole=not given and column.scale > _WEEK)
    if is_duration(column):
        name, seconds = unit_of(abs(value))
        return f"{shown_number(value / seconds, 3)} {name}"
    text = shown_number(value, _DIGITS)
    if given and "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text


def is_duration(column: Column) -> bool:
    """Whether a column's numbers are seconds of durations."""
    return column.dtype.startswith(("timedelta", "duration"))


def unit_of(seconds: float) -> tuple[str, float]:
    """The largest unit of time that is not longer than this, and its length in seconds."""
    return next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])


def zone_of(column: Column) -> tzinfo:
    """The time zone of a column of dates; UTC if it has none or is unknown here."""
    name = column.dtype.partition(",")[2].strip(" ]")
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def _date(seconds: float, zone: tzinfo, slack: float, *, whole: bool) -> str:
    """A point in time; only its day if `whole`, or if it is a day's start to within `slack`."""
    try:
        found = datetime.fromtimestamp(round(seconds), tz=UTC).astimezone(zone)
        later = found + timedelta(seconds=slack)
        since = timedelta(hours=later.hour, minutes=later.minute, seconds=later.second)
        if whole:
            return (found + timedelta(hours=12)).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.6g} s"
    if since.total_seconds() <= 2 * slack:
        return later.strftime("%Y-%m-%d")
    return found.strftime("%Y-%m-%d %H:%M")


def grid_of_rows(
    frame: "pd.DataFrame",
    columns: Sequence[Column],
    limits: Limits,
    conditions: Mapping[str | int, Any],
) -> Grid:
    """The first rows: given cells, what is known of others, and a dash for gaps.

    Args:
        frame: The rows.
        columns: All columns of the table.
        limits: Low and high bounds in the columns' units, each of shape (N,), by column.
        conditions: Sets of possible values, by column.
    """
    index = [str(label) for label in frame.index[:_ROWS]]
    cells = [_cells(frame, column, limits, conditions) for column in columns[:_COLUMNS]]
    rows = tuple(zip(index, *cells, strict=True))
    more = []
    if len(frame) > _ROWS:
        more.append(f"{len(frame) - _ROWS:,} more rows")
    if len(columns) > _COLUMNS:
        more.append(f"{len(columns) - _COLUMNS:,} more columns")
    names = ("", *(str(column.name) for column in columns[:_COLUMNS]))
    return Grid(rows, names, more=f"… {', '.join(more)}" if more else "")


def _cells(
    frame: "pd.DataFrame", column: Column, limits: Limits, conditions: Mapping[str | int, Any]
) -> list[Cell]:
    """The first cells of a column."""
    name, num = column.name, min(len(frame), _ROWS)
    known = [math.nan] * num
    if name in frame.columns:
        known = units_of(column_of(frame, name).iloc[:num], column)[0].tolist()
    if name in limits:
        low, high = limits[name]
        between = [_between(column, *ends) for ends in zip(low[:num], high[:num], strict=True)]
    elif name in conditions:
        between = [f"one of {', '.join(sorted(map(str, conditions[name])))}"] * num
    else:
        between = [shown_number(math.nan)] * num
    return [
        in_words(column, value, given=True) if not math.isnan(value) else words
        for value, words in zip(known, between, strict=True)
    ]


def _between(column: Column, low: Any, high: Any) -> str:
    """An interval in words."""
    if math.isinf(low) or math.isinf(high):
        end = in_words(column, high if math.isinf(low) else low, given=True)
        return f"≤ {end}" if math.isinf(low) else f"≥ {end}"
    return f"{in_words(column, low, given=True)} to {in_words(column, high, given=True)}"
