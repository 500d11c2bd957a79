"""The part of `Posterior` that displays it: summaries, pictures, in terminals and notebooks."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.display import Description, Displayed
from crosscoding.isolation import isolated_class
from crosscoding.result.drawing import drawn
from crosscoding.result.lazy_verdicts import Verdicts
from crosscoding.result.look import Look
from crosscoding.result.posterior_description import described, in_one_line
from crosscoding.result.summary import SummaryTable, summary_of
from crosscoding.result.trace import Trace
from crosscoding.target.base import Target
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from crosscoding.plots import Panels


@isolated_class
class Looks(Displayed):
    """The displays of a posterior: `summary`, `plot`, and what terminals and notebooks show."""

    target: Target | None
    batch_shape: torch.Size
    method: str
    seconds: float

    @property
    @abstractmethod
    def verdicts(self) -> Verdicts: ...
    @property
    @abstractmethod
    def trace(self) -> Trace: ...
    @property
    @abstractmethod
    def ess(self) -> Tensor: ...
    @property
    @abstractmethod
    def pareto_k(self) -> Tensor: ...
    @property
    @abstractmethod
    def log_evidence(self) -> Tensor: ...
    @property
    @abstractmethod
    def log_evidence_error(self) -> Tensor: ...

    def __repr__(self) -> str:
        return in_one_line(self)

    def _described(self, *, pictures: bool) -> Description:
        return described(self, pictures=pictures)

    def summary(self) -> "pd.DataFrame | SummaryTable":
        """The figures of all answers as a table, one row per query.

        Columns: `label`, and the labels for `mean`, `interval` and `density`; `ess`;
        `log_evidence` and `log_evidence_error` in nats; `pareto_k`; `known`, the number of elements
        that are known exactly or in part, if there is a model; `decodes`, NaN if the method does
        not count them; `seconds`, each query's share; `method`. Some draws are decoded for those
        labels for means that no other figure settles.

        Returns:
            A DataFrame, with the index of the DataFrame that was conditioned on, or the queries'
            numbers, or their places in a batch of several dimensions. Without pandas, an object
            that prints the same table, with `table[name]` for a column's list of values.

        Example:
            >>> import crosscoding as cc
            >>> vae = cc.VAE(torch.nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.1))
            >>> rows = torch.tensor([[0.5, torch.nan, torch.nan], [0.1, 0.2, torch.nan]])
            >>> summary = cc.condition(vae, cc.Evidence.from_nan(rows), seed=0).summary()
            >>> list(summary["label"]), list(summary["known"])
            (['trusted', 'trusted'], [1, 2])
        """
        target = self.target
        if isinstance(target, VAETarget):
            return summary_of(self, target.evidence, len(target.model.data_shape))
        return summary_of(self, None, 0)

    def plot(
        self,
        kind: str | None = None,
        *,
        queries: int | Sequence[int] | None = None,
        only: Sequence[str | int] | None = None,
        shape: Sequence[int] | None = None,
        dims: Sequence[int] = (0, 1),
        num: int = 5,
        level: float = 0.9,
        limits: tuple[float, float] | None = None,
        seed: int | Generator = 0,
        ax: "Axes | None" = None,
        axes: "Axes | Sequence[Axes] | np.ndarray | None" = None,
    ) -> "Axes | Panels":
        """Draw answers with their evidence, mean and uncertainty.

        Args:
            kind: "pictures": what was observed, mean, uncertainty and draws of E[t|z], one row per
                query. Observed pixels are blue (black) to orange (white); colours stay as they are.
                Pixels that are known in part are green. One panel for each channel if there are
                not 1 or 3.
                "elements": intervals over the elements of a vector, or, for more than 40, a band
                with the mean and draws of E[t|z]; evidence in orange. One panel for each query and
                channel.
                "columns": for a table, densities of numbers and dates, bars of counts and classes,
                with intervals and evidence, in the user's units. One panel for each query and
                column.
                "latent": draws of z, over contours of the exact p(z|x) if z has two dimensions.
                By default the first that suits the model's data; "latent" without a decoder.
            queries: Which queries of the flattened batch; by default the first 4, or 3 for
                elements, or 1 for columns and latent.
            only: Columns by name, or channels by number; by default all, up to 12 and 8.
            shape: For pictures and elements, the shape in which to show a datum, such as (28, 28)
                for 784 elements.
            dims: For latent, which two dimensions of z.
            num: Number of draws, ≥ 0.
            level: Probability of intervals.
            limits: For pictures, the values shown as black and white.
            seed: Seed of all draws; the posterior's own stream does not move.
            ax, axes: matplotlib axes to draw on, as many as panels; give one of the two. By default
                those of a new figure, which is not pyplot's.
        Returns:
            The axes as an array (rows, columns) with an attribute `figure`; `ax` as it was passed.
        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The batch is empty, there is no such query, column, channel or dimension,
                the kind does not suit the model, or there are more or fewer axes than panels.

        Example:
            >>> import crosscoding as cc
            >>> vae = cc.zoo.load("mnist-2d")
            >>> seen = cc.rectangle_mask((28, 28), rows=(0, 13))
            >>> posterior = cc.condition(vae, cc.Evidence(cc.zoo.digits()[0][:2], seen), seed=0)
            >>> posterior.plot().shape, posterior.plot("latent", queries=[0, 1]).shape
            ((1, 1), (1, 2))
        """
        if ax is not None and axes is not None:
            raise ValueError("expected ax or axes, got both")
        look = Look(kind, queries, only, shape, dims, num, level, limits, seed)
        return drawn(self, look, axes if ax is None else ax)

    @abstractmethod
    def _of(self, queries: Sequence[int]) -> Any:
        """The answers to some queries of the flattened batch."""
