"""The part of `Posterior` that answers for single elements, as tensors or as DataFrames."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from crosscoding.isolation import isolated_class
from crosscoding.result.frames import frame_of
from crosscoding.result.marginals import Marginals, checked_levels
from crosscoding.target.base import Target

if TYPE_CHECKING:
    import pandas as pd

_NUM_DRAWS = 1000  # a quantile of 0.05 is then one of 0.05 ± 0.007


@isolated_class
class ElementAnswers(ABC):
    """What p(y|x) says about each element by itself. `Posterior` supplies the draws."""

    target: Target | None
    batch_shape: torch.Size

    @abstractmethod
    def _predictions(self) -> Marginals:
        """Predictions from the stored draws."""

    @abstractmethod
    def _sample(self, num: int, generator: Generator) -> Tensor:
        """Draws of z, (num, B, latent)."""

    @abstractmethod
    def _stream(self, seed: int | Generator | None) -> Generator:
        """The generator of a seed, or the posterior's own."""

    @torch.no_grad()
    def quantile(
        self,
        q: float | Sequence[float] | Tensor,
        *,
        num: int = _NUM_DRAWS,
        seed: int | Generator | None = None,
    ) -> Tensor:
        """Quantiles of each element given x; observed elements as given.

        A quantile is the smallest of `num` draws of the element with at least a share q of them at
        or below it. It is a value that was drawn, so that of a count is a count. Unordered classes
        have no quantiles: NaN.

        Args:
            q: A level from 0 to 1, or several of them, Q.
            num: Number of draws, ≥ 1; the level's standard error is √(q (1 − q) / num).
            seed: Seed of these draws alone; by default the posterior's own stream continues.
        Returns:
            Shape (*batch, *data), or (Q, *batch, *data) for several levels.
        Raises:
            ValueError: A level is not from 0 to 1, or num is below 1.

        Example:
            >>> import crosscoding as cc
            >>> vae = cc.VAE(torch.nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.1))
            >>> row = torch.tensor([0.5, torch.nan, torch.nan])
            >>> posterior = cc.condition(vae, cc.Evidence.from_nan(row), seed=0)
            >>> low, high = posterior.interval(0.9, seed=0)
            >>> bool((low[1:] < high[1:]).all()), float(low[0]), float(high[0])
            (True, 0.5, 0.5)
        """
        if isinstance(num, int) and num < 1:
            raise ValueError(f"expected a number of draws >= 1, got {num}")
        levels, predictions = checked_levels(q), self._predictions()
        generator = self._stream(seed)
        return predictions.quantile(self._sample(num, generator), levels, generator)

    def interval(
        self,
        level: float = 0.9,
        *,
        num: int = _NUM_DRAWS,
        seed: int | Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The central interval that contains each element with this probability given x.

        Args:
            level: Probability, 0 to 1: the interval is from the quantile (1 − level) / 2 to
                (1 + level) / 2.
            num, seed: As for `quantile`.
        Returns:
            Low and high, both of shape (*batch, *data), both the value where it is observed.
        Raises:
            ValueError: level is not from 0 to 1.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"expected the probability of an interval, 0 to 1, got {level}")
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2], num=num, seed=seed)
        return low, high

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """p(t_e = k|x) of elements that are classes, ordered or not, or zeros and ones.

        They are averages, over the stored draws, of the probabilities given z.

        Returns:
            Shape (*batch, *data, K), K the largest number of classes of an element: 0 for classes
            that an element does not have, NaN for elements that are none of these. An observed
            class has probability 1.
        """
        return self._predictions().probabilities()

    @torch.no_grad()
    def mode(self, *, seed: int | Generator | None = None) -> Tensor:
        """The likeliest value of each element by itself given x; observed elements as given.

        For classes it is the most probable one. For other elements it is the one with the largest
        density, averaged over draws of z, among 128 quantiles of draws.

        Args:
            seed: Seed of these draws alone; by default the posterior's own stream continues.
        Returns:
            Shape (*batch, *data).
        """
        predictions, generator = self._predictions(), self._stream(seed)
        return predictions.mode(self._sample(_NUM_DRAWS, generator), generator)

    @torch.no_grad()
    def _independent(self, num: int, seed: int | Generator | None) -> Tensor:
        """Draws (num, *batch, *data) with the evidence; queries do not share their noise."""
        return self._predictions().independent(num, self._stream(seed))

    @torch.no_grad()
    def frame(
        self,
        what: str = "mean",
        *,
        q: float | None = None,
        level: float | None = None,
        num: int | None = None,
        seed: int | Generator | None = None,
        rows: "pd.DataFrame | None" = None,
    ) -> "pd.DataFrame":
        """The answers as a DataFrame, for a model with a table, in the user's units.

        It has the index, dtypes and order of columns of the rows that were conditioned on, whose
        observed cells it keeps bit for bit; columns that they lack come last. Classes, ordinals and
        booleans are never averaged: their mean is their likeliest category.

        Args:
            what: "mean"; "mode", the likeliest values; "draw", a draw of the complete rows, each
                independent of the others; "quantile", at q, a gap for unordered classes;
                "interval" of probability `level`, with columns (name, "low") and (name, "high"); or
                "probabilities", with columns (name, category).
            q: The quantile's level; 0.5 by default.
            level: The interval's probability; 0.9 by default.
            num: Draws for quantiles and intervals; 1,000 by default.
            seed: Seed of the draws.
            rows: The rows that were conditioned on, if the posterior does not know them because it
                was loaded or the evidence was tensors. Otherwise cells are made from the tensors.
        Raises:
            ValueError: The model has no table, `what` is unknown or takes no such setting, or rows
                differ from those that were conditioned on.

        Example:
            >>> import pandas as pd, crosscoding as cc
            >>> df = pd.DataFrame({"x": [0.1, 2.5, 0.7, 1.9], "y": ["a", "b", "a", "b"]})
            >>> table = cc.tables.Table(df)
            >>> decoder = torch.nn.Linear(2, table.num_params)
            >>> vae = cc.VAE(decoder, 2, table.likelihood(), table=table)
            >>> rows = pd.DataFrame({"x": [0.7, None]}, index=[4, 9])
            >>> posterior = cc.condition(vae, rows, seed=0)
            >>> completed = posterior.frame("draw", seed=0)
            >>> completed.index.tolist(), float(completed["x"].iloc[0]), list(completed.columns)
            ([4, 9], 0.7, ['x', 'y'])
        """
        return frame_of(self, what, rows, q=q, level=level, num=num, seed=seed)
