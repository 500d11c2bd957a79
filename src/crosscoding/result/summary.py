"""`Posterior.summary`: the figures of all queries as a table, by pandas if it is installed."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from crosscoding.columns import TableEvidence
from crosscoding.display import Cell, Description, Displayed, Grid, shown_number
from crosscoding.errors import counted, unknown_name
from crosscoding.evidence import Evidence
from crosscoding.result.check import LABELS
from crosscoding.result.lazy_verdicts import Verdicts, marked
from crosscoding.result.purposes import PURPOSES
from crosscoding.result.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_FEW = 10  # rows that are printed without pandas


class Figures(Protocol):
    """The part of a `Posterior` that a summary is made of."""

    method: str
    batch_shape: torch.Size
    seconds: float

    @property
    def verdicts(self) -> Verdicts: ...
    @property
    def trace(self) -> Trace: ...
    @property
    def ess(self) -> Tensor: ...
    @property
    def pareto_k(self) -> Tensor: ...
    @property
    def log_evidence(self) -> Tensor: ...
    @property
    def log_evidence_error(self) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class SummaryTable(Displayed):
    """The summary without pandas: columns by name, each with one value per query.

    Attributes:
        index: The number of each query, or its place in the batch if that has several dimensions.
        columns: Lists of values by name.
    """

    index: list[Any]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self.columns:
            raise KeyError(str(unknown_name("column", name, self.columns)))
        return self.columns[name]

    def __repr__(self) -> str:
        rows = [["", *self.columns]] + [list(map(_text, row)) for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([*lines, self._more] if self._more else lines)

    def _rows(self) -> list[tuple[Cell, ...]]:
        return [
            (str(self.index[row]), *(_cell(values[row]) for values in self.columns.values()))
            for row in range(min(len(self), _FEW))
        ]

    @property
    def _more(self) -> str:
        return f"… {len(self) - _FEW:,} more" if len(self) > _FEW else ""

    def _described(self, *, pictures: bool) -> Description:
        numbers = frozenset(
            place
            for place, values in enumerate(self.columns.values(), 1)
            if values and not isinstance(values[0], str)
        )
        names = ("query", *self.columns)
        grid = Grid(tuple(self._rows()), names, numbers=numbers, more=self._more)
        return Description(counted(len(self), "query", "queries"), grids=(grid,))


def summary_of(
    posterior: Figures, evidence: Evidence | None, num_data_dims: int
) -> "pd.DataFrame | SummaryTable":
    """`Posterior.summary`, which documents the columns.

    Args:
        posterior: The answers.
        evidence: Their evidence, (*batch, *data); None if there is none.
        num_data_dims: The number of dimensions of a datum.
    """
    columns = _columns(posterior, evidence, num_data_dims)
    try:
        import pandas as pd
    except ImportError:
        return SummaryTable(_places(posterior.batch_shape), columns)
    dtypes = {name: _DTYPES.get(name, "float64") for name in columns}
    series = {n: pd.Series(values, dtype=dtypes[n]) for n, values in columns.items()}
    frame = pd.DataFrame(series)
    frame.index = _index(posterior.batch_shape, evidence)
    return frame


_DTYPES = {"label": object, **dict.fromkeys(PURPOSES, object), "method": object, "known": "int64"}


def _columns(
    posterior: Figures, evidence: Evidence | None, num_data_dims: int
) -> dict[str, list[Any]]:
    verdicts = posterior.verdicts
    columns: dict[str, list[Any]] = {"label": verdicts.labels("density")}
    columns |= {purpose: verdicts.labels(purpose) for purpose in PURPOSES}
    for name in ("ess", "log_evidence", "log_evidence_error", "pareto_k"):
        columns[name] = _numbers(getattr(posterior, name))
    if evidence is not None:
        columns["known"] = known_elements(evidence, num_data_dims).tolist()
    columns["decodes"] = _numbers(decodes_of(posterior))
    columns["seconds"] = _numbers(seconds_of(posterior))
    columns["method"] = [posterior.method] * len(verdicts)
    return columns


def known_elements(evidence: Evidence, num_data_dims: int) -> Tensor:
    """How many elements of each query are known, exactly or in part, (B,)."""
    return evidence.flatten(num_data_dims).mask.flatten(1).sum(1)


def decodes_of(posterior: Figures) -> Tensor:
    """Decoder evaluations of each query, shape (*batch,); NaN if the method does not count them."""
    stages = [stage.decodes for stage in posterior.trace]
    return torch.stack(stages).sum(0) if stages else torch.full_like(posterior.ess, math.nan)


def seconds_of(posterior: Figures) -> Tensor:
    """Each query's share of the time, (*batch,): summed over stages, or equal if there are none."""
    stages = [stage.seconds for stage in posterior.trace]
    if stages:
        return torch.stack(stages).sum(0)
    return torch.full_like(posterior.ess, posterior.seconds / max(posterior.ess.numel(), 1))


def _numbers(values: Tensor) -> list[float]:
    return values.reshape(-1).double().tolist()


def _places(shape: torch.Size) -> list[Any]:
    """The number of each query, or its place."""
    if len(shape) < 2:
        return list(range(shape.numel()))
    return list(map(tuple, torch.cartesian_prod(*map(torch.arange, shape)).tolist()))


def _index(shape: torch.Size, evidence: Evidence | None) -> "pd.Index":
    import pandas as pd

    if isinstance(evidence, TableEvidence) and len(shape) == 1:
        return evidence.frame.index
    if len(shape) < 2:
        return pd.RangeIndex(shape.numel(), name="query")
    names = [f"batch_{dim}" for dim in range(len(shape))]
    return pd.MultiIndex.from_product([range(size) for size in shape], names=names)


def _cell(value: Any) -> Cell:
    if isinstance(value, str):
        return marked(value) if value in LABELS else value
    return shown_number(float(value), 4)


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text
