"""Learning what a DataFrame's columns contain: kinds, scales and categories, from its cells.

The first of these that applies is the kind of a column:
- class or ordinal if its dtype is categorical, unordered or ordered,
- boolean if its cells are booleans, or numbers that are all 0 or 1,
- date if its dtype is a date and time,
- class if its cells are text,
- count if its cells are whole numbers ≥ 0 with a median below 20. For larger ones a rounded normal
  variable serves as well, and may be narrower than a distribution of counts,
- positive if its cells are > 0 and their logarithms are much less skewed than they are,
- number otherwise.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from crosscoding.columns.cells import dense, numbers_of, observed_cells, values_of
from crosscoding.columns.column import LISTED, Column
from crosscoding.errors import NonFiniteError

if TYPE_CHECKING:
    import pandas as pd

_LARGE = 20.0  # median from which whole numbers are not taken as counts: a Poisson is normal to 5 %
_SKEWED = 1.0  # skewness above which logarithms are considered; an exponential variable has 2
_FREE_TEXT = 0.5  # share of distinct texts above which they are not taken as categories
_FEWEST_TEXTS = 50  # rows below which that is not judged
_DAY = 86400.0
_LIKE_POISSON = 1000.0  # total count above which a negative binomial is taken as a Poisson


def learned(series: "pd.Series", kind: str | None) -> Column:
    """The `Column` that describes the cells of a series.

    Args:
        series: The cells; at least one must be observed.
        kind: Its kind, or None to find out.
    Raises:
        ValueError: Nothing is observed, the cells do not suit the kind, or none suits them.
        NonFiniteError: A number is infinite.
    """
    name = getattr(series.name, "item", lambda: series.name)()  # NumPy's integers as Python's
    where, series = f"column {name!r}", dense(series)
    observed, _ = observed_cells(series)
    if not len(observed):
        raise ValueError(
            f"{where}: expected at least one observed value, got none; drop the column, or say "
            "what it is with Table.of([Column(...), ...])"
        )
    kind = _kind(series, observed, where) if kind is None else kind
    basic = Column(name, kind, _categories(observed, kind, where), str(series.dtype))  # pyright: ignore[reportArgumentType]
    values, there = values_of(series, basic)
    return _scaled(basic, values[there], series)


def _kind(series: "pd.Series", observed: Any, where: str) -> str:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "ordinal" if dtype.ordered else "class"
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return "date"
    found = pd.api.types.infer_dtype(observed, skipna=True)
    if found == "boolean":
        return "boolean"
    if found in ("string", "mixed", "mixed-integer", "bytes"):
        _check_text(observed, where)
        return "class"
    values = numbers_of(observed, where)
    if np.isinf(values).any():
        raise NonFiniteError(
            f"{where}: expected finite numbers, got {np.isinf(values).sum()} infinite; mark what "
            "is unknown as missing, for example with df.replace([np.inf, -np.inf], np.nan)"
        )
    return "number" if found.startswith("timedelta") else _kind_of_numbers(values)


def _kind_of_numbers(values: np.ndarray) -> str:
    if np.isin(values, (0, 1)).all():
        return "boolean"
    if (values >= 0).all() and (values == np.floor(values)).all() and np.median(values) < _LARGE:
        return "count"
    if (values > 0).all():
        skewness, of_logarithms = _skewness(values), _skewness(np.log(values))
        if skewness > _SKEWED and abs(of_logarithms) < 0.5 * skewness:
            return "positive"
    return "number"


def _skewness(values: np.ndarray) -> float:
    parts = values / (np.abs(values).max() or 1.0)
    gaps = (parts - parts.mean()) / ((parts.max() - parts.min()) or 1.0)
    spread = np.square(gaps).mean()
    return float((gaps**3).mean() / spread**1.5) if spread > 0 else 0.0


def _check_text(observed: Any, where: str) -> None:
    """Raise ValueError for free text, whose values hardly ever repeat."""
    import pandas as pd

    try:
        num = len(pd.unique(pd.Series(observed, dtype=object)))
    except TypeError as error:
        raise ValueError(f"{where}: expected text or numbers, got {error}") from None
    if len(observed) >= _FEWEST_TEXTS and num > _FREE_TEXT * len(observed):
        raise ValueError(
            f"{where}: expected categories that repeat, got {num} different texts in "
            f"{len(observed)} cells; drop the column if they are names or free text, or say "
            f"kinds={{{where[7:]}: 'class'}}"
        )


def _categories(observed: Any, kind: str, where: str) -> tuple[Any, ...]:
    """The categories of a class, an ordinal or a boolean; for other kinds none."""
    import pandas as pd

    if kind not in LISTED:
        return ()
    if isinstance(getattr(observed, "dtype", None), pd.CategoricalDtype):
        if kind == "ordinal" and not observed.ordered:
            raise ValueError(
                f"{where}: expected an ordered categorical for kind 'ordinal', got an unordered "
                "one; use .cat.as_ordered()"
            )
        return tuple(observed.categories)
    found = [_plain(value) for value in pd.unique(pd.Series(observed, dtype=object))]
    if kind == "boolean":
        if not all(value in (0, 1) for value in found):
            raise ValueError(f"{where}: expected 0 and 1, or booleans, got {found[:3]}")
        return (False, True) if all(isinstance(value, bool) for value in found) else (0, 1)
    if kind == "ordinal" and not all(isinstance(value, (int, float)) for value in found):
        raise ValueError(
            f"{where}: expected numbers or an ordered categorical for kind 'ordinal', got text, "
            "whose order is unknown; use pd.Categorical(..., categories=[...], ordered=True)"
        )
    return tuple(sorted(found, key=lambda value: (isinstance(value, str), value)))


def _scaled(column: Column, values: np.ndarray, series: "pd.Series") -> Column:
    """The column with the scale, step and total count that suit its values."""
    settings = {**vars(column)}
    if column.kind in ("number", "date"):
        settings |= _location(values) | {"step": _step(column, values, series)}
    elif column.kind == "positive":
        settings["scale"] = float(np.exp(np.log(values).mean()))
        settings["step"] = _step(column, values, series)
    elif column.kind == "count":
        settings["total_count"] = _total_count(values)
    return Column(**settings)


def _location(values: np.ndarray) -> dict[str, float]:
    largest = float(np.abs(values).max()) or 1.0  # sums and squares of huge numbers are infinite
    parts = values / largest
    centre = float(parts.mean()) * largest
    spread = float(np.sqrt(np.square(parts - parts.mean()).mean())) * largest
    digits = np.spacing(abs(centre)) * 4  # a smaller spread is only rounding error
    return {"shift": centre, "scale": spread if spread > digits else 1.0}


def _step(column: Column, values: np.ndarray, series: "pd.Series") -> float | None:
    """1 for whole numbers, a day for dates without times; None otherwise."""
    if column.kind == "date":
        return _DAY if (values % _DAY == 0).all() else None
    if getattr(series.dtype, "kind", "") == "m":
        return None
    return 1.0 if (values == np.floor(values)).all() else None


def _total_count(values: np.ndarray) -> float | None:
    """r of the negative binomial with the values' mean m and variance m + m² / r, at least 0.1.

    None if the variance is at most m, or r is so large that this is a Poisson variable.
    """
    mean = float(values.mean())
    with np.errstate(over="ignore"):
        excess = float(values.var()) - mean
    if excess <= 0 or (total := mean * (mean / excess)) > _LIKE_POISSON:
        return None
    return max(total, 0.1)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
