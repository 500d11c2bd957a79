"""Models whose data are rows of a table: rows drawn given conditions, and their densities."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from torch import Generator, Tensor

from crosscoding.columns import Table

if TYPE_CHECKING:
    import pandas as pd


class RowLogProb(NamedTuple):
    """log p of rows and its standard error in nats, both of shape (N,)."""

    log_prob: Tensor
    error: Tensor


class RowAnswers(Protocol):
    """What `Rows` calls. Set by `crosscoding.tables`, which is a layer above (decision 0006)."""

    sample: Callable[..., "pd.DataFrame"]
    sample_remaining: Callable[..., "pd.DataFrame"]
    log_prob: Callable[..., RowLogProb]


class Rows:
    """The part of `VAE` that answers in rows of its table."""

    table: Table | None
    row_answers: ClassVar[RowAnswers]

    def sample(
        self,
        num: int,
        given: Mapping[Any, Any] | None = None,
        *,
        method: Any = None,
        seed: int | Generator | None = None,
        progress: bool = True,
    ) -> "pd.DataFrame":
        """Rows drawn from the model, all under the same conditions, however rare these are.

        Args:
            num: Number of rows, ≥ 0.
            given: Conditions by column, in the user's units: a value, an interval (low, high) with
                None for no bound, or a set of categories. By default none.
            method: The inference method; by default `Auto`, until intervals are settled.
            seed, progress: As in `condition`.
        Returns:
            A DataFrame of num rows with the table's columns and dtypes.

        Raises:
            TypeError: The model has no table.
            ValueError: A column is unknown, or a condition does not suit it; the message names it.

        Warns:
            UserWarning: The answer is not trusted for intervals: rows may lack a part of what the
                conditions allow.
        """
        settings = {"method": method, "seed": seed, "progress": progress}
        return self.row_answers.sample(self, num, given, **settings)

    def sample_remaining(
        self,
        df: "pd.DataFrame",
        given: Mapping[Any, Any] | None = None,
        *,
        method: Any = None,
        seed: int | Generator | None = None,
        progress: bool = True,
    ) -> "pd.DataFrame":
        """The rows of a DataFrame, each completed by one draw of what it lacks.

        Args:
            df: Rows with gaps (NaN, None), or without some of the table's columns. Its cells,
                index and dtypes stay.
            given, method, seed, progress: As in `sample`; conditions hold for all rows.
        Returns:
            A DataFrame of the same rows, with all columns of the table.

        Raises, Warns: As `sample`.
        """
        settings = {"method": method, "seed": seed, "progress": progress}
        return self.row_answers.sample_remaining(self, df, given, **settings)

    def log_prob(
        self,
        df: "pd.DataFrame",
        given: Mapping[Any, Any] | Sequence[Any] | None = None,
        *,
        method: Any = None,
        seed: int | Generator | None = None,
        progress: bool = True,
    ) -> RowLogProb:
        """log p of the observed cells of each row, in nats, as a density in the user's units.

        Args:
            df: N rows. Cells that are missing do not count.
            given: Conditions as in `sample`, or names of columns of df: then
                log p(other cells | these).
            method, seed, progress: As in `sample`; the default is `Auto()`.
        Returns:
            A tuple of log p and its standard error, `log_prob` and `error`, both of shape (N,).

        Raises, Warns: As `sample`.
        """
        settings = {"method": method, "seed": seed, "progress": progress}
        return self.row_answers.log_prob(self, df, given, **settings)
