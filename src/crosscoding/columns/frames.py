"""Checks of DataFrames that do not import pandas, which whoever has a DataFrame has imported."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from crosscoding.errors import unknown_name

if TYPE_CHECKING:
    import pandas as pd


def is_frame(value: Any) -> "TypeGuard[pd.DataFrame]":
    """Whether this is a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, "DataFrame", ()))


def checked_frame(frame: Any) -> "pd.DataFrame":
    """The DataFrame as it was passed.

    Raises:
        TypeError: It is not a DataFrame.
        ValueError: Two columns have the same name.
    """
    if not is_frame(frame):
        advice = "; convert it with .to_pandas()" if hasattr(frame, "to_pandas") else ""
        raise TypeError(f"expected a pandas DataFrame, got {type(frame).__name__}{advice}")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"expected columns of different names, got two called {twice!r}")
    return frame


def check_names(frame: "pd.DataFrame", names: tuple[str | int, ...]) -> None:
    """Raise ValueError if the DataFrame has a column that is not among the names."""
    known = set(names)
    for name in frame.columns:
        if name not in known:
            found = unknown_name("column", name, map(str, names))
            raise ValueError(f"column {name!r} is not in the table, drop or rename it: {found}")


def column_of(frame: "pd.DataFrame", name: str | int) -> "pd.Series":
    """A column of a DataFrame whose names are distinct."""
    return cast("pd.Series", frame[name])
