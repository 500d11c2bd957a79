"""`Table`: the columns of a DataFrame, and their conversion to tensors and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.columns.cells import filled, values_of
from crosscoding.columns.column import KINDS, Column, Limits, mixed_of
from crosscoding.columns.frames import check_names, checked_frame, column_of
from crosscoding.columns.learning import learned
from crosscoding.columns.table_evidence import TableEvidence, query_evidence, rows_evidence
from crosscoding.display import Description, Displayed, Grid
from crosscoding.errors import ModelFormatError, counted, unknown_name
from crosscoding.likelihoods import Mixed

if TYPE_CHECKING:
    import pandas as pd

_MOST_SHOWN = 50  # columns in a terminal or a notebook


class Table(Displayed):
    """What the columns of a DataFrame contain: kinds, scales and categories.

    It is learned from a DataFrame, gaps and all, and converts other DataFrames with the same
    columns to tensors. Each column is one element of the data, in the DataFrame's order: numbers
    and dates are standardised, positive numbers divided by their geometric mean, counts left as
    they are, and categories numbered by their place in the list. `print(table)` shows what was
    learned; correct it with `kinds`.

    Args:
        df: A pandas DataFrame with N ≥ 1 rows. Cells that are NaN, None, NaT or NA are missing.
        kinds: Kinds of columns whose cells suggest another, by name: "number", "positive", "count",
            "class", "ordinal", "boolean" or "date".

    Attributes:
        columns: The columns, `Column` objects.

    Raises:
        TypeError: df is not a pandas DataFrame.
        ValueError: There are no rows or columns, two columns have one name, nothing is observed in
            a column, its cells suit no kind, or not the one given. The message names the column.
        NonFiniteError: A number is infinite.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({"age": [25, 41, None, 58], "city": ["Bonn", None, "Ulm", "Ulm"]})
        >>> table = Table(df)
        >>> print(table)
        age: number (mean 41.3333, standard deviation 13.4743, in steps of 1), float64
        city: class (Bonn, Ulm), str
        >>> values, mask = table.to_tensors(df)
        >>> mask.tolist()
        [[True, True], [True, False], [False, True], [True, True]]
        >>> table.num_params  # what a decoder outputs for table.likelihood()
        4
    """

    def __init__(self, df: "pd.DataFrame", *, kinds: Mapping[Any, str] | None = None) -> None:
        frame, kinds = checked_frame(df), dict(kinds or {})
        if not len(frame.columns) or not len(frame):
            raise ValueError(
                f"expected a DataFrame with at least one row and column, got shape {frame.shape}"
            )
        for name, kind in kinds.items():
            if name not in frame.columns:
                raise unknown_name("column in kinds", name, map(str, frame.columns))
            if kind not in KINDS:
                raise ValueError(f"column {name!r}: {unknown_name('kind', kind, KINDS)}")
        self.columns = tuple(
            learned(column_of(frame, name), kinds.get(name)) for name in frame.columns
        )

    @classmethod
    def of(cls, columns: Iterable[Column]) -> "Table":
        """The table of these columns, without a DataFrame to learn from.

        Raises:
            ValueError: There are none, or two have the same name.
        """
        table = object.__new__(cls)
        table.columns = tuple(columns)
        if not table.columns:
            raise ValueError("expected at least one column, got none")
        if len(set(table.names)) < len(table.columns):
            twice = next(name for name in table.names if table.names.count(name) > 1)
            raise ValueError(f"expected columns of different names, got two called {twice!r}")
        return table

    def __repr__(self) -> str:
        kinds = ", ".join(f"{column.name}: {column.kind}" for column in self.columns[:8])
        return f"Table({kinds}{', …' * (len(self.columns) > 8)})"

    def __str__(self) -> str:
        return "\n".join(map(str, self.columns))

    def _described(self, *, pictures: bool) -> Description:
        rows = tuple((str(c.name), c.kind, c.words, c.dtype) for c in self.columns[:_MOST_SHOWN])
        more = f"… {len(self) - _MOST_SHOWN:,} more" if len(self) > _MOST_SHOWN else ""
        grid = Grid(rows, ("column", "kind", "values", "dtype"), more=more)
        return Description(f"Table of {counted(len(self), 'column')}", grids=(grid,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.columns == other.columns

    def __hash__(self) -> int:
        return hash(self.columns)

    @property
    def names(self) -> tuple[str | int, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str | int, str]:
        """The kind of each column, by name."""
        return {column.name: column.kind for column in self.columns}

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, name: str | int) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise unknown_name("column", str(name), map(str, self.names))

    # ---- the model of a table --------------------------------------------------------------------

    def likelihood(self) -> Mixed:
        """The likelihood of the columns, for a decoder with `num_params` outputs.

        A number or a date takes two outputs, mean and log variance; a positive number takes those
        of its logarithm; a count a log rate, or the logit of a `NegativeBinomial` with the column's
        total count; a class a logit for each category; an ordinal a location; a boolean a logit.
        """
        return mixed_of(column.likelihood for column in self.columns)

    @property
    def num_params(self) -> int:
        """How many numbers a decoder outputs for `likelihood`."""
        return sum(int(np.prod(column.likelihood.param_shape)) for column in self.columns)

    # ---- to tensors and back ---------------------------------------------------------------------

    def to_tensors(
        self, df: "pd.DataFrame", *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """A DataFrame as values and mask, both of shape (N, columns).

        Args:
            df: N ≥ 0 rows. Columns are found by name, in any order; one that is missing is
                unobserved.
            dtype: Floating-point type of the values.
        Returns:
            Values in tensors' units, NaN where missing, and the mask, True where observed.
        Raises:
            TypeError: df is not a pandas DataFrame.
            ValueError: A column is not in the table, or a cell does not suit its column, such as a
                category that the table does not have. The message names the column.
            NonFiniteError: A number is infinite, or too large for the dtype.
        """
        frame = checked_frame(df)
        check_names(frame, self.names)
        values = torch.full((len(frame), len(self.columns)), torch.nan, dtype=dtype)
        mask = torch.zeros(values.shape, dtype=torch.bool)
        for place, column in enumerate(self.columns):
            if column.name in frame.columns:
                own, observed = values_of(column_of(frame, column.name), column)
                values[:, place] = column.in_dtype(own, dtype)
                mask[:, place] = torch.from_numpy(observed)
        return values, mask

    def complete_tensor(self, df: "pd.DataFrame", *, dtype: torch.dtype = torch.float32) -> Tensor:
        """A DataFrame without gaps as values, shape (N, columns); the rest is as for `to_tensors`.

        Raises:
            ValueError: A cell is missing, or what `to_tensors` raises.
        """
        values, mask = self.to_tensors(df, dtype=dtype)
        if not mask.all():
            row, place = (~mask).nonzero()[0].tolist()
            raise ValueError(
                f"{self.columns[place].where}: expected complete data, got a missing value in row "
                f"{row}; use the rows without gaps, df.dropna()"
            )
        return values

    def from_tensors(
        self,
        values: Tensor | np.ndarray,
        *,
        rows: "pd.DataFrame | None" = None,
        whole: bool = True,
        limits: Limits | None = None,
    ) -> "pd.DataFrame":
        """A DataFrame from values, the reverse of `to_tensors`.

        Args:
            values: In tensors' units, shape (N, columns); NaN leaves a gap.
            rows: A DataFrame of N rows whose gaps are filled: its observed cells, index, dtypes and
                order of columns stay; columns that it lacks come last. By default all cells are
                new, with the table's dtypes.
            whole: Whether numbers are rounded to the column's step, such as to whole numbers. Dates
                always are, and dtypes for whole numbers always get them.
            limits: Low and high bounds of columns in their units, (N,) each, by name. Values that
                rounding moves outside are moved back to the bound.
        Raises:
            ValueError: values and rows have different numbers of rows or columns.
        """
        import pandas as pd

        numbers = np.asarray(values, dtype="float64")
        num = len(numbers) if rows is None else len(rows)
        if numbers.shape != (num, len(self.columns)):
            raise ValueError(
                f"expected values of shape ({num}, {len(self.columns)}), got {numbers.shape}"
            )
        index = pd.RangeIndex(num) if rows is None else rows.index
        own = [] if rows is None else [name for name in rows.columns if name in set(self.names)]
        done = {}
        for name in [*own, *(name for name in self.names if name not in set(own))]:
            place = self.names.index(name)
            column = self.columns[place]
            cells = column.from_tensor(numbers[:, place])
            cells = column.rounded(cells) if whole or column.kind == "date" else cells
            if limits and name in limits:
                cells = np.clip(cells, *limits[name])
            there = None if rows is None or name not in rows.columns else column_of(rows, name)
            done[name] = filled(there, column, cells, index)
        return pd.DataFrame(done, index=index)

    # ---- evidence --------------------------------------------------------------------------------

    def evidence(self, df: "pd.DataFrame", *, dtype: torch.dtype = torch.float32) -> TableEvidence:
        """The observed cells of a DataFrame as evidence, one query per row.

        `condition(vae, df)` calls it, with the model's dtype. It raises what `to_tensors` raises.
        """
        return rows_evidence(self, df, dtype)

    def query(
        self,
        conditions: Mapping[Any, Any] | None = None,
        /,
        *,
        rows: "pd.DataFrame | None" = None,
        num: int | None = None,
        dtype: torch.dtype = torch.float32,
        **more: Any,
    ) -> TableEvidence:
        """Evidence from conditions on columns, in the user's units, for all rows alike.

        Args:
            conditions: By name of the column, a value; a tuple (low, high), both included, for
                numbers, counts, dates and ordinals, with None for no bound; or a set of the
                categories that are possible. Bounds may be arrays or Series, one for each row.
            rows: Rows whose observed cells are known as well; by default `num` rows of gaps.
            num: Number of rows, 1 by default.
            dtype: Floating-point type of the evidence.
            more: Conditions as keyword arguments.
        Raises:
            ValueError: A column is unknown, a condition does not suit its kind or contradicts a
                cell. The message names the column.

        Example:
            >>> table = Table.of([Column("age", "number"), Column("city", "class", ("a", "b"))])
            >>> table.query(age=(30, 40), city={"a"}, num=2).mask
            tensor([[True, True],
                    [True, True]])
        """
        return query_evidence(self, {**(conditions or {}), **more}, rows, num, dtype)

    # ---- saving ----------------------------------------------------------------------------------

    def to_json(self) -> list[dict[str, Any]]:
        """The columns as JSON."""
        return [column.to_json() for column in self.columns]

    @staticmethod
    def from_json(description: Sequence[Any]) -> "Table":
        """The table that `to_json` described.

        Raises:
            ModelFormatError: It does not describe a table.
        """
        if not isinstance(description, list):
            raise ModelFormatError(f"expected a list of columns, got {description!r:.80}")
        try:
            return Table.of(map(Column.from_json, description))
        except ModelFormatError:
            raise
        except ValueError as error:
            raise ModelFormatError(f"expected the description of a table: {error}") from error
