"""Rows under conditions, and densities of rows: the code behind `VAE.sample` and `log_prob`."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.columns import Table, TableEvidence
from crosscoding.columns.frames import checked_frame
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

_BYTES = 256 * 2**20  # for the draws of queries that are answered together


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
        doubts = _Doubts("interval")
        doubts.add(posterior)
        doubts.warn()
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
        evidence = _query(table, vae, given, checked_frame(df))
        for_method, for_rows = spawn(generator_from(seed), 2)
        state, doubts = for_method.get_state(), _Doubts("interval")
        values = evidence.values.clone()
        groups, begun = [*_equal_rows(evidence, vae.latent_dim)], time.perf_counter()
        for place, (most, queries, rows, ranks) in enumerate(groups):
            for_method.set_state(state)
            own = evidence[torch.from_numpy(queries).to(vae.device)]
            settled = _within(method or _for_rows(most), len(groups) - place, begun)
            posterior = condition(vae, own, settled, seed=for_method, progress=progress)
            doubts.add(posterior)
            values[rows] = posterior._independent(most, for_rows)[ranks]
        doubts.warn()
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
        known = _known(table, vae, checked_frame(df), given)
        conditions = given if isinstance(given, Mapping) else None
        both = _query(table, vae, conditions, df)
        log_prob, error = _log_density(table, vae, both, method, for_both, progress)
        if known is not None:
            of_known, own = _log_density(table, vae, known, method, for_known, progress)
            log_prob, error = log_prob - of_known, torch.hypot(error, own.expand_as(error))
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
    evidence = table.query(given or {}, rows=df, dtype=vae.dtype)
    return evidence.to(vae.dtype, vae.device)


def _known(table: Table, vae: VAE, df: Any, given: Any) -> TableEvidence | None:
    """What is given, without the rows, as evidence; None if nothing is given."""
    if isinstance(given, (str, int)):
        given = [given]
    if given is None or not len(given):
        return None
    if isinstance(given, Mapping):
        return _query(table, vae, given, None)
    for name in given:
        if name not in df.columns:
            raise ValueError(f"expected given to name columns of the DataFrame, got {name!r}")
    return _query(table, vae, None, df[list(given)])


def _for_rows(num: int) -> Auto:
    """The method for `num` rows of each query: a stored draw for each."""
    return Auto(num_draws=max(num, Auto.num_draws), purpose="interval")


class _Doubts:
    """Counts the answers that are not trusted for a purpose, to warn of all of them at once."""

    def __init__(self, purpose: str) -> None:
        self._purpose, self._num, self._wrong, self._first = purpose, 0, 0, ""

    def add(self, posterior: Posterior) -> None:
        """Count the answers of a posterior."""
        for verdict in (verdict.on(self._purpose) for verdict in posterior.verdicts):
            self._num += 1
            if verdict.label != "trusted":
                self._wrong += 1
                self._first = self._first or (
                    f"{verdict.label}: {verdict.reasons[0]}. {verdict.advice}"
                )

    def warn(self, stacklevel: int = 5) -> None:
        """Say how many are not trusted, and what to do about the first."""
        if self._wrong:
            are = "is" if self._wrong == 1 else "are"
            what = "rows" if self._purpose == "interval" else "log p"
            warnings.warn(
                f"{self._wrong} of {counted(self._num, 'answer')} {are} not trusted for {what}; "
                f"the first is {self._first}",
                UserWarning,
                stacklevel=stacklevel,
            )


def _log_density(
    table: Table,
    vae: VAE,
    evidence: TableEvidence,
    method: Method | None,
    generator: Generator,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """log p of evidence as a density in the user's units, and its standard error, (N,) each."""
    state, doubts, found = generator.get_state(), _Doubts("density"), []
    method, begun = method or Auto(), time.perf_counter()
    num_draws = getattr(method, "num_draws", Auto.num_draws)
    at_once = _queries_at_once(num_draws, vae.latent_dim)
    starts = range(0, max(len(evidence.values), 1), at_once)
    for place, start in enumerate(starts):
        generator.set_state(state)
        own, runner = evidence[start : start + at_once], _within(method, len(starts) - place, begun)
        posterior = condition(vae, own, runner, seed=generator, progress=progress)
        doubts.add(posterior)
        found.append((posterior.log_evidence, posterior.log_evidence_error))
    doubts.warn(6)
    log_evidence, error = map(torch.cat, zip(*found, strict=True))
    return log_evidence - _log_units(table, evidence), error


def _within(method: Method, left: int, begun: float) -> Method:
    """The method for the next block, with its share of the time that is left."""
    return method.of_block(left, time.perf_counter() - begun, interrupted=False)


def _queries_at_once(num_draws: int, latent_dim: int) -> int:
    """How many queries to answer together, so that their draws fit in memory."""
    return max(_BYTES // (8 * num_draws * latent_dim), 1)


def _equal_rows(
    evidence: TableEvidence, latent_dim: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Group rows with gaps by query, so that each distinct query is answered once.

    The queries of a group have equally many rows, up to a factor of two, so that the group takes at
    most twice as many draws as it has rows. A group has no more queries than fit in memory.

    Yields:
        For each group: the largest number of rows of a query, the first row of each query (Q,), the
        rows (R,), and for each row the number of its draw and of its query, (R,) each.
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
        some, most = np.flatnonzero(group == size), int(num[group == size].max())
        at_once = _queries_at_once(max(most, Auto.num_draws), latent_dim)
        for start in range(0, len(some), at_once):
            queries = some[start : start + at_once]
            place = np.full(len(num), -1)
            place[queries] = np.arange(len(queries))
            rows = np.flatnonzero(place[query] >= 0)
            yield most, asked[first[queries]], asked[rows], (rank[rows], place[query[rows]])


def _log_units(table: Table, evidence: TableEvidence) -> Tensor:
    """Σ log scale over exact values, (N,): log Jacobian from tensors' units to the user's."""
    scales = [math.log(column.scale) for column in table.columns]
    sizes = torch.tensor(scales, dtype=evidence.values.dtype, device=evidence.values.device)
    return torch.where(evidence.exact, sizes, 0.0).sum(-1)


def _frame(
    table: Table, values: Tensor, rows: "pd.DataFrame", evidence: TableEvidence
) -> "pd.DataFrame":
    """Drawn values as rows, within the limits of the conditions."""
    limits = evidence.limits
    return table.from_tensors(values.cpu().double().numpy(), rows=rows, limits=limits)
