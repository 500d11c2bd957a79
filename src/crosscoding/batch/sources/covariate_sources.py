"""Covariates, a row for each row of a source: from its own columns, or from arrays beside it.

Covariates may be a tensor, or nested dicts, tuples and lists of tensors. They are read as
numbers side by side, those of each tensor in turn, and become tensors after they are checked.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_structure, tree_unflatten

from crosscoding.batch.sources.base import Source
from crosscoding.batch.sources.opening import open_array
from crosscoding.columns import Table
from crosscoding.covariates import Covariates
from crosscoding.errors import counted
from crosscoding.formats.table_style import TableStyle

if TYPE_CHECKING:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

_FIRST_ROUNDED = 2.0**53  # from here on, a float64 may be a whole number that was rounded


class Leaf(NamedTuple):
    """One tensor of covariates.

    Attributes:
        name: Its keys and places, such as "site" or "site.0"; "given" if there is only one tensor.
        example: Example rows of it, which the model was made with.
        size: Number of numbers in a row.
    """

    name: str
    example: Tensor
    size: int


def leaves(examples: Covariates) -> list[Leaf]:
    """The tensors of covariates."""
    found = []
    for path, tensor in tree_flatten_with_path(examples)[0]:
        keys = [str(getattr(part, "key", getattr(part, "idx", part))) for part in path]
        size = math.prod(tensor.shape[1:])
        found.append(Leaf(".".join(keys) or "given", tensor, size))
    return found


class CovariateSource(ABC):
    """Covariates of rows.

    Args:
        examples: Covariates that the model was made with.

    Attributes:
        columns: Columns of the main source that contain them.
        sources: Separate sources that contain them.
    """

    columns: tuple[str, ...] = ()
    sources: Sequence[Source] = ()

    def __init__(self, examples: Covariates) -> None:
        self._leaves, self._examples = leaves(examples), examples
        self._ends = np.cumsum([leaf.size for leaf in self._leaves])

    @abstractmethod
    def _cells(self, numbers: np.ndarray, beside: "pa.Table | None") -> np.ndarray:
        """The rows' numbers as float64, (n, sum of sizes), NaN where there is none."""

    @abstractmethod
    def _name(self, place: int) -> str:
        """What messages call one of these numbers."""

    @abstractmethod
    def describe(self) -> Any:
        """The covariates for the manifest."""

    def read(
        self, numbers: np.ndarray, beside: "pa.Table | None"
    ) -> tuple[Covariates, dict[int, str]]:
        """Covariates of rows.

        Args:
            numbers: Numbers of the rows in the source, (n,), ascending.
            beside: Their cells in columns of the source that are not the model's.
        Returns:
            The covariates of the rows that have valid ones, and why the other rows do not, by
            place among the n.
        """
        cells, faults = self._cells(numbers, beside), {}
        wanted = [leaf.example.dtype for leaf in self._leaves for _ in range(leaf.size)]
        for place, dtype in enumerate(wanted):
            for row in np.flatnonzero(~_holds(dtype, cells[:, place])).tolist():
                found = cells[row, place]
                got = f"{found:.6g}"
                if np.isnan(found):
                    got = "a gap, text, or a whole number of 2^53 or more"
                kind = "number" if dtype.is_floating_point else "whole number"
                faults.setdefault(
                    row,
                    f"{self._name(place)}: expected a {kind} ({dtype}) for the decoder, got {got}",
                )
        fine = np.delete(cells, list(faults), axis=0)
        parts = np.split(fine, self._ends[:-1], axis=1)
        made = [
            torch.from_numpy(part).to(like.dtype).reshape(len(fine), *like.shape[1:])
            for part, (_, like, _) in zip(parts, self._leaves, strict=True)
        ]
        return tree_unflatten(made, tree_structure(self._examples)), faults


def _exact(cells: np.ndarray) -> np.ndarray:
    """Whole numbers, with NaN in place of those that a float64 may have rounded."""
    return np.where(np.abs(cells) < _FIRST_ROUNDED, cells, np.nan)


def _holds(dtype: torch.dtype, cells: np.ndarray) -> np.ndarray:
    """Which numbers a dtype can represent: finite ones, or whole ones within its range."""
    if dtype == torch.bool:
        return (cells == 0) | (cells == 1)
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    within = (cells >= limits.min) & (cells <= limits.max)  # False for NaN
    return within if dtype.is_floating_point else within & (cells == np.floor(cells))


class CovariateColumns(CovariateSource):
    """Covariates in columns of a CSV or Parquet source.

    Args:
        names: The columns, in the order of the covariates' numbers.
        examples: Covariates that the model was made with.
        table: The model's columns, if it has a table.
        style: How numbers are written in a text file.
    Raises:
        ValueError: There are more or fewer columns than numbers, or some are the model's data.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        examples: Covariates,
        table: Table | None,
        style: TableStyle,
    ) -> None:
        super().__init__(examples)
        self.columns, self._style = names, style
        if len(set(names)) < len(names):
            raise ValueError(f"expected distinct columns of covariates, got {', '.join(names)}")
        if len(names) != self._ends[-1]:
            wanted = ", ".join(f"{leaf.size} of {leaf.name}" for leaf in self._leaves)
            raise ValueError(
                f"expected {counted(int(self._ends[-1]), 'column')} of covariates ({wanted}), got "
                f"{', '.join(names)}"
            )
        for name in names:
            if table is not None and name in map(str, table.names):
                raise ValueError(
                    f"expected covariates in columns that are not the model's data, got {name!r}"
                )

    def _cells(self, numbers: np.ndarray, beside: "pa.Table | None") -> np.ndarray:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]

        assert beside is not None  # the source was opened with these columns
        found = np.full((len(beside), len(self.columns)), np.nan)
        for place, name in enumerate(self.columns):
            column = beside[name]
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                cells = [self._style.number(cell or "") for cell in column.to_pylist()]
                found[:, place] = [np.nan if cell is None else cell for cell in cells]
                continue
            try:
                cells = column.cast(pa.float64(), safe=False).to_numpy()
                found[:, place] = _exact(cells) if pa.types.is_integer(column.type) else cells
            except pa.ArrowException:
                raise ValueError(
                    f"expected numbers in column {name!r}, which is a covariate, got {column.type}"
                ) from None
        return found

    def _name(self, place: int) -> str:
        return f"column {self.columns[place]!r}"

    def describe(self) -> list[str]:
        return list(self.columns)


class CovariateArrays(CovariateSource):
    """Covariates in arrays with a row for each row of the source.

    Args:
        words: FILE.npy, .npz, .npz:NAME, or Zarr. If the covariates are several tensors, a .npz
            file or Zarr group that has an array for each of their names.
        examples: Covariates that the model was made with.
    Raises:
        ImportError: A library that reads them is not installed.
        ValueError: There is no such array, or it has another shape.
    """

    def __init__(self, words: str, examples: Covariates) -> None:
        super().__init__(examples)
        self._words = words
        several = len(self._leaves) > 1
        self.sources = [
            open_array(
                f"{words}:{name}" if several else words,
                () if size == 1 else tuple(like.shape[1:]),
            )
            for name, like, size in self._leaves
        ]

    def _cells(self, numbers: np.ndarray, beside: "pa.Table | None") -> np.ndarray:
        if not len(numbers):
            return np.empty((0, int(self._ends[-1])))
        start, stop = int(numbers[0]), int(numbers[-1]) + 1
        found = [
            np.asarray(source.read(start, stop).cells)[numbers - start].reshape(len(numbers), -1)
            for source in self.sources
        ]
        integers = [part.dtype.kind in "iu" for part in found]
        floats = [part.astype(np.float64) for part in found]
        exact = [_exact(own) if kind else own for own, kind in zip(floats, integers, strict=True)]
        return np.concatenate(exact, axis=1)

    def _name(self, place: int) -> str:
        which = int(np.searchsorted(self._ends, place, side="right"))
        return f"covariate {self._leaves[which].name!r}"

    def describe(self) -> str:
        return self._words
