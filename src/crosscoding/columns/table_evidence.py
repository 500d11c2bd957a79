"""Evidence that comes from a DataFrame, and conditions on its columns in the user's units."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.columns.cells import dtype_of, filled, shown, units_of, values_of
from crosscoding.columns.column import Column, Limits
from crosscoding.columns.frames import checked_frame, column_of
from crosscoding.columns.words import grid_of_rows
from crosscoding.display import Description
from crosscoding.errors import unknown_name
from crosscoding.evidence import Evidence
from crosscoding.uncertain_values import UncertainValues

if TYPE_CHECKING:
    import pandas as pd

    from crosscoding.columns.table import Table

_LARGEST_IN_SET = 10_000  # largest count in a set: it takes a boolean per cell for each up to it


@dataclass(frozen=True, eq=False, init=False, repr=False)
class TableEvidence(Evidence):
    """Evidence made from a DataFrame by `Table.evidence` or `Table.query`.

    Parts of it, and combinations with other evidence, are plain `Evidence`.

    Attributes:
        table: The table.
        frame: The rows, as they were passed; gaps are the query.
        conditions: Intervals and sets, by name, as they were passed.
        limits: Low and high bounds of columns in their units, each of shape (N,), by name.
    """

    table: "Table"
    frame: "pd.DataFrame"
    conditions: Mapping[str | int, Any]
    limits: Limits

    def _described(self, *, pictures: bool) -> Description:
        found = super()._described(pictures=pictures)
        grid = grid_of_rows(self.frame, self.table.columns, self.limits, self.conditions)
        return replace(found, title="Evidence of a table", grids=(grid,))

    @staticmethod
    def made(evidence: Evidence, **more: Any) -> "TableEvidence":
        """Evidence with the attributes of this class."""
        found = object.__new__(TableEvidence)
        for name, value in {**vars(evidence), **more}.items():
            object.__setattr__(found, name, value)
        return found

    def to(self, dtype: torch.dtype, device: torch.device) -> "TableEvidence":
        """The same in another dtype and on another device."""
        found = self
        if dtype != self.values.dtype:
            found = query_evidence(self.table, self.conditions, self.frame, None, dtype)
        if found.values.device == device:
            return found
        moved: dict[str, Any] = {
            name: getattr(found, name).to(device) for name in ("values", "mask", "exact")
        }
        if (known := found.uncertain) is not None:
            allowed = None if known.allowed is None else known.allowed.to(device)
            noise, low, high = (part.to(device) for part in (known.noise, known.low, known.high))
            moved["uncertain"] = UncertainValues(noise, low, high, allowed)
        return TableEvidence.made(found, **moved)


def rows_evidence(table: "Table", frame: "pd.DataFrame", dtype: torch.dtype) -> TableEvidence:
    """`Table.evidence`."""
    return query_evidence(table, {}, frame, None, dtype)


def query_evidence(
    table: "Table",
    conditions: Mapping[Any, Any],
    rows: "pd.DataFrame | None",
    num: int | None,
    dtype: torch.dtype,
) -> TableEvidence:
    """`Table.query`."""
    for name in conditions:
        if name not in table.names:
            raise unknown_name("column", str(name), map(str, table.names))
    frame, limits, kept = _rows(rows, num), {}, {}
    for name, condition in conditions.items():
        value = condition
        if isinstance(condition, tuple):
            limits[name] = _limits(table[name], condition, len(frame))
            value, kept[name] = _points(table[name], condition, limits[name], dtype), condition
        elif isinstance(condition, (set, frozenset)):
            value, kept[name] = None, condition
        if value is not None:
            frame = _with_value(frame, table[name], value, condition)
    found = Evidence(*table.to_tensors(frame, dtype=dtype))
    for name, condition in kept.items():
        if isinstance(condition, tuple):
            more = _interval(table, name, limits[name], found.values)
        else:
            more = _one_of(table, name, condition, found.values)
        if more.uncertain is not None:
            outside = (found.exact & more.uncertain.excludes(found.values)).numpy()
            place = table.names.index(name)
            _check_agrees(frame, table[name], condition, outside[:, place])
        found = found & more
    return TableEvidence.made(found, table=table, frame=frame, conditions=kept, limits=limits)


def _rows(rows: "pd.DataFrame | None", num: int | None) -> "pd.DataFrame":
    import pandas as pd

    if rows is not None:
        if num not in (None, len(rows)):
            raise ValueError(f"expected num to be left out with {len(rows)} rows, got {num}")
        return checked_frame(rows)
    num = 1 if num is None else num
    if isinstance(num, bool) or not isinstance(num, int) or num < 0:
        raise ValueError(f"expected a number of rows >= 0, got {num!r}")
    return pd.DataFrame(index=pd.RangeIndex(num))


def _series(column: Column, value: Any, num: int) -> "pd.Series":
    """One value for all rows, or one for each, as cells."""
    import pandas as pd

    if isinstance(value, list):
        raise ValueError(
            f"{column.where}: expected a value, a tuple (low, high) or a set of categories, got a "
            "list; write {...} for a set, or give an array with a value for each row"
        )
    is_day = isinstance(value, date) and not isinstance(value, datetime)
    if column.kind == "date" and (is_day or isinstance(value, str)):
        try:
            time = pd.Timestamp(value)
            zone = dtype_of(column).tz if "," in column.dtype else None
            value = time.tz_localize(zone) if zone is not None and time.tz is None else time
        except ValueError as error:
            reason = str(error).rstrip(".").partition(" Try ")[0].partition(", try ")[0]
            raise ValueError(f"{column.where}: expected a date, got {value!r}: {reason}") from None
    if isinstance(value, (pd.Series, np.ndarray)) and np.ndim(value):
        if np.shape(value) != (num,):
            raise ValueError(
                f"{column.where}: expected one value for each of {num} rows, got {len(value)}"
            )
        return pd.Series(getattr(value, "array", value))
    return pd.Series([value] * num)


def _with_value(
    frame: "pd.DataFrame", column: Column, value: Any, condition: Any
) -> "pd.DataFrame":
    """The rows with the value of a condition in its column; raises if a cell contradicts it."""
    name, series = column.name, _series(column, value, len(frame))
    values, there = values_of(series, column)
    if len(there) and not there.any():
        return frame
    if name not in frame.columns or bool(column_of(frame, name).isna().all()):
        series.index = frame.index
        return _set(frame, name, _in_dtype(series, column, values))
    known, observed = values_of(column_of(frame, name), column)
    _check_agrees(frame, column, condition, observed & there & (known != values))
    return _set(frame, name, filled(column_of(frame, name), column, values, frame.index))


def _in_dtype(series: "pd.Series", column: Column, values: np.ndarray) -> "pd.Series":
    """Cells in the dtype of their column, if that holds them exactly."""
    own = filled(None, column, values, series.index)
    holds = own.dtype == dtype_of(column) and bool((own == series)[series.notna()].all())
    return own if holds else series


def _set(frame: "pd.DataFrame", name: str | int, series: "pd.Series") -> "pd.DataFrame":
    copy = frame.copy(deep=False)
    copy[name] = series
    return copy


def _check_agrees(frame: "pd.DataFrame", column: Column, says: Any, apart: np.ndarray) -> None:
    """Raise ValueError if a condition contradicts the cells of some rows, those where `apart`."""
    if apart.any():
        row = int(apart.argmax())
        raise ValueError(
            f"{column.where}: expected rows that agree with the condition, got "
            f"{shown(column_of(frame, column.name).iloc[row])} in row {row} where it says "
            f"{_in_row(says, row)}"
        )


def _in_row(condition: Any, row: int) -> str:
    """What a condition says of one row, in a message: arrays and Series have a value for each."""
    if isinstance(condition, tuple):
        return f"({', '.join(_in_row(bound, row) for bound in condition)})"
    if np.ndim(condition) and hasattr(condition, "dtype"):
        return shown(list(condition)[row])
    return shown(condition)


# ---- intervals and sets --------------------------------------------------------------------------


def _limits(column: Column, condition: tuple[Any, ...], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high in the column's units, (num,) each.

    Raises:
        ValueError: The condition is not a pair, is empty, or does not suit the column's kind.
    """
    if column.kind in ("class", "boolean"):
        raise ValueError(
            f"{column.where}: expected a category or a set of them, as a {column.kind} has no "
            "order, got an interval (low, high)"
        )
    if len(condition) != 2:
        raise ValueError(
            f"{column.where}: expected a tuple (low, high), got one of length {len(condition)}"
        )
    low, high = (
        _bound(column, bound, none, num)
        for bound, none in zip(condition, (-np.inf, np.inf), strict=True)
    )
    least = {"positive": np.nextafter(0, 1), "count": 0.0}.get(column.kind, -np.inf)
    empty = (low > high) | (high < least) | (low == np.inf) | (high == -np.inf)
    if column.kind == "count":
        empty |= np.ceil(low) > np.floor(high)
    if empty.any():
        row = int(empty.argmax())
        raise ValueError(
            f"{column.where}: expected an interval with low <= high that holds a possible value, "
            f"got {_in_row(condition[0], row)} to {_in_row(condition[1], row)} in row {row}"
        )
    return low, high


def _points(
    column: Column,
    condition: tuple[Any, ...],
    limits: tuple[np.ndarray, np.ndarray],
    dtype: torch.dtype,
) -> "pd.Series | None":
    """The exact values of rows whose interval is a single number, which has no mass in a density.

    Counts and ordinals have mass at single values, so their intervals stay.
    """
    if column.is_listed or column.kind == "count":
        return None
    low, high = (torch.from_numpy(column.to_tensor(bound)).to(dtype) for bound in limits)
    same = (low == high).numpy()
    return _series(column, condition[0], len(same)).where(same) if same.any() else None


def _bound(column: Column, bound: Any, none: float, num: int) -> np.ndarray:
    if bound is None:
        return np.full(num, none)
    found, there = units_of(_series(column, bound, num), column)
    return np.where(there, found, none)


def _interval(
    table: "Table", name: str | int, limits: tuple[np.ndarray, np.ndarray], like: Tensor
) -> Evidence:
    """A column's limits as evidence on data of the shape of `like`."""
    place, column = table.names.index(name), table[name]
    low, high = (torch.full_like(like, bound) for bound in (-torch.inf, torch.inf))
    for tensor, bound in ((low, limits[0]), (high, limits[1])):
        tensor[:, place] = torch.from_numpy(column.to_tensor(bound)).to(like.dtype)
    return Evidence.interval(low, high)


def _one_of(
    table: "Table", name: str | int, condition: set[Any] | frozenset[Any], like: Tensor
) -> Evidence:
    """The possible categories of a column as evidence on data of the shape of `like`.

    Raises:
        ValueError: There are none, one is unknown, missing or too large, or the column has no
            categories.
    """
    column = table[name]
    if not condition or (not column.is_listed and column.kind != "count"):
        wanted = "a tuple (low, high)" if condition else "at least one category"
        raise ValueError(
            f"{column.where}: expected {wanted} for a {column.kind}, got {set(condition)}"
        )
    import pandas as pd

    values, there = values_of(pd.Series(list(condition), dtype=object), column)
    if not there.all():
        raise ValueError(
            f"{column.where}: expected a set without missing values, got {set(condition)}"
        )
    if (values > _LARGEST_IN_SET).any():
        raise ValueError(
            f"{column.where}: expected counts up to {_LARGEST_IN_SET:,} in a set, got "
            f"{set(condition)}; use an interval (low, high)"
        )
    places = values.astype("int64")
    num = max(len(column.categories), int(places.max()) + 1, 2)
    allowed = torch.ones(*like.shape, num, dtype=torch.bool)
    allowed[:, table.names.index(name)] = False
    allowed[:, table.names.index(name), torch.from_numpy(places)] = True
    return Evidence.one_of(allowed).in_dtype(like.dtype)
