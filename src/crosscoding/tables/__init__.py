"""DataFrames: columns, conditions on them, and completed tables."""

from crosscoding.columns import Column, Table, TableEvidence

__all__ = ["Column", "Table", "TableEvidence"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
