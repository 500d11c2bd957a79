"""Conversion of a column's cells to numbers, and of numbers to cells that fill its gaps."""

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscoding.columns.column import Column
from crosscoding.errors import NonFiniteError, and_more

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_SHOWN = 80  # characters of a cell in a message
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean")
_ADVICE = {
    "datetime64": "dates are columns of kind 'date'",
    "datetime": "convert them with pd.to_datetime(...), as dates are columns of kind 'date'",
    "date": "convert them with pd.to_datetime(...), as dates are columns of kind 'date'",
    "timedelta": "convert them with pd.to_timedelta(...)",
    "timedelta64": "convert them with pd.to_timedelta(...)",
    "period": "convert them with .dt.to_timestamp()",
    "complex": "give their real and imaginary parts as two columns",
    "string": "convert them with pd.to_numeric(...) if they are numbers",
    "categorical": "convert them with pd.to_numeric(...), or use kind 'class' or 'ordinal'",
}


def units_of(series: "pd.Series", column: Column) -> tuple[np.ndarray, np.ndarray]:
    """A column's values in its units, float64, and which of its cells are observed.

    A category's value is its place among the column's categories; a missing cell's is NaN.

    Args:
        series: The cells, N of them.
        column: What they are.
    Returns:
        Two arrays of shape (N,).
    Raises:
        ValueError: A cell does not suit the column: it is not a number, date or category.
    """
    own, observed = observed_cells(series)
    values = np.full(len(series), np.nan)
    if not observed.any():
        return values, observed
    if column.is_listed:
        values[observed] = _places(own, column)
    elif column.kind == "date":
        values[observed] = _seconds(own, column)
    else:
        _check_unit(own, column)
        values[observed] = numbers_of(own, column.where)
    return values, observed


def _check_unit(cells: Any, column: Column) -> None:
    """Raise ValueError if numbers came for durations, or the reverse: their unit is unknown."""
    is_duration = getattr(getattr(cells, "dtype", None), "kind", "") == "m"
    if is_duration != column.dtype.startswith(("timedelta", "duration")):
        wanted, got = ("numbers", "a duration") if is_duration else ("durations", "a number")
        raise ValueError(
            f"{column.where}: expected {wanted}, as in {column.dtype}, got {got}, "
            f"{shown(cells[0])}; convert them first"
        )


def dense(series: "pd.Series") -> "pd.Series":
    """A sparse column as an ordinary one; others as they are."""
    import pandas as pd

    return series.sparse.to_dense() if isinstance(series.dtype, pd.SparseDtype) else series


def observed_cells(series: "pd.Series") -> tuple[Any, np.ndarray]:
    """The cells of a column that are not missing, an array, and where they are, boolean (N,)."""
    import pandas as pd

    observed = ~series.isna().to_numpy(dtype=bool)
    cells = series.array[observed]
    is_plain = isinstance(cells, pd.arrays.NumpyExtensionArray)
    return (cells.to_numpy() if is_plain else cells), observed


def values_of(series: "pd.Series", column: Column) -> tuple[np.ndarray, np.ndarray]:
    """`units_of`, checked: every cell must be a possible value of the column.

    Raises:
        ValueError: A cell does not suit the column; the message names the column.
        NonFiniteError: A number is infinite.
    """
    values, observed = units_of(series, column)
    _check(values[observed], column)
    return values, observed


def numbers_of(cells: Any, where: str) -> np.ndarray:
    """Numbers, or durations in seconds, as float64.

    Raises:
        ValueError: Cells are not numbers.
    """
    import pandas as pd

    if isinstance(getattr(cells, "dtype", None), np.dtype) and cells.dtype.kind == "m":
        return np.asarray(cells).astype("timedelta64[ns]").astype("int64") / 1e9
    found = pd.api.types.infer_dtype(cells, skipna=True)
    if found not in _NUMBERS:
        advice = _ADVICE.get(found, "")
        raise ValueError(
            f"{where}: expected numbers, got {found} values such as {shown(cells[0])}"
            + (f"; {advice}" if advice else "")
        )
    try:
        return np.asarray(cells, dtype="float64")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected numbers, got {shown(cells[0])}: {error}") from None


def _seconds(cells: Any, column: Column) -> np.ndarray:
    """Points in time as seconds since 1970 (UTC if they have a time zone)."""
    import pandas as pd

    dtype = getattr(cells, "dtype", None)
    aware = _zone(dtype) is not None
    if not pd.api.types.is_datetime64_any_dtype(dtype):
        raise ValueError(
            f"{column.where}: expected dates, got {dtype} values such as {shown(cells[0])}; "
            "convert them with pd.to_datetime(...)"
        )
    if aware != ("," in column.dtype):
        raise ValueError(
            f"{column.where}: expected dates {'with' if ',' in column.dtype else 'without'} a time "
            f"zone, as in {column.dtype}, got {dtype}; use .dt.tz_localize(...)"
        )
    naive = pd.DatetimeIndex(cells)
    naive = naive.tz_convert("UTC").tz_localize(None) if aware else naive
    return naive.to_numpy().astype("datetime64[us]").astype("int64") / 1e6


def _places(cells: Any, column: Column) -> np.ndarray:
    """The places of cells among the column's categories."""
    import pandas as pd

    index = pd.Index(list(column.categories), dtype=object)
    if isinstance(getattr(cells, "dtype", None), pd.CategoricalDtype):
        own = index.get_indexer(pd.Index(cells.categories, dtype=object))
        places = own[cells.codes]
    else:
        try:
            places = index.get_indexer(pd.Index(cells, dtype=object))
        except TypeError as error:
            raise ValueError(f"{column.where}: expected categories, got {error}") from None
    unknown = places < 0
    if unknown.any():
        known = ", ".join(map(repr, column.categories[:10]))
        more = ", …" if len(column.categories) > 10 else ""
        raise ValueError(
            f"{column.where}: expected a category among {known}{more}, got "
            f"{shown(cells[int(unknown.argmax())])}{and_more(int(unknown.sum()) - 1)}, which the "
            "model has never seen"
        )
    return places


def _check(values: np.ndarray, column: Column) -> None:
    """Raise an error unless values in the column's units are possible for its kind."""
    if np.isinf(values).any():
        raise NonFiniteError(
            f"{column.where}: expected finite numbers, got {np.isinf(values).sum()} infinite; mark "
            "what is unknown as missing, for example with df.replace([np.inf, -np.inf], np.nan)"
        )
    wrong = {
        "positive": values <= 0,
        "count": (values < 0) | (values != np.floor(values)),
    }.get(column.kind)
    if wrong is not None and wrong.any():
        wanted = "numbers > 0" if column.kind == "positive" else "counts, whole numbers from 0"
        raise ValueError(
            f"{column.where}: expected {wanted}, got {values[wrong][0]:.6g}"
            f"{and_more(int(wrong.sum()) - 1)}; if it may have such values, make the table with "
            f"kinds={{{column.name!r}: 'number'}}"
        )


def shown(cell: Any) -> str:
    """A cell for a message: NumPy's numbers as plain ones, dates and durations in ISO form.

    Long text is cut.
    """
    if isinstance(cell, (date, timedelta, np.datetime64, np.timedelta64)):
        return str(cell).removesuffix(" 00:00:00")
    words = repr(cell.item() if isinstance(cell, np.generic) else cell)
    return words if len(words) <= _LONGEST_SHOWN else f"{words[:_LONGEST_SHOWN]}…"


# ---- back ----------------------------------------------------------------------------------------


def filled(
    series: "pd.Series | None", column: Column, values: np.ndarray, index: "pd.Index"
) -> "pd.Series":
    """The column with values in its gaps; all other cells stay as they are.

    It keeps its dtype if that can hold the values; a column without observed cells gets the
    table's dtype. Numbers are rounded where the dtype or the column requires whole ones.

    Args:
        series: The cells with gaps, or None if there is no such column.
        column: What they are.
        values: The values of all rows, in the column's units; NaN leaves a gap.
        index: The index of the rows.
    """
    import pandas as pd

    if series is not None and dense(series) is not series:  # sparse: its cells cannot be set
        return filled(dense(series), column, values, index).astype(series.dtype)
    gaps = np.ones(len(index), dtype=bool)
    if series is not None:
        gaps = series.isna().to_numpy(dtype=bool)
        if not gaps.any():
            return series
    put = gaps & ~np.isnan(values)
    if series is None or gaps.all():
        cells = pd.array(np.full(len(index), None, dtype=object), dtype=object)
        dtype = dtype_of(column)
        cells[put] = _cells(column, values[put], dtype)
        new = pd.Series(cells, index=index, name=column.name)
        return new.astype(dtype) if put.all() else new
    cells: Any = series.array.copy()
    own = _cells(column, values[put], series.dtype)
    if isinstance(series.dtype, pd.CategoricalDtype):
        missing = [c for c in pd.unique(pd.Series(own)) if c not in set(cells.categories)]
        cells = cells.add_categories(missing) if missing else cells
    cells[put] = own
    return pd.Series(cells, index=series.index, name=series.name)


def dtype_of(column: Column) -> Any:
    """The pandas dtype of the column in a new DataFrame."""
    import pandas as pd

    if column.dtype != "category":
        return pd.api.types.pandas_dtype(column.dtype)
    return pd.CategoricalDtype(list(column.categories), ordered=column.kind == "ordinal")


def _cells(column: Column, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Values in the column's units as cells of a dtype, in an array of objects or numbers."""
    import pandas as pd

    if column.kind == "date" or getattr(dtype, "kind", "") == "m":
        return _times(column, values, dtype)
    if column.is_listed:
        listed = np.empty(len(column.categories), dtype=object)
        listed[:] = column.categories
        own = listed[values.astype("int64")]
        return own.astype(_numpy(dtype)) if pd.api.types.is_numeric_dtype(dtype) else own
    if pd.api.types.is_integer_dtype(dtype):
        limits = np.iinfo(_numpy(dtype))
        highest = np.nextafter(float(limits.max), 0) if limits.max > 2**53 else limits.max
        return np.clip(np.rint(values), limits.min, highest).astype(_numpy(dtype))
    if pd.api.types.is_bool_dtype(dtype):
        return np.rint(values).clip(0, 1).astype(bool)
    if pd.api.types.is_numeric_dtype(dtype):
        return values.astype(_numpy(dtype))
    return values.round().astype("int64").astype(object) if column.step == 1 else values


def _numpy(dtype: Any) -> Any:
    """The dtype of a nullable dtype's numbers."""
    return getattr(dtype, "numpy_dtype", dtype)


def _times(column: Column, values: np.ndarray, dtype: Any) -> Any:
    """Seconds as timestamps or durations."""
    import pandas as pd

    micro = np.rint(values * 1e6).astype("int64")
    if column.kind != "date":
        return pd.to_timedelta(micro, unit="us").array
    times = pd.to_datetime(micro, unit="us")
    zone = _zone(dtype)
    return (times if zone is None else times.tz_localize("UTC").tz_convert(zone)).array


def _zone(dtype: Any) -> Any:
    """The time zone of a dtype of pandas or Arrow, or None."""
    return getattr(getattr(dtype, "pyarrow_dtype", dtype), "tz", None)
