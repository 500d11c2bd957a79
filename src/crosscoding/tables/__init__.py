"""DataFrames: columns, conditions on them, and completed tables."""

from typing import TYPE_CHECKING, Any

from crosscoding.columns import Column, Table, TableEvidence
from crosscoding.model.vae import VAE
from crosscoding.tables.pooling import Pooled, rubin
from crosscoding.tables.row_answers import TableAnswers

if TYPE_CHECKING:
    from crosscoding.tables.imputer import VAEImputer

__all__ = ["Column", "Pooled", "Table", "TableEvidence", "VAEImputer", "rubin"]


def __getattr__(name: str) -> Any:
    """`VAEImputer`, which loads scikit-learn when it is first used."""
    if name == "VAEImputer":
        from crosscoding.tables.imputer import VAEImputer

        return VAEImputer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


VAE.row_answers = TableAnswers()


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
