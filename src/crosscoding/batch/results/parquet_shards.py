"""A shard as Parquet: one row for each row that was answered.

| column | what it is |
| --- | --- |
| row | its number in the source, from 0 |
| columns that are kept | as in the source |
| NAME_mean, NAME_low, NAME_high, NAME_q0.25, NAME_draw_0 | of the column NAME |
| NAME_probability | of the likeliest category, of columns that have them |
| mean, low, high, q0.25, draw_0 | lists of all elements, of data without names |
| log_evidence, log_evidence_error, ess | log p(x) in nats; effective sample size |
| mean_verdict, interval_verdict, density_verdict | trusted, approximate or unreliable |
"""

import io
from typing import Any

import numpy as np

from crosscoding.batch.answers import Answers
from crosscoding.batch.results.table_cells import cells_in_units
from crosscoding.batch.settings import Settings
from crosscoding.columns import Table

SUFFIX = ".parquet"
_FIGURES = ("log_evidence", "log_evidence_error", "ess")


def parquet_shard(
    answers: Answers, settings: Settings, table: Table | None, names: tuple[Any, ...] | None
) -> bytes:
    """The content of a shard's file.

    Args:
        answers: The answers.
        settings: Those of the run.
        table: The model's columns, if it has a table.
        names: Names of the elements of a datum, if they have any.
    """
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    columns: dict[str, Any] = {"row": pa.array(answers.rows.numbers, pa.int64())}
    if answers.rows.kept is not None:
        for name, cells in answers.rows.kept.items():
            columns[str(name)] = pa.array(cells, from_pandas=True)
    if table is not None:
        columns |= _cells_of_table(answers, settings, table)
    elif names is not None:
        columns |= _cells_by_name(answers, settings, names)
    else:
        columns |= _lists(answers, settings)
    columns |= {name: pa.array(answers.arrays[name], from_pandas=True) for name in _FIGURES}
    for purpose, labels in answers.verdicts.items():
        columns[f"{purpose}_verdict"] = pa.array(labels, pa.string())
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd")
    return content.getvalue()


def parts(settings: Settings) -> list[str]:
    """Names of the arrays that have a number for each element."""
    return ["mean", *settings.quantile_names, *(f"draw_{draw}" for draw in range(settings.draws))]


def _cells_of_table(answers: Answers, settings: Settings, table: Table) -> dict[str, Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    assert answers.rows.units is not None  # rows of a table have them
    found = {}
    for place, column in enumerate(table.columns):
        observed = answers.rows.units[:, place]
        for part in parts(settings):
            ordered = column.kind not in ("class", "boolean")
            if part in settings.quantile_names and not ordered:
                continue
            numbers = answers.arrays[part][:, place].astype(np.float64)
            found[f"{column.name}_{part}"] = cells_in_units(
                column, numbers, observed, possible=part != "mean"
            )
        if column.is_listed:
            shares = answers.arrays["probability"][:, place].astype(np.float64)
            found[f"{column.name}_probability"] = pa.array(shares)
    return found


def _cells_by_name(answers: Answers, settings: Settings, names: tuple[Any, ...]) -> dict[str, Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    return {
        f"{name}_{part}": pa.array(answers.arrays[part][:, place], from_pandas=True)
        for place, name in enumerate(names)
        for part in parts(settings)
    }


def _lists(answers: Answers, settings: Settings) -> dict[str, Any]:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    found = {}
    for part in parts(settings):
        array = answers.arrays[part]
        size = int(np.prod(array.shape[1:], dtype=np.int64))
        found[part] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), size)
    return found
