"""Tables: what the columns of a DataFrame contain, and their conversion to tensors and back.

`crosscoding.tables` has the public names.
"""

from crosscoding.columns.column import KINDS, Column
from crosscoding.columns.frames import is_frame
from crosscoding.columns.table import Table
from crosscoding.columns.table_evidence import TableEvidence

__all__ = ["KINDS", "Column", "Table", "TableEvidence", "is_frame"]
