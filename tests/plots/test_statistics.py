import numpy as np
import pytest

from crosscoding.plots import (
    boxes,
    colour_of,
    framework,
    graphical_model,
    logarithmic,
    mean_and_error,
    new_figure,
    panels,
    save,
    scatter_pair,
    sheet_figure,
    violins,
)
from crosscoding.plots.style import COLOURS


def test_a_scatter_says_how_far_above_the_line_it_is():
    axes = new_figure(3, 3).add_subplot()
    x = np.arange(4.0)
    scatter_pair(axes, x, x + np.array([1, 1, 3, 3]), ("GVI", "NF"))
    # Mean 2, standard deviation 2/√3, over the root of 4.
    assert axes.get_title() == "NF − GVI: 2 ± 0.58 nats"
    assert axes.get_xlim() == axes.get_ylim()


def test_violins_leave_out_nan_and_columns_without_numbers():
    axes = new_figure(3, 3).add_subplot()
    values = {"GVI": [1.0, 2.0, np.nan], "NF": [np.nan], "FCN": [5.0], "HMC": [1.0, 1.0]}
    violins(axes, values, title="title", y="nats")
    assert [label.get_text() for label in axes.get_xticklabels()] == list(values)
    assert axes.get_ylim()[1] > 5


def test_boxes_have_a_name_each():
    axes = new_figure(3, 3).add_subplot()
    boxes(axes, [[0.1, 0.2, 0.9], [0.5]], ["0.01", "0.1"], "black")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]


def test_mean_and_error():
    assert mean_and_error([1.0, 3.0]) == pytest.approx((2, 1))
    mean, error = mean_and_error([4.0])
    assert mean == 4
    assert np.isnan(error)


def test_every_method_has_a_colour_of_its_own():
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert colour_of("NF") != colour_of("GVI")
    assert colour_of("something else") == colour_of("exact")


def test_a_logarithmic_axis_has_plain_numbers():
    figure = new_figure(3, 3)
    axes = figure.add_subplot()
    axes.plot([60, 400], [1, 2])
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    figure.canvas.draw()
    assert {"100", "200"} <= {label.get_text() for label in axes.get_xticklabels()}


@pytest.mark.slow
def test_figures_are_saved_as_png_and_svg_of_the_same_bits(tmp_path):
    picture = np.zeros((4, 4, 3))
    made = {
        "model": graphical_model,
        "framework": framework,
        "panels": lambda: panels({"one": picture, "two": picture}, "title"),
        "sheet": lambda: sheet_figure([[picture] * 2], "title"),
    }
    for name, make in made.items():
        assert save(make(), tmp_path / name) == [f"{name}.png", f"{name}.svg"]
        first = (tmp_path / f"{name}.svg").read_bytes()
        save(make(), tmp_path / name)
        assert (tmp_path / f"{name}.svg").read_bytes() == first
        assert (tmp_path / f"{name}.png").stat().st_size > 500
