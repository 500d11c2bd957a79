"""What terminals and notebooks show of a posterior: verdicts, figures, the first rows, pictures.

A large batch is shown as counts and ranges, with words and pictures for its first queries only.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscoding.columns import Column, Table
from crosscoding.columns.words import in_words
from crosscoding.display import (
    Cell,
    Description,
    Grid,
    Mark,
    Strip,
    shown_number,
    shown_range,
    with_error,
)
from crosscoding.errors import NonFiniteError, counted
from crosscoding.result.drawing import name_of
from crosscoding.result.lazy_verdicts import Verdicts, marked
from crosscoding.result.summary import decodes_of, known_elements
from crosscoding.result.views import Knowledge, View, of_categories
from crosscoding.target.vae_target import VAETarget

_FEW = 5  # queries that are shown one by one
_FEW_COLUMNS = 8
_MEASURED = 2e10  # multiply-adds that a display may take to settle labels for means: about a second
_PICTURED = 4e9  # multiply-adds for pictures or completed rows
_DRAWS_OF_A_ROW = 3000  # decoded for its mean, its intervals and its probabilities
_COMPUTED = "∞: computed, not sampled"
_DRAWS_OF_A_LABEL = 128  # that `latent_share` decodes


def in_one_line(posterior: Any) -> str:
    """`repr(posterior)`."""
    shape, seconds = tuple(posterior.batch_shape), posterior.seconds
    start = f"Posterior(method={posterior.method}, batch_shape={shape}, seconds={seconds:.3g}"
    if not posterior.batch_shape.numel():
        return f"{start}, no queries)"
    if posterior.batch_shape.numel() == 1:
        label = posterior.verdicts.labels("density")[0]
        ess = shown_number(float(posterior.ess.reshape(())))
        return f"{start}, {label}, log p(x) {_log_evidence(posterior)}, ESS {ess})"
    counts = posterior.verdicts.counts("density")
    labels = ", ".join(f"{num:,} {label}" for label, num in counts.items() if num)
    return f"{start}, {labels})"


def described(posterior: Any, *, pictures: bool) -> Description:
    """What terminals and notebooks show."""
    num = posterior.batch_shape.numel()
    queries = "one query" if num == 1 else f"{num:,} queries" if num else "no queries"
    title = f"Posterior of {queries}, by {posterior.method}"
    if not num:
        return Description(title, (("batch shape", str(tuple(posterior.batch_shape))),))
    facts = _facts_of_one(posterior) if num == 1 else _facts_of_many(posterior)
    grids = () if num == 1 else (_counts(posterior.verdicts, posterior.target), _rows(posterior))
    strips, notes = (), _notes(posterior)
    target = posterior.target
    if isinstance(target, VAETarget):
        try:
            if target.model.table is not None:
                grids += _completed(posterior, target.model.table)
            elif pictures:
                strips = _strip(posterior)
        except NonFiniteError as error:
            notes += (f"No predictions: {error}.",)
    return Description(title, (*facts, *_costs(posterior)), grids, strips, notes)


# ---- figures -------------------------------------------------------------------------------------


def _facts_of_one(posterior: Any) -> list[tuple[str, Cell]]:
    labels = posterior.verdicts[0].purposes
    facts: list[tuple[str, Cell]] = [
        (f"verdict on {purpose}", marked(label)) for purpose, label in labels.items()
    ]
    ess = float(posterior.ess.reshape(()))
    facts.append(("log p(x)", _log_evidence(posterior)))
    facts.append(("ESS", _COMPUTED if ess == math.inf else shown_number(ess)))
    if posterior.pareto_k.isfinite().all():
        facts.append(("Pareto k", f"{float(posterior.pareto_k.reshape(())):.2f}"))
    return facts + _known(posterior.target)


def _facts_of_many(posterior: Any) -> list[tuple[str, Cell]]:
    log_evidence, error = posterior.log_evidence, posterior.log_evidence_error
    known = log_evidence[log_evidence.isfinite()]
    counts = posterior.verdicts.counts("density").items()
    labels = ", ".join(f"{num:,} {label}" for label, num in counts if num)
    facts: list[tuple[str, Cell]] = [("verdicts", labels)]
    if known.numel():
        words = f"{shown_range(float(known.min()), float(known.max()))} nats"
        errors = error[error.isfinite()]
        if errors.numel():
            words += f", errors up to {shown_number(float(errors.max()), 2)}"
        facts.append(("log p(x)", words))
    ess = posterior.ess[~posterior.ess.isnan()]
    if ess.numel():
        low, middle = float(ess.min()), float(ess.double().median())
        words = f"{shown_number(low)} or more, median {shown_number(middle)}"
        facts.append(("ESS", _COMPUTED if low == math.inf else words))
    return facts + _known(posterior.target)


def _known(target: Any) -> list[tuple[str, Cell]]:
    if not isinstance(target, VAETarget):
        return []
    num = known_elements(target.evidence, len(target.model.data_shape))
    low, high = int(num.min()), int(num.max())
    words = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    sums = sum(part.values.shape[-1] for part in target.evidence.sums)
    more = f", and {counted(sums, 'sum')}" if sums else ""
    return [("known", f"{words} of {target.model.data_size:,} elements{more}")]


def _costs(posterior: Any) -> list[tuple[str, Cell]]:
    facts: list[tuple[str, Cell]] = [("seconds", shown_number(posterior.seconds))]
    decodes = decodes_of(posterior).double()
    if not decodes.isnan().all():
        total, num = float(decodes.nansum()), decodes.numel()
        each = f", {shown_number(total / num)} a query" if num > 1 and total else ""
        facts.append(("decodes", f"{total:,.0f}{each}"))
    return facts


def _counts(verdicts: Verdicts, target: Any) -> Grid:
    operations = target.operations if isinstance(target, VAETarget) else 0.0
    affordable = verdicts.num_to_measure * _DRAWS_OF_A_LABEL * operations <= _MEASURED
    return verdicts.grid_of_counts(measure=affordable)


def _rows(posterior: Any) -> Grid:
    """The first queries, a row for each."""
    num = posterior.batch_shape.numel()
    few = range(min(num, _FEW))
    figures = (posterior.log_evidence, posterior.log_evidence_error, posterior.ess)
    columns = [figure.reshape(-1)[:_FEW].double().tolist() for figure in figures]
    kinds, names = zip(*(name_of(posterior, q).split(" ", 1) for q in few), strict=True)
    rows = [
        (name, marked(posterior.verdicts[q].label), f"{with_error(p, e)}", shown_number(ess))
        for q, name, p, e, ess in zip(few, names, *columns, strict=True)
    ]
    more = f"… {num - _FEW:,} more: posterior.summary()" if num > _FEW else ""
    head = (kinds[0], "label", "log p(x), nats", "ESS")
    return Grid(tuple(rows), head, numbers=frozenset({2, 3}), more=more)


def _notes(posterior: Any) -> tuple[str, ...]:
    """Reasons and advice: for the only answer, or for the first of those with the worst label."""
    verdicts = posterior.verdicts
    if len(verdicts) == 1:
        return verdicts[0]._notes()
    labels = verdicts.labels("density")
    for label in ("unreliable", "approximate"):
        if label in labels:
            query = labels.index(label)
            verdict = verdicts[query]
            name = name_of(posterior, query)
            start = f"{name[0].upper()}{name[1:]} is {label}: {verdict.reasons[0]}"
            return (f"{start}. Next step: {verdict.advice}.",)
    return ()


def _log_evidence(posterior: Any) -> str:
    """log p(x) of the only query with its error."""
    value, error = (
        float(figure.reshape(()))
        for figure in (posterior.log_evidence, posterior.log_evidence_error)
    )
    return "not estimated" if math.isnan(value) else f"{with_error(value, error)} nats"


# ---- data ----------------------------------------------------------------------------------------


def _completed(posterior: Any, table: Table) -> tuple[Grid, ...]:
    """The first rows: given cells in bold, and answers for the others, with 90 % intervals."""
    queries = list(range(min(posterior.batch_shape.numel(), _FEW)))
    if posterior.target.operations * len(queries) * _DRAWS_OF_A_ROW > _PICTURED:
        return ()
    view = View(posterior._of(queries), [name_of(posterior, q) for q in queries], 0)
    words = _Words(view.known, view.mean(), *view.interval(0.9), view.probabilities())
    columns = table.columns[:_FEW_COLUMNS]
    rows = tuple(
        (name.partition(" ")[2], *(words.cell(q, c, column) for c, column in enumerate(columns)))
        for q, name in enumerate(view.names)
    )
    names = (view.names[0].partition(" ")[0], *(str(column.name) for column in columns))
    more = f"… {len(table) - _FEW_COLUMNS} more columns" if len(table) > _FEW_COLUMNS else ""
    title = "Completed: given, likeliest class (probability), or mean (90 % interval)"
    return (Grid(rows, names, title, more=more),)


@dataclass(frozen=True)
class _Words:
    """What is known of cells, and answers for them, each (B, columns) in tensors' units."""

    known: Knowledge
    mean: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    probabilities: NDArray[Any]

    def cell(self, query: int, place: int, column: Column) -> Cell:
        """One cell in words."""
        given = bool(self.known.exact[query, place])

        def said(value: float) -> str:
            return in_words(column, float(column.from_tensor(np.array(value))), given=given)

        if given:
            return Mark(said(self.known.value[query, place]), "strong")
        if column.is_listed:
            own = of_categories(self.probabilities[query, place], len(column.categories))
            return f"{said(int(own.argmax()))} ({own.max():.0%})"
        ends = f"{said(self.low[query, place])} to {said(self.high[query, place])}"
        return f"{said(self.mean[query, place])} ({ends})"


def _strip(posterior: Any) -> tuple[Strip, ...]:
    """What was observed, means and draws of the first queries, if data are pictures."""
    from crosscoding.result.strips import strip_of_posterior  # loads matplotlib

    return strip_of_posterior(posterior, _PICTURED)
