"""Rows under conditions, and densities of rows: what `VAE.sample` and its like compute."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.columns import Table, TableEvidence, is_frame
from crosscoding.conditioning import condition
from crosscoding.errors import counted
from crosscoding.isolation import isolated
from crosscoding.methods import Auto
from crosscoding.methods.base import Method
from crosscoding.model.rows import RowLogProb
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from, spawn
from crosscoding.result.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd


class TableAnswers:
    """The functions behind the methods of `model.rows.Rows`, which explains their arguments."""

    @staticmethod
    @isolated
    def sample(
        vae: VAE,
        num: int,
        given: Mapping[Any, Any] | None,
        *,
        method: Method | None,
        seed: int | Generator | None,
        progress: bool,
    ) -> "pd.DataFrame":
        """`VAE.sample`."""
        table = _table(vae)
        if isinstance(num, bool) or not isinstance(num, int) or num < 0:
            raise ValueError(f"expected num to be an int >= 0, got {num!r}")
        evidence = _query(table, vae, given, None)
        for_method, for_rows = spawn(generator_from(seed), 2)
        method = method or _for_rows(num)
        posterior = condition(vae, evidence, method, seed=for_method, progress=progress)
        _warn([posterior], "interval")
        values = posterior.predict(num, seed=for_rows)[:, 0]
        rows = evidence.frame.iloc[np.zeros(num, dtype=int)]
        rows = rows.reset_index(drop=True)
        return _frame(table, values, rows, evidence).reindex(columns=list(table.names))

    @staticmethod
    @isolated
    def sample_remaining(
        vae: VAE,
        df: "pd.DataFrame",
        given: Mapping[Any, Any] | None,
        *,
        method: Method | None,
        seed: int | Generator | None,
        progress: bool,
    ) -> "pd.DataFrame":
        """`VAE.sample_remaining`."""
        table = _table(vae)
        evidence = _query(table, vae, given, df)
        for_method, for_rows = spawn(generator_from(seed), 2)
        state, posteriors = for_method.get_state(), []
        values = evidence.values.clone()
        for most, queries, rows, ranks in _equal_rows(evidence):
            for_method.set_state(state)
            own = evidence[torch.from_numpy(queries).to(vae.device)]
            settled = method or _for_rows(most)
            posteriors.append(condition(vae, own, settled, seed=for_method, progress=progress))
            values[rows] = posteriors[-1]._independent(most, for_rows)[ranks]
        _warn(posteriors, "interval")
        return _frame(table, values, evidence.frame, evidence)

    @staticmethod
    @isolated
    def log_prob(
        vae: VAE,
        df: "pd.DataFrame",
        given: Any,
        *,
        method: Method | None,
        seed: int | Generator | None,
        progress: bool,
    ) -> RowLogProb:
        """`VAE.log_prob`."""
        table = _table(vae)
        for_both, for_known = spawn(generator_from(seed), 2)
        known = _known(table, vae, df, given)
        conditions = given if isinstance(given, Mapping) else None
        both = _query(table, vae, conditions, df)
        posterior = condition(vae, both, method, seed=for_both, progress=progress)
        _warn([posterior], "density")
        log_prob, error = posterior.log_evidence, posterior.log_evidence_error
        log_prob = log_prob - _log_units(table, both)
        if known is not None:
            prior = condition(vae, known, method, seed=for_known, progress=progress)
            _warn([prior], "density")
            log_prob = log_prob - prior.log_evidence + _log_units(table, known)
            error = torch.hypot(error, prior.log_evidence_error.expand_as(error))
        return RowLogProb(log_prob, error)


def _table(vae: VAE) -> Table:
    if vae.table is None:
        raise TypeError(
            "expected a model with a table, whose rows it draws; give it its columns, VAE(..., "
            "table=crosscoding.tables.Table(df))"
        )
    return vae.table


def _query(table: Table, vae: VAE, given: Any, df: Any) -> TableEvidence:
    """Conditions, and rows if there are any, as evidence."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            "expected given to be conditions by column, such as {'age': 40}, got "
            f"{type(given).__name__}"
        )
    if df is not None and not is_frame(df):
        raise TypeError(f"expected a pandas DataFrame, got {type(df).__name__}")
    evidence = table.query(given or {}, rows=df, dtype=vae.dtype)
    return evidence.to(vae.dtype, vae.device)


def _known(table: Table, vae: VAE, df: Any, given: Any) -> TableEvidence | None:
    """What is given by itself, as evidence; None if nothing is."""
    if given is None or len(given) == 0:
        return None
    if isinstance(given, Mapping):
        return _query(table, vae, given, None)
    names = [given] if isinstance(given, str) else list(given)
    if not is_frame(df):
        raise TypeError(f"expected a pandas DataFrame, got {type(df).__name__}")
    for name in names:
        if name not in df.columns:
            raise ValueError(f"expected given to name columns of the DataFrame, got {name!r}")
    return _query(table, vae, None, df[names])


def _for_rows(num: int) -> Auto:
    """The method for `num` rows of each query: a stored draw for each."""
    return Auto(num_draws=max(num, Auto.num_draws), purpose="interval")


def _warn(posteriors: Sequence[Posterior], purpose: str) -> None:
    """Say how many answers are not trusted for a purpose, and what to do about the first."""
    verdicts = [verdict.on(purpose) for posterior in posteriors for verdict in posterior.verdicts]
    wrong = [verdict for verdict in verdicts if verdict.label != "trusted"]
    if wrong:
        warnings.warn(
            f"{len(wrong)} of {counted(len(verdicts), 'answer')} not trusted for "
            f"{'rows' if purpose == 'interval' else 'log p'}; the first is {wrong[0].label}: "
            f"{wrong[0].reasons[0]}. {wrong[0].advice}",
            UserWarning,
            stacklevel=5,
        )


def _equal_rows(
    evidence: TableEvidence,
) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Rows with gaps that ask the same, together, so that each distinct query is answered once.

    Queries that as many rows ask, up to a factor of two, come together, so that draws for all of
    them are at most twice the rows.

    Returns:
        For each group: the most rows of a query, the first row of each query (Q,), the rows (R,),
        and for each row the number of its draw and of its query, (R,) each.
    """
    parts = [evidence.values, evidence.exact]
    if (known := evidence.uncertain) is not None:
        allowed = [] if known.allowed is None else [known.allowed.flatten(1)]
        parts += [known.low, known.high, *allowed]
    numbers = torch.cat([part.double() for part in parts], 1).cpu().numpy()
    asked = np.flatnonzero(~evidence.exact.all(1).cpu().numpy())
    if not len(asked):
        return
    unique = np.unique(
        numbers[asked], axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    first, query, num = unique[1], unique[2].reshape(-1), unique[3]
    order = np.argsort(query, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(num) - num, num)
    group = np.frexp(num)[1]  # of queries: 1, then 2 to 3, then 4 to 7 rows, and so on
    for size in np.unique(group):
        queries, rows = np.flatnonzero(group == size), np.flatnonzero(group[query] == size)
        places = np.searchsorted(queries, query[rows])
        yield int(num[queries].max()), asked[first[queries]], asked[rows], (rank[rows], places)


def _log_units(table: Table, evidence: TableEvidence) -> Tensor:
    """Σ log of tensors' units over exact values, (N,), by which their densities are too high."""
    scales = [math.log(column.scale) for column in table.columns]
    sizes = torch.tensor(scales, dtype=evidence.values.dtype, device=evidence.values.device)
    return torch.where(evidence.exact, sizes, 0.0).sum(-1)


def _frame(
    table: Table, values: Tensor, rows: "pd.DataFrame", evidence: TableEvidence
) -> "pd.DataFrame":
    """Drawn values as rows, within the limits of the conditions."""
    limits = evidence.limits
    return table.from_tensors(values.cpu().double().numpy(), rows=rows, limits=limits)
