"""Draws completions with marked evidence, densities with draws, statistics and diagrams."""

from crosscoding.plots.calibration import calibration_figure
from crosscoding.plots.densities import contour_panels, density_panels, on_grid, window
from crosscoding.plots.diagrams import framework, graphical_model
from crosscoding.plots.pictures import (
    Picture,
    colour,
    labelled,
    mark_evidence,
    panels,
    sheet,
    sheet_figure,
    write_labelled,
    write_png,
)
from crosscoding.plots.statistics import boxes, mean_and_error, scatter_pair, violins
from crosscoding.plots.style import colour_of, logarithmic, new_figure, save, tidy

__all__ = [
    "Picture",
    "boxes",
    "calibration_figure",
    "colour",
    "colour_of",
    "contour_panels",
    "density_panels",
    "framework",
    "graphical_model",
    "labelled",
    "logarithmic",
    "mark_evidence",
    "mean_and_error",
    "new_figure",
    "on_grid",
    "panels",
    "save",
    "scatter_pair",
    "sheet",
    "sheet_figure",
    "tidy",
    "violins",
    "window",
    "write_labelled",
    "write_png",
]
