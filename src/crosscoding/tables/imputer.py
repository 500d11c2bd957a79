"""`VAEImputer`: completes tables with gaps, as a scikit-learn estimator."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from crosscoding.columns import Table, is_frame
from crosscoding.columns.frames import checked_frame
from crosscoding.conditioning import condition
from crosscoding.errors import and_more, check_count, counted
from crosscoding.methods import Auto, Method, Report, silent
from crosscoding.model.vae import VAE
from crosscoding.progress import followed
from crosscoding.result.frames import means_of
from crosscoding.result.posterior import Posterior
from crosscoding.tables.estimator_state import from_state, to_state
from crosscoding.tables.training import Training, train

try:
    from sklearn.base import (  # pyright: ignore[reportMissingImports]
        BaseEstimator,
        OneToOneFeatureMixin,
        TransformerMixin,
    )
except ImportError as error:  # making an instance then says so
    BaseEstimator, OneToOneFeatureMixin, TransformerMixin = (type(n, (), {}) for n in "abc")
    _MISSING: ImportError | None = error
else:
    _MISSING = None

if TYPE_CHECKING:
    import pandas as pd

_ROWS_AT_ONCE = 1000  # as many as there are draws of z, so that draws for rows are independent


class VAEImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # pyright: ignore[reportGeneralTypeIssues]
    """Completes a table's gaps with a VAE that is trained on the table, gaps and all.

    `fit` learns what the columns are (`Table`) and trains a VAE by the importance-weighted bound on
    the observed cells (MIWAE); or it takes a model that you have. `transform` conditions the model
    on each row and fills gaps with means, or the likeliest category; `complete` gives several
    tables with gaps drawn from p(missing|observed), for multiple imputation with `rubin`;
    `condition` gives the posterior, for intervals and verdicts.

    DataFrames come back as DataFrames, with their index, dtypes and observed cells; NumPy arrays of
    numbers with NaN as arrays. Draws reflect the gaps, but not that the model itself was estimated:
    the errors that `rubin` gives are a little too small in small tables.

    Args:
        model: A `VAE` with a table, to be used as it is; by default one is trained.
        kinds: Kinds of columns that `Table` does not understand by itself, by name.
        latent_dim: Latent dimensions; by default half as many as columns, 1 to 8.
        hidden: Width of the two hidden layers of decoder and encoder.
        num_samples: Samples K of the bound, ≥ 1.
        batch_size: Rows per training step.
        learning_rate: Learning rate of Adam.
        max_epochs: Most passes through the rows.
        patience: Epochs without a better bound on held-out rows after which training stops.
        validation: Share of the rows that is held out, 0 to 1; with 0, the bound on the training
            rows decides when to stop.
        max_seconds: Most seconds of training; None: no limit.
        method: Method of inference, one of `methods`; by default `Auto(purpose="interval")`.
        sample_posterior: Whether `transform` draws from p(missing|observed) instead of averaging.
        random_state: An int, a NumPy RandomState, or None.
        progress: Whether to show progress on a terminal or in a notebook.
        report: Called with the share of the training that is done, and a few words; instead of
            the display.

    Attributes:
        model_: The model.
        table_: The columns.
        bounds_: The bound on held-out rows after each epoch, in nats a row; [] if model was given.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ImportError: scikit-learn is not installed: pip install 'crosscoding[tables]'.

    Source: Mattei and Frellsen (2019), MIWAE. Differs in: what `tables.training` says; and answers
        come from `condition`, which checks them, instead of the encoder's samples.
    """

    def __init__(
        self,
        model: VAE | None = None,
        *,
        kinds: dict[Any, str] | None = None,
        latent_dim: int | None = None,
        hidden: int = 128,
        num_samples: int = 20,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        max_epochs: int = 500,
        patience: int = 20,
        validation: float = 0.1,
        max_seconds: float | None = None,
        method: Method | None = None,
        sample_posterior: bool = False,
        random_state: Any = None,
        progress: bool = True,
        report: Report = silent,
    ) -> None:
        if _MISSING is not None:
            raise ImportError(
                "expected scikit-learn for VAEImputer; pip install 'crosscoding[tables]'"
            ) from _MISSING
        self.model = model
        self.kinds = kinds
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation = validation
        self.max_seconds = max_seconds
        self.method = method
        self.sample_posterior = sample_posterior
        self.random_state = random_state
        self.progress = progress
        self.report = report

    def fit(self, X: "pd.DataFrame | np.ndarray", y: Any = None) -> Self:  # noqa: N803
        """Train a VAE on a table with gaps, or check that the given model has these columns.

        Args:
            X: N ≥ 1 rows, a DataFrame or an array of numbers; gaps are missing cells or NaN.
            y: Ignored.
        Raises:
            TypeError: The given model is not a VAE.
            ValueError: Nothing is observed in a column, a cell does not suit its column, or the
                given model has no table or other columns. The message names the column.
        """
        frame = self._frame(X, reset=True)
        if self.model is not None:
            self.table_, self.model_, self.bounds_ = _table_of(self.model), self.model, []
            self.table_.to_tensors(frame.iloc[:0])
            return self
        self.table_ = Table(frame, kinds=self.kinds)
        values, mask = self.table_.to_tensors(frame)
        generator = torch.Generator().manual_seed(self._seed())
        with followed("training", self.report, self.progress) as told:
            trained = train(self.table_, values, mask, self._training(), generator, told)
        self.model_, self.bounds_ = trained.vae, trained.bounds
        return self

    def transform(self, X: "pd.DataFrame | np.ndarray") -> Any:  # noqa: N803
        """Fill the gaps of a table.

        Args:
            X: N ≥ 0 rows with the columns of `fit`.
        Returns:
            A DataFrame or an array, as X is.
        Raises:
            ValueError: The columns differ from those of `fit`, or a cell does not suit its column.
                The message names the column.

        Warns:
            UserWarning: The model's answers for some rows cannot be trusted; `condition` says why.
        """
        frame = self._checked(X)
        filled = np.full((1, *frame.shape), np.nan)
        for rows, posterior in self._answers(frame, self._seed(), shared=not self.sample_posterior):
            if self.sample_posterior:
                filled[:, rows] = posterior._independent(1, None).double().cpu()
            else:
                filled[:, rows] = means_of(posterior, self.table_).double().cpu()
        return self._like(X, frame, filled[0], whole=self.sample_posterior)

    def complete(
        self,
        df: "pd.DataFrame | np.ndarray",
        num: int = 5,
        *,
        seed: int | None = None,
    ) -> list[Any]:
        """Completed tables for multiple imputation, gaps drawn from p(missing|observed).

        Analyse each table as if it had been complete, and pool the results with `rubin`. Rows are
        independent draws.

        Args:
            df: N ≥ 0 rows with the columns of `fit`.
            num: Number of tables, ≥ 1.
            seed: Seed of these draws, ≥ 0; by default from `random_state`.
        Returns:
            `num` DataFrames or arrays, as df is.

        Raises, warns: As `transform`.
        """
        check_count("num", num, 1)
        if seed is not None:
            check_count("seed", seed, 0)
        frame = self._checked(df)
        filled = np.full((num, *frame.shape), np.nan)
        for rows, posterior in self._answers(frame, self._seed() if seed is None else seed):
            filled[:, rows] = posterior._independent(num, None).double().cpu()
        return [self._like(df, frame, table, whole=True) for table in filled]

    def condition(self, df: "pd.DataFrame | np.ndarray", *, seed: int | None = None) -> Posterior:
        """The posterior of each row: `frame("interval")`, `quantile`, verdicts and the like.

        It stores 1,000 draws of z for each row: pass thousands of rows at once, not a million.

        Args:
            df: Rows with the columns of `fit`.
            seed: Seed of the draws; by default from `random_state`.
        Raises:
            ValueError: As `transform`.
        """
        frame = self._checked(df)
        seed = self._seed() if seed is None else seed
        return condition(self.model_, frame, self._method, seed=seed, progress=self.progress)

    # ---- parts -----------------------------------------------------------------------------------

    @property
    def _method(self) -> Method:
        return Auto(purpose="interval") if self.method is None else self.method

    def _seed(self) -> int:
        """A seed from `random_state`: the same each time if that is an int."""
        from sklearn.utils import check_random_state  # pyright: ignore[reportMissingImports]

        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _training(self) -> Training:
        """The settings of the training.

        Raises:
            TypeError, ValueError: A setting is invalid.
        """
        least = {"hidden": 1, "num_samples": 1, "batch_size": 1, "max_epochs": 0, "patience": 1}
        for name, smallest in least.items():
            check_count(name, getattr(self, name), smallest)
        latent_dim = self.latent_dim
        if latent_dim is None:
            latent_dim = min(max(len(self.table_) // 2, 1), 8)
        check_count("latent_dim", latent_dim, 1)
        if not 0 <= self.validation < 1:
            raise ValueError(f"expected 0 <= validation < 1, got {self.validation}")
        if not self.learning_rate > 0:
            raise ValueError(f"expected learning_rate > 0, got {self.learning_rate}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"expected max_seconds > 0 or None, got {self.max_seconds}")
        own = {name: getattr(self, name) for name in Training.__annotations__}
        return Training(**own | {"latent_dim": latent_dim})

    def _frame(self, X: Any, *, reset: bool) -> "pd.DataFrame":  # noqa: N803
        """The rows as a DataFrame, after scikit-learn's checks."""
        import pandas as pd
        from sklearn.utils import validation  # pyright: ignore[reportMissingImports]

        validate: Any = validation.validate_data
        if is_frame(X):
            if not X.columns.is_unique:
                twice = X.columns[X.columns.duplicated()][0]
                raise ValueError(f"expected columns of different names, got two called {twice!r}")
            if not reset:
                self._check_plain_names(X)
            validate(self, X, reset=reset, skip_check_array=True)
            return X
        if type(X) is dict or hasattr(X, "to_pandas"):  # a sparse array may be a subclass of dict
            checked_frame(X)  # raises: it has columns, but is not a pandas DataFrame
        kinds = [np.float64, np.float32]
        array = validate(self, X, reset=reset, dtype=kinds, ensure_all_finite="allow-nan")
        return pd.DataFrame(array, columns=self._names(array.shape[1]))

    def _check_plain_names(self, frame: "pd.DataFrame") -> None:
        """Raise ValueError if a column is missing and scikit-learn does not check names.

        It checks names only if all of them are text.
        """
        if hasattr(self, "feature_names_in_") or not hasattr(self, "table_"):
            return
        lacking = [name for name in self.table_.names if name not in frame.columns]
        if lacking:
            raise ValueError(
                f"expected the columns of fit, got none called {lacking[0]!r}"
                f"{and_more(len(lacking) - 1)}"
            )

    def _names(self, num: int) -> list[Any]:
        """Names for the columns of arrays: those of `fit`, or 0, 1, 2, …"""
        table = getattr(self, "table_", None) if self.model is None else _table_of(self.model)
        return list(range(num)) if table is None or len(table) != num else list(table.names)

    def _checked(self, X: Any) -> "pd.DataFrame":  # noqa: N803
        from sklearn.utils.validation import (  # pyright: ignore[reportMissingImports]
            check_is_fitted,
        )

        check_is_fitted(self)
        return self._frame(X, reset=False)

    def _answers(
        self, frame: "pd.DataFrame", seed: int, *, shared: bool = False
    ) -> Iterator[tuple[np.ndarray, Posterior]]:
        """Places of rows with gaps, and their posteriors, some rows at a time.

        Args:
            frame: The rows.
            seed: Seed of the draws.
            shared: Whether all rows share their noise, so that a row's answer does not depend on
                its place; otherwise the noise differs.
        """
        self.table_.to_tensors(frame.iloc[:0])  # checks names even if nothing is missing
        missing = np.asarray(frame.reindex(columns=list(self.table_.names)).isna()).any(axis=1)
        gaps = np.flatnonzero(missing)
        # rows without gaps are checked here, the others by `condition`
        self.table_.to_tensors(frame.iloc[np.flatnonzero(~missing)])
        doubtful = 0
        for block, start in enumerate(range(0, len(gaps), _ROWS_AT_ONCE)):
            rows = gaps[start : start + _ROWS_AT_ONCE]
            own = seed if shared else (seed + block) % 2**63
            some = frame.iloc[rows]
            posterior = condition(self.model_, some, self._method, seed=own, progress=self.progress)
            doubtful += sum(v.purposes["interval"] == "unreliable" for v in posterior.verdicts)
            yield rows, posterior
        if doubtful:
            warnings.warn(
                f"expected answers that can be trusted, got unreliable ones for "
                f"{counted(doubtful, 'row')} of {len(frame)}; .condition(rows).verdicts say why",
                UserWarning,
                stacklevel=4,
            )

    def _like(self, given: Any, frame: "pd.DataFrame", values: np.ndarray, *, whole: bool) -> Any:
        """The completed rows in the type of what was given."""
        done = self.table_.from_tensors(values, rows=frame, whole=whole)
        if is_frame(given):
            return done
        return done.to_numpy(dtype=frame.dtypes.iloc[0])

    def __getstate__(self) -> dict[str, Any]:
        return to_state(super().__getstate__())  # pyright: ignore[reportAttributeAccessIssue]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(from_state(state))  # pyright: ignore[reportAttributeAccessIssue]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyright: ignore[reportAttributeAccessIssue]
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _table_of(model: Any) -> Table:
    """The table of a given model.

    Raises:
        TypeError: It is not a VAE.
        ValueError: It has no table.
    """
    if not isinstance(model, VAE):
        raise TypeError(f"expected model to be a crosscoding.VAE or None, got {model!r:.80}")
    if model.table is None:
        raise ValueError("expected a model with a table, VAE(..., table=...), got one without")
    return model.table
