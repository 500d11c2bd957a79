"""How objects are shown: described once, for terminals (rich) and for notebooks (HTML)."""

from crosscoding.display.description import (
    LABEL_STATUS,
    Cell,
    Description,
    Grid,
    Mark,
    Strip,
)
from crosscoding.display.displayed import Displayed
from crosscoding.display.numbers import shown_number, shown_range, with_error

__all__ = [
    "LABEL_STATUS",
    "Cell",
    "Description",
    "Displayed",
    "Grid",
    "Mark",
    "Strip",
    "shown_number",
    "shown_range",
    "with_error",
]
