"""DataFrames: columns, conditions on them, and completed tables."""

from crosscoding.columns import Column, Table, TableEvidence
from crosscoding.model.vae import VAE
from crosscoding.tables.row_answers import TableAnswers

__all__ = ["Column", "Table", "TableEvidence"]

VAE.row_answers = TableAnswers()


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
