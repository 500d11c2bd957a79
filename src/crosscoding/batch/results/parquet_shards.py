"""A shard as Parquet: one row for each row that was answered.

| column | what it is |
| --- | --- |
| row | its number in the source, from 0 |
| kept columns | as in the source |
| NAME_mean, NAME_low, NAME_high, NAME_q0.25, NAME_draw_0 | the answers for the column NAME |
| (the same) | integers, if the source has some beyond 2**53 in that column |
| NAME_probability | probability of the likeliest category, for columns with categories |
| mean, low, high, q0.25, draw_0 | lists of all elements, for data without names |
| log_evidence, log_evidence_error, ess | log p(x) in nats; effective sample size |
| mean_verdict, interval_verdict, density_verdict | trusted, approximate or unreliable |
| seconds | the row's share of its block's time; the only column that may differ in a rerun |
"""

import hashlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from crosscoding.batch.answers import Answers
from crosscoding.batch.results.table_cells import cells_in_units, with_integers
from crosscoding.batch.settings import Settings
from crosscoding.columns import Column, Table
from crosscoding.result.purposes import PURPOSES

SUFFIX = ".parquet"
_FIGURES = ("log_evidence", "log_evidence_error", "ess")


def parquet_shard(
    answers: Answers, settings: Settings, table: Table | None, names: tuple[Any, ...] | None
) -> tuple[bytes, str]:
    """The content of a shard's file, and a SHA-256 of all its columns but `seconds`, in hex.

    Args:
        answers: The answers.
        settings: The settings of the run.
        table: The model's columns, if it has a table.
        names: Names of the elements of a datum, if they have any.
    """
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    columns: list[Any] = [pa.array(answers.rows.numbers, pa.int64())]
    if answers.rows.kept is not None:
        columns += answers.rows.kept.columns
    if table is not None:
        columns += _cells_of_table(answers, settings, table)
    elif names is not None:
        columns += _cells_by_name(answers, settings, names)
    else:
        columns += _lists(answers, settings)
    columns += [pa.array(answers.arrays[name], from_pandas=True) for name in _FIGURES]
    columns += [pa.array(answers.verdicts[purpose], pa.string()) for purpose in PURPOSES]
    *others, seconds = column_names(settings, table, names)
    found = pa.table(columns, names=others)
    digest = hashlib.sha256(_written(found)).hexdigest()
    return _written(found.append_column(seconds, pa.array(answers.arrays["seconds"]))), digest


def _written(table: Any) -> bytes:
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    return content.getvalue()


def schema_of(path: Path) -> dict[str, str]:
    """The types of a shard's columns, by name."""
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    schema = pq.read_schema(path)
    return {field.name: str(field.type) for field in schema}


def column_names(
    settings: Settings, table: Table | None, names: tuple[Any, ...] | None
) -> list[str]:
    """Names of a shard's columns, in their order.

    Args:
        settings, table, names: As for `parquet_shard`.
    """
    own = parts(settings)
    if table is not None:
        own = [f"{c.name}_{part}" for c in table.columns for part in _parts_of(c, settings)]
    elif names is not None:
        own = [f"{name}_{part}" for name in names for part in own]
    verdicts = [f"{purpose}_verdict" for purpose in PURPOSES]
    return ["row", *settings.keep, *own, *_FIGURES, *verdicts, "seconds"]


def check_names(settings: Settings, table: Table | None, names: tuple[Any, ...] | None) -> None:
    """Raise ValueError if two columns of the results would have the same name."""
    counts = Counter(column_names(settings, table, names))
    twice, count = counts.most_common(1)[0]
    if count == 1:
        return
    what = "the column to keep" if twice in settings.keep else "a column of the source"
    raise ValueError(
        f"expected columns of different names in the results, got {count} called {twice!r}; "
        f"rename {what}"
    )


def parts(settings: Settings) -> list[str]:
    """Names of the arrays that have a number for each element."""
    return ["mean", *settings.quantile_names, *(f"draw_{draw}" for draw in range(settings.draws))]


def _parts_of(column: Column, settings: Settings) -> list[str]:
    """The parts of the answer for a column of a table: no quantiles if its values have no order."""
    found = parts(settings)
    if column.kind in ("class", "boolean"):
        found = [part for part in found if part not in settings.quantile_names]
    return [*found, "probability"] if column.is_listed else found


def _cells_of_table(answers: Answers, settings: Settings, table: Table) -> list[Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    assert answers.rows.units is not None  # rows of a table have them
    found = []
    for place, column in enumerate(table.columns):
        observed = answers.rows.units[:, place]
        own = None if column.is_listed else answers.rows.integers_of(column.name)
        for part in _parts_of(column, settings):
            numbers = answers.arrays[part][:, place].astype(np.float64)
            if part == "probability":
                found.append(pa.array(numbers))
                continue
            found.append(cells_in_units(column, numbers, observed, own, possible=part != "mean"))
    return found


def _cells_by_name(answers: Answers, settings: Settings, names: tuple[Any, ...]) -> list[Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    found = []
    for place, name in enumerate(names):
        own = answers.rows.integers_of(name)
        known = answers.rows.mask.flatten(1)[:, place].numpy()
        for part in parts(settings):
            cells = answers.arrays[part].reshape(len(answers.rows), len(names))[:, place]
            exact = own is not None
            found.append(
                with_integers(cells, known, own) if exact else pa.array(cells, from_pandas=True)
            )
    return found


def _lists(answers: Answers, settings: Settings) -> list[Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    found = []
    for part in parts(settings):
        array = answers.arrays[part]
        size = int(np.prod(array.shape[1:], dtype=np.int64))
        found.append(pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), size))
    return found
