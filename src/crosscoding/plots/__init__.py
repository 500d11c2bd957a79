"""Draws completions with marked evidence, answers for single elements, densities, and diagrams.

All functions take arrays. `posterior.plot()` draws answers with them.
"""

from crosscoding.plots.axes import Panels, panels_on
from crosscoding.plots.calibration import calibration_figure
from crosscoding.plots.data_shapes import images_of, is_picture, lines_of, value_range
from crosscoding.plots.densities import (
    contour_panels,
    density_panels,
    draw_contours,
    draw_curve,
    draw_plane,
    on_grid,
    window,
)
from crosscoding.plots.diagrams import framework, graphical_model
from crosscoding.plots.marginals import (
    ElementValues,
    draw_categories,
    draw_classes,
    draw_counts,
    draw_density,
    draw_elements,
    draw_given,
)
from crosscoding.plots.pictures import (
    Picture,
    colour,
    draw_sheet,
    labelled,
    mark_evidence,
    panels,
    png_bytes,
    sheet,
    sheet_figure,
    uncertainty,
    write_labelled,
    write_png,
)
from crosscoding.plots.statistics import boxes, mean_and_error, scatter_pair, violins
from crosscoding.plots.style import (
    as_dates,
    colour_of,
    date_axis,
    logarithmic,
    new_figure,
    plain,
    save,
    tidy,
)

__all__ = [
    "ElementValues",
    "Panels",
    "Picture",
    "as_dates",
    "boxes",
    "calibration_figure",
    "colour",
    "colour_of",
    "contour_panels",
    "date_axis",
    "density_panels",
    "draw_categories",
    "draw_classes",
    "draw_contours",
    "draw_counts",
    "draw_curve",
    "draw_density",
    "draw_elements",
    "draw_given",
    "draw_plane",
    "draw_sheet",
    "framework",
    "graphical_model",
    "images_of",
    "is_picture",
    "labelled",
    "lines_of",
    "logarithmic",
    "mark_evidence",
    "mean_and_error",
    "new_figure",
    "on_grid",
    "panels",
    "panels_on",
    "plain",
    "png_bytes",
    "save",
    "scatter_pair",
    "sheet",
    "sheet_figure",
    "tidy",
    "uncertainty",
    "value_range",
    "violins",
    "window",
    "write_labelled",
    "write_png",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
