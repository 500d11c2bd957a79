"""What a table's model learns about columns besides the decoder: dispersions and cut points.

During training, a count's total count and an ordinal's cut points are parameters. Afterwards they
are settings of the likelihood.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.columns import Column, Table
from crosscoding.columns.column import mixed_of
from crosscoding.likelihoods import Likelihood, Mixed, NegativeBinomial, Ordinal

_LEAST_PROBABILITY = 0.01  # of a class that the data lack, at the start of training
_STRETCH = 2.0  # of cut points at the start, so that a middle class can exceed its overall share


@dataclass(frozen=True)
class _Part:
    """A column's share of the decoder's output while training and afterwards."""

    column: Column
    likelihood: Likelihood
    start: Tensor

    @property
    def num(self) -> int:
        return int(np.prod(self.likelihood.param_shape))


class ColumnOutputs(nn.Module):
    """Turns a decoder's output, (*shape, outputs), into parameters of `likelihood` for training.

    Args:
        table: The columns.
        values, mask: Data from which parameters start, shape (N, columns).
    """

    def __init__(self, table: Table, values: Tensor, mask: Tensor) -> None:
        super().__init__()
        self._parts = [
            _Part(column, column.likelihood, _marginal(column, own[seen]))
            for column, own, seen in zip(table.columns, values.mT, mask.mT, strict=True)
        ]
        self.learned = nn.ParameterDict(
            {
                str(place): nn.Parameter(start)
                for place, part in enumerate(self._parts)
                if (start := _learned(part, values[:, place][mask[:, place]])) is not None
            }
        )
        self.likelihood = mixed_of(map(self._while_training, range(len(self._parts))))

    @property
    def start(self) -> Tensor:
        """The decoder's output that gives each column its distribution in the data."""
        return torch.cat([part.start for part in self._parts])

    @property
    def log_variances(self) -> Tensor:
        """Which of the decoder's outputs are log variances, boolean, (outputs,)."""
        flags = [
            torch.arange(part.num) == 1 if _is_normal(part) else torch.zeros(part.num).bool()
            for part in self._parts
        ]
        return torch.cat(flags)

    @property
    def normal_columns(self) -> Tensor:
        """The places of the columns that these log variances belong to."""
        return torch.tensor([p for p, part in enumerate(self._parts) if _is_normal(part)]).long()

    def forward(self, output: Tensor) -> Tensor:
        """Parameters of `likelihood`, (*shape, numbers)."""
        if not len(self.learned):
            return output
        pieces = output.split([part.num for part in self._parts], -1)
        return torch.cat([self._params(place, own) for place, own in enumerate(pieces)], -1)

    def trained(self) -> Mixed:
        """The likelihood with what was learned as its settings."""
        return mixed_of(map(self._trained, range(len(self._parts))))

    def _params(self, place: int, own: Tensor) -> Tensor:
        if str(place) not in self.learned:
            return own
        if isinstance(self._parts[place].likelihood, Ordinal):
            return self._cut_points(place) - own
        total = self.learned[str(place)].exp().expand_as(own)
        return torch.cat([own, total], -1)

    def _cut_points(self, place: int) -> Tensor:
        first, steps = self.learned[str(place)][:1], self.learned[str(place)][1:]
        return torch.cat([first, first + steps.exp().cumsum(0)])

    def _while_training(self, place: int) -> Likelihood:
        likelihood = self._parts[place].likelihood
        if isinstance(likelihood, NegativeBinomial):
            return NegativeBinomial(None)
        if isinstance(likelihood, Ordinal):
            return Ordinal(None, num_classes=likelihood.num_classes)
        return likelihood

    def _trained(self, place: int) -> Likelihood:
        likelihood = self._parts[place].likelihood
        if isinstance(likelihood, NegativeBinomial):
            return NegativeBinomial(self.learned[str(place)].exp().item())
        if isinstance(likelihood, Ordinal):
            return Ordinal(self._cut_points(place).tolist())
        return likelihood


def _is_normal(part: _Part) -> bool:
    return part.column.kind in ("number", "positive", "date")


def _learned(part: _Part, values: Tensor) -> Tensor | None:
    """The initial parameters of a column; None if it has none."""
    if isinstance(part.likelihood, NegativeBinomial):
        return torch.tensor([part.column.total_count]).log()
    if not isinstance(part.likelihood, Ordinal):
        return None
    shares = _shares(values, part.likelihood.num_classes or 2).cumsum(0)[:-1]
    cuts = _STRETCH * shares.logit()
    return torch.cat([cuts[:1], cuts.diff().log()])


def _marginal(column: Column, values: Tensor) -> Tensor:
    """The decoder's output that gives the distribution of a column's values, (numbers,)."""
    if column.kind == "positive":
        return torch.stack(
            [values.log().mean(), values.log().var(correction=0).clamp_min(0.01).log()]
        )
    if column.kind in ("number", "date"):
        return torch.stack([values.mean(), values.var(correction=0).clamp_min(0.01).log()])
    if column.kind == "count":
        log_mean = values.mean().clamp_min(_LEAST_PROBABILITY).log()
        total = column.total_count
        return (log_mean if total is None else log_mean - np.log(total)).reshape(1)
    if column.kind == "ordinal":
        return torch.zeros(1)
    if column.kind == "boolean":
        return values.mean().clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY).logit().reshape(1)
    if len(column.categories) == 1:  # the likelihood has a second class, which never occurs
        return torch.tensor([0.0, -torch.inf])
    return _shares(values, len(column.categories)).log()


def _shares(values: Tensor, num: int) -> Tensor:
    """The share of each of `num` classes, at least about a hundredth of an even share."""
    counts = torch.bincount(values.long(), minlength=num).float()
    shares = counts / counts.sum() + _LEAST_PROBABILITY / num
    return shares / shares.sum()
