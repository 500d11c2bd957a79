"""Answers many rows, from files to files: streamed, resumable, in one process or on a Ray cluster.

`run` answers all rows of a source and writes shards of answers and a manifest; docs/batch.md shows
how to use it.
"""

from crosscoding.batch.driver import Progress, Result
from crosscoding.batch.errors import StoppedError
from crosscoding.batch.running import Estimate, estimate, run
from crosscoding.batch.sources.base import SourceChangedError
from crosscoding.formats.table_style import TableStyle

__all__ = [
    "Estimate",
    "Progress",
    "Result",
    "SourceChangedError",
    "StoppedError",
    "TableStyle",
    "estimate",
    "run",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
