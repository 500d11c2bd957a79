"""Rows as a model takes them; rows that it cannot take are rejected, each with a reason."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from crosscoding.batch.inputs import Inputs
from crosscoding.batch.sources.base import Read, Source
from crosscoding.columns import Table
from crosscoding.columns.cells import units_of
from crosscoding.columns.frames import column_of
from crosscoding.covariates import Covariates, mapped, tensors
from crosscoding.model.vae import VAE

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that can be answered.

    Attributes:
        numbers: Row numbers in the source, (n,).
        values: Shape (n, *data), in the model's dtype, NaN where missing.
        mask: True = observed, the same shape.
        units: Observed cells of a table in its columns' units, NaN where missing, (n, columns); or
            numbers as they are in the source, (n, *data); None if values are rescaled pixels.
        integers: Cells of the columns of `Source.integers`, if there are any.
        kept: Columns that are copied to the results.
        rejected: Why each of the other rows cannot be answered, by number.
        given: Covariates of the rows, if the decoder takes any.
    """

    numbers: np.ndarray
    values: Tensor
    mask: Tensor
    units: np.ndarray | None
    integers: "pa.Table | None"
    kept: "pa.Table | None"
    rejected: dict[int, str]
    given: Covariates = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: slice | np.ndarray) -> "Rows":
        index = places if isinstance(places, slice) else torch.from_numpy(places)
        at = np.arange(len(self))[places]
        return Rows(
            self.numbers[places],
            self.values[index],
            self.mask[index],
            None if self.units is None else self.units[places],
            None if self.integers is None else self.integers.take(at),
            None if self.kept is None else self.kept.take(at),
            {},
            mapped(lambda tensor: tensor[index], self.given),
        )

    def integers_of(self, name: str | int) -> "pa.Array | None":
        """The cells of a column; None unless it is one of `Source.integers`."""
        if self.integers is None or str(name) not in self.integers.column_names:
            return None
        return self.integers[str(name)].combine_chunks()

    def digest(self) -> str:
        """SHA-256 of everything in the rows that the results depend on, in hex."""
        found = hashlib.sha256(repr(sorted(self.rejected.items())).encode())
        given = [tensor.numpy() for tensor in tensors(self.given)]
        values = self.values.nan_to_num(0.0).numpy()
        for array in (self.numbers, self.mask.numpy(), values, *given):
            found.update(np.ascontiguousarray(array).tobytes())
        if self.units is not None:
            found.update(np.nan_to_num(self.units).tobytes())
        for columns in (self.integers, self.kept):
            if columns is not None:
                found.update(repr(columns.to_pydict()).encode())
        return found.hexdigest()


def rows_for(vae: VAE, inputs: Inputs, start: int, stop: int, observe: np.ndarray | None) -> Rows:
    """Read rows start to stop of a source, with their masks, covariates and kept columns.

    Args:
        vae: The model.
        inputs: Where they are read from.
        start, stop: Which rows.
        observe: Which elements are observed, in the shape of a datum; None: all that are present,
            or those that the masks in `inputs` say.
    """
    read = inputs.source.read(start, stop)
    if vae.table is not None:
        found = _of_frame(vae.table, inputs.source, read, vae.dtype)
    else:
        found = _of_numbers(vae, read, inputs.pixels)
    if inputs.masks is not None:
        found = _masked(found, inputs.masks, start, stop, vae)
    elif observe is not None:
        found = _observed(found, np.broadcast_to(observe, found.mask.shape), vae)
    if inputs.covariates is not None:
        given, faults = inputs.covariates.read(found.numbers, found.kept)
        found = replace(_without(found, faults), given=given)
    kept = found.kept.select(inputs.keep) if inputs.keep and found.kept is not None else None
    return replace(found, kept=kept)


def _of_numbers(vae: VAE, read: Read, pixels: bool) -> Rows:
    """Rows of numbers; a row with a value outside the likelihood's support is rejected."""
    cells = read.cells if isinstance(read.cells, np.ndarray) else read.cells.to_numpy()
    cells = np.array(cells).reshape(-1, *vae.data_shape)
    values = torch.from_numpy(cells)
    if pixels:
        from crosscoding.formats.pixels import Pixels  # which loads Pillow

        values = Pixels.of(vae).scaled(values)
    values = values.to(vae.dtype)
    mask = ~values.isnan()
    known = torch.where(mask, values, 0.0)
    wrong = known.isinf() | (mask & ~vae.likelihood.in_support(known))
    rejected = dict(read.bad)
    for place in wrong.flatten(1).any(1).nonzero()[:, 0].tolist():
        rejected[int(read.rows[place])] = _fault(vae, known[place], wrong[place])
    fine = ~wrong.flatten(1).any(1).numpy()
    units = None if pixels else cells[fine].astype(np.result_type(cells.dtype, np.float32))
    integers, kept = (
        None if columns is None else columns.filter(fine) for columns in (read.integers, read.kept)
    )
    return Rows(read.rows[fine], values[fine], mask[fine], units, integers, kept, rejected)


def _fault(vae: VAE, values: Tensor, wrong: Tensor) -> str:
    """Why a row is rejected: its first value that cannot be data."""
    element = int(wrong.flatten().nonzero()[0, 0])
    where, value = vae.element_name(element), float(values.flatten()[element])
    if np.isinf(value):
        return f"{where}: expected a finite number that {vae.dtype} holds, got {value}"
    only = torch.zeros_like(wrong).flatten()
    only[element] = True
    try:
        vae.likelihood.check_values(values, only.reshape(wrong.shape), "a value")
    except ValueError as error:
        return f"{where}: {error}"
    return f"{where}: expected a value {vae.likelihood.support}, got {value:.6g}"


def _of_frame(table: Table, source: Source, read: Read, dtype: torch.dtype) -> Rows:
    """Rows of a table; those whose cells do not suit their columns are found by halving."""
    frame = cast("pd.DataFrame", read.cells)  # other kinds of sources were refused on opening
    rejected, parts = dict(read.bad), []
    for low, high, found in _good_parts(table, source, read, dtype):
        if isinstance(found, str):
            rejected[int(read.rows[low])] = found
        else:
            parts.append((np.arange(low, high), *found))
    if not parts:
        none = _tensors(table, frame.iloc[:0], dtype)
        parts.append((np.arange(0), *none))
    places, values, mask, units = zip(*parts, strict=True)
    at = np.concatenate(places)
    return Rows(
        read.rows[at],
        torch.cat(values),
        torch.cat(mask),
        np.concatenate(units),
        None if read.integers is None else read.integers.take(at),
        None if read.kept is None else read.kept.take(at),
        rejected,
    )


_Tensors = tuple[Tensor, Tensor, np.ndarray]


def _good_parts(
    table: Table, source: Source, read: Read, dtype: torch.dtype
) -> Iterator[tuple[int, int, _Tensors | str]]:
    """Ranges of rows with their tensors, and single rows with the reason why they have none."""
    frame = cast("pd.DataFrame", read.cells)
    todo = [(0, len(read.rows))] if len(read.rows) else []
    while todo:
        low, high = todo.pop()
        try:
            cells = source.cells_of(frame.iloc[low:high], int(read.rows[low]))
            yield low, high, _tensors(table, cells, dtype)
        except (ValueError, TypeError) as error:
            if high - low == 1:
                yield low, high, str(error)
            else:
                middle = (low + high) // 2
                todo += [(middle, high), (low, middle)]


def _tensors(table: Table, frame: "pd.DataFrame", dtype: torch.dtype) -> _Tensors:
    """Values, mask and observed cells in the columns' units, all of shape (n, columns)."""
    values, mask = table.to_tensors(frame, dtype=dtype)
    units = np.full(values.shape, np.nan)
    for place, column in enumerate(table.columns):
        if column.name in frame.columns:
            units[:, place] = units_of(column_of(frame, column.name), column)[0]
    return values, mask, units


def _masked(rows: Rows, masks: Source, start: int, stop: int, vae: VAE) -> Rows:
    """The rows, observed only where their own masks of zeros and ones say so."""
    cells = np.asarray(masks.read(start, stop).cells)[rows.numbers - start]
    wrong = ((cells != 0) & (cells != 1)).reshape(len(rows), -1)
    faults = {
        place: f"expected a mask of zeros and ones in {masks.path}, got "
        f"{cells[place].flat[wrong[place].argmax()]:.6g}"
        for place in np.flatnonzero(wrong.any(1)).tolist()
    }
    return _observed(_without(rows, faults), np.delete(cells, list(faults), axis=0) == 1, vae)


def _observed(rows: Rows, observe: np.ndarray, vae: VAE) -> Rows:
    """The rows, observed only where chosen, (n, *data); a chosen element must have a value."""
    chosen = torch.from_numpy(observe.copy())
    lacking = (chosen & ~rows.mask).flatten(1)
    faults = {
        place: f"{vae.element_name(int(lacking[place].nonzero()[0, 0]))}: expected a value, as it "
        "should be observed, got a gap"
        for place in lacking.any(1).nonzero()[:, 0].tolist()
    }
    units = None if rows.units is None else np.where(observe, rows.units, np.nan)
    return _without(replace(rows, mask=chosen, units=units), faults)


def _without(rows: Rows, faults: dict[int, str]) -> Rows:
    """The rows except those at some places, which are rejected for the given reasons."""
    if not faults:
        return rows
    fine = np.delete(np.arange(len(rows)), list(faults))
    rejected = {int(rows.numbers[place]): why for place, why in faults.items()}
    return replace(rows[fine], rejected=rows.rejected | rejected)
