"""Answers as DataFrames, for models with a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor

from crosscoding.columns import Table, TableEvidence
from crosscoding.errors import unknown_name
from crosscoding.target.base import Target
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    import pandas as pd

# The settings that each kind of frame takes besides seed and rows.
_TAKES: dict[str, tuple[str, ...]] = {
    "mean": (),
    "mode": (),
    "draw": (),
    "quantile": ("q", "num"),
    "interval": ("level", "num"),
    "probabilities": (),
}
_DEFAULTS = {"q": 0.5, "level": 0.9, "num": 1000}  # a quantile of 0.05 is then one of 0.05 ± 0.007


class _Answers(Protocol):
    """The part of a `Posterior` that frames are made of."""

    target: Target | None
    batch_shape: torch.Size

    def _independent(self, num: int, seed: int | Generator | None) -> Tensor: ...
    def mean(self) -> Tensor: ...
    def mode(self, *, seed: int | Generator | None = None) -> Tensor: ...
    def probabilities(self) -> Tensor: ...
    def quantile(
        self, q: Any, *, num: int = ..., seed: int | Generator | None = None
    ) -> Tensor: ...
    def interval(
        self, level: float, *, num: int = ..., seed: int | Generator | None = None
    ) -> tuple[Tensor, Tensor]: ...


def frame_of(
    posterior: Any,
    what: str,
    rows: "pd.DataFrame | None",
    *,
    seed: int | Generator | None,
    **settings: Any,
) -> "pd.DataFrame":
    """`Posterior.frame`, which documents the arguments; None means a setting's default."""
    q, level, num = _checked(what, settings)
    table, rows, limits = _about(posterior, rows)
    answers: _Answers = posterior

    def made(values: Tensor, whole: bool = True) -> "pd.DataFrame":
        flat = values.reshape(-1, len(table)).cpu()
        return table.from_tensors(flat, rows=rows, whole=whole, limits=limits)

    if what == "mean":
        return made(means_of(answers, table), whole=False)
    if what == "mode":
        return made(answers.mode(seed=seed))
    if what == "draw":
        return made(answers._independent(1, seed)[0])
    if what == "quantile":
        if isinstance(q, bool) or not isinstance(q, (int, float)):
            raise ValueError(f"expected one number q from 0 to 1 for a DataFrame, got {q!r}")
        return made(answers.quantile(q, num=num, seed=seed))
    if what == "interval":
        low, high = map(made, answers.interval(level, num=num, seed=seed))
        return _side_by_side({"low": low, "high": high})
    found = answers.probabilities()
    return _probabilities(found.reshape(-1, *found.shape[-2:]), table, rows)


def _checked(what: str, given: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """q, level and num, with their defaults where they are None.

    Raises:
        ValueError: There is no such frame, or it takes no such setting.
    """
    if what not in _TAKES:
        raise unknown_name("frame", what, tuple(_TAKES))
    for name, value in given.items():
        if value is not None and name not in _TAKES[what]:
            others = " or ".join(f"{kind!r}" for kind, takes in _TAKES.items() if name in takes)
            raise ValueError(
                f"expected {name} only with the frame {others}, got {name}={value!r} with {what!r}"
            )
    found = (default if given[name] is None else given[name] for name, default in _DEFAULTS.items())
    q, level, num = found
    return q, level, num


def _about(posterior: Any, rows: "pd.DataFrame | None") -> tuple[Table, Any, Any]:
    """The table, the rows that were conditioned on, and the bounds of their columns.

    Raises:
        ValueError: The model has no table, or rows are not those that were conditioned on.
    """
    target = posterior.target
    table = target.model.table if isinstance(target, VAETarget) else None
    if table is None:
        raise ValueError(
            "expected the posterior of a model with a table, VAE(..., table=...), got one without"
        )
    evidence = target.evidence
    if len(posterior.batch_shape) > 1:
        raise ValueError(
            f"expected one dimension of queries for a DataFrame, got {tuple(posterior.batch_shape)}"
        )
    own = evidence if isinstance(evidence, TableEvidence) else None
    if rows is None:
        return table, own and own.frame, own and own.limits
    values, mask = table.to_tensors(rows, dtype=evidence.values.dtype)
    exact = evidence.exact.reshape(-1, len(table)).cpu()
    seen = evidence.values.reshape(exact.shape).cpu()
    if mask.shape != exact.shape or not ((mask == exact) & (~exact | (values == seen))).all():
        raise ValueError(
            "expected the rows that the posterior was conditioned on, got rows with other cells"
        )
    return table, rows, own and own.limits


def means_of(answers: _Answers, table: Table) -> Tensor:
    """Means of numbers, and the likeliest categories of columns that have categories."""
    listed = torch.tensor([column.is_listed for column in table.columns])
    mean = answers.mean()
    if not listed.any():
        return mean
    likeliest = answers.probabilities().nan_to_num(0.0).argmax(-1)
    return torch.where(listed.to(mean.device), likeliest.to(mean.dtype), mean)


def _side_by_side(frames: dict[str, "pd.DataFrame"]) -> "pd.DataFrame":
    """Frames with the same columns as one with columns (name, which), column after column."""
    import pandas as pd

    first = next(iter(frames.values()))
    both = {(name, which): frames[which][name] for name in first.columns for which in frames}
    joined = pd.DataFrame(dict(enumerate(both.values())))
    joined.columns = pd.MultiIndex.from_tuples(both)
    return joined


def _probabilities(flat: Tensor, table: Table, rows: "pd.DataFrame | None") -> "pd.DataFrame":
    """Columns (name, category) of the columns that have categories."""
    import pandas as pd

    names = {}
    for place, column in enumerate(table.columns):
        if len(column.categories) == 1:  # its likelihood has a second, unused class
            flat[:, place] /= flat[:, place, :1].clone()
        for number, category in enumerate(column.categories):
            names[(column.name, category)] = flat[:, place, number].double().cpu().numpy()
    index = pd.RangeIndex(len(flat)) if rows is None else rows.index
    joined = pd.DataFrame(dict(enumerate(names.values())), index=index)
    joined.columns = pd.MultiIndex.from_tuples(list(names)) if names else joined.columns
    return joined
