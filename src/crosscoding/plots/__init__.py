"""Pictures: of completed data with their evidence marked, and of densities with draws on them."""

from crosscoding.plots.densities import density_panels
from crosscoding.plots.pictures import (
    Picture,
    colour,
    mark_evidence,
    sheet,
    write_labelled,
    write_png,
)

__all__ = [
    "Picture",
    "colour",
    "density_panels",
    "mark_evidence",
    "sheet",
    "write_labelled",
    "write_png",
]
