"""Models whose data are rows of a table: DataFrames as their data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from crosscoding.columns import Table, TableEvidence, is_frame

if TYPE_CHECKING:
    import pandas as pd


class _Model(Protocol):
    """The part of a `VAE` that turns DataFrames into tensors."""

    table: Table | None
    dtype: torch.dtype
    device: torch.device


def checked_table(table: Any, data_shape: Sequence[int]) -> Table | None:
    """The table of a model as it was passed.

    Raises:
        TypeError: It is not a `Table`.
        ValueError: It does not have one column for each element of the data.
    """
    if table is None:
        return None
    if not isinstance(table, Table):
        raise TypeError(
            f"expected a crosscoding.tables.Table, got {type(table).__name__}; make one from a "
            "DataFrame with Table(df)"
        )
    if tuple(data_shape) != (len(table),):
        raise ValueError(
            f"expected a table with one column for each element of data of shape "
            f"{tuple(data_shape)}, got {len(table)} columns: {', '.join(map(str, table.names[:6]))}"
        )
    return table


def table_of(vae: _Model, frame: "pd.DataFrame") -> Table:
    """The model's table, for a DataFrame.

    Raises:
        TypeError: The model has none.
    """
    if vae.table is None:
        raise TypeError(
            f"expected tensors for a model without a table, got a DataFrame of shape {frame.shape};"
            " give the model its columns, VAE(..., table=crosscoding.tables.Table(df))"
        )
    return vae.table


def of_frame(vae: _Model, data: Any) -> Any:
    """A DataFrame without gaps as a tensor of the model's data; anything else as it is.

    Raises:
        TypeError: The model has no table.
        ValueError: A cell is missing or does not fit its column.
    """
    if not is_frame(data):
        return data
    return table_of(vae, data).complete_tensor(data, dtype=vae.dtype).to(vae.device)


def truth_of_frame(vae: _Model, data: Any) -> Any:
    """As `of_frame`, but with NaN for missing cells."""
    if not is_frame(data):
        return data
    return table_of(vae, data).to_tensors(data, dtype=vae.dtype)[0].to(vae.device)


def evidence_of_frame(vae: _Model, evidence: Any) -> Any:
    """A DataFrame as evidence for the model; evidence of a table in its dtype and on its device."""
    if is_frame(evidence):
        evidence = table_of(vae, evidence).evidence(evidence, dtype=vae.dtype)
    if isinstance(evidence, TableEvidence):
        return evidence.to(vae.dtype, vae.device)
    return evidence
