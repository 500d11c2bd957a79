"""Converts numbers of tensors to cells of a table in its units; observed cells stay as they were.

The type of a cell depends on the table alone. The dtypes that pandas infers would also depend on
the other rows of the shard.
"""

from typing import Any

import numpy as np

from crosscoding.columns import Column


def arrow_type(column: Column) -> Any:
    """The Arrow type of a column's cells."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    if column.kind == "date":
        return pa.timestamp("us", tz="UTC" if "," in column.dtype else None)
    if column.dtype.startswith(("timedelta", "duration")):
        return pa.duration("us")
    if not column.is_listed:
        return pa.float64()
    kinds = {type(category) for category in column.categories}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def cells_in_units(
    column: Column,
    numbers: np.ndarray,
    observed: np.ndarray,
    integers: Any = None,
    *,
    possible: bool,
) -> Any:
    """A column's cells as an Arrow array.

    Args:
        column: The column.
        numbers: In tensors' units, (n,); NaN leaves a gap.
        observed: Observed cells in the column's units, which are kept, NaN where missing, (n,).
        integers: Cells of the source as an Arrow array, if some are integers that float64 rounds.
        possible: Whether cells are values that may occur, unlike means, and are rounded as such.
    """
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    units = column.from_tensor(numbers)
    units = column.rounded(units) if possible or column.kind == "date" else units
    known = ~np.isnan(observed)
    if integers is not None:
        return with_integers(column.rounded(units), known, integers)
    units = np.where(known, observed, units)
    gaps, kind = np.isnan(units), arrow_type(column)
    if column.is_listed:
        categories = np.empty(len(column.categories), dtype=object)
        categories[:] = [
            str(category) if pa.types.is_string(kind) else category
            for category in column.categories
        ]
        return pa.array(categories[np.where(gaps, 0, units).astype(np.int64)], kind, mask=gaps)
    if pa.types.is_floating(kind):
        return pa.array(units, kind, mask=gaps)
    micro = np.rint(np.where(gaps, 0, units) * 1e6).astype(np.int64)
    return pa.array(micro, pa.int64(), mask=gaps).cast(kind)


def with_integers(numbers: np.ndarray, known: np.ndarray, cells: Any) -> Any:
    """Integers of the source where they are observed, and rounded numbers elsewhere.

    Args:
        numbers: Values for the cells that are not observed, (n,).
        known: Where cells are observed, (n,).
        cells: The source's cells, an Arrow array of integers, (n,).
    """
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.compute as pc  # pyright: ignore[reportMissingImports]

    dtype = np.dtype(cells.type.to_pandas_dtype())
    limits = np.iinfo(dtype)
    whole = np.rint(np.nan_to_num(numbers.astype(np.float64)))
    whole = whole.clip(limits.min, np.nextafter(float(limits.max), 0)).astype(dtype)
    gaps = np.isnan(numbers) & ~known
    others = pa.array(whole, cells.type, mask=gaps)
    return pc.call_function("if_else", [pa.array(known), cells, others])
