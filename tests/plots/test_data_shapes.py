"""How data of any shape are shown, and whose axes they are drawn on."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from crosscoding.plots import (
    Panels,
    draw_categories,
    images_of,
    is_picture,
    lines_of,
    mark_evidence,
    panels_on,
    plain,
    png_bytes,
    uncertainty,
    value_range,
)


@pytest.mark.parametrize(
    ("shape", "picture", "names"),
    [
        ((28, 28), True, [""]),
        ((1, 28, 28), True, [""]),
        ((3, 9, 8), True, [""]),
        ((9, 8, 3), True, [""]),
        ((28, 28, 1), True, [""]),
        ((2, 9, 8), True, ["channel 0", "channel 1"]),
        ((1, 30), False, None),
        ((3, 30), False, None),
        ((3, 1, 30), False, None),
        ((30,), False, None),
        ((2, 9, 8, 7), False, None),
    ],
)
def test_pictures_are_recognised_by_their_shape(shape, picture, names):
    assert is_picture(shape) == picture
    if names is not None:
        images = images_of(np.zeros((2, *shape)), shape)
        assert list(images) == names
        assert all(own.shape[0] == 2 and own.shape[1] in (1, 3) for own in images.values())


def test_colours_may_come_last():
    data = np.random.default_rng(0).random((2, 9, 8, 3))
    np.testing.assert_array_equal(images_of(data, (9, 8, 3))[""], data.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "lines"), [((30,), (1, 30)), ((3, 30), (3, 30)), ((2, 3, 4), (1, 24)), ((), (1, 1))]
)
def test_all_else_is_one_line_or_a_few(shape, lines):
    assert lines_of(shape) == lines


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.0, 1.02], (0, 1)),
        ([-0.99, 0.5], (-1, 1)),
        ([3.0, 250.0], (0, 255)),
        ([0.0, 20.0], (0, 20)),
        ([0.0, 0.01], (0, 0.01)),
        ([4.0, 4.0, np.nan], (3.5, 4.5)),
        ([np.nan], (0, 1)),
    ],
)
def test_black_and_white_are_the_usual_values_if_these_fit(values, limits):
    assert value_range(np.array(values)) == limits


def test_what_is_known_in_part_is_green_unless_it_is_known():
    picture, partly = np.full((1, 3, 3), 0.5), np.array([[True, True, False]])
    marked = mark_evidence(picture, np.array([[True, False, False]]), hide=True, partly=partly)
    assert marked[0, 1].argmax() == 1
    assert marked[0, 0].argmax() != 1
    assert (marked[0, 2] == 0.5).all()


def test_uncertainty_goes_from_dark_to_light():
    shades = uncertainty(np.array([[0.0, 0.5, 1.0]]), 1.0).sum(-1)[0]
    assert shades[0] < shades[1] < shades[2]
    assert uncertainty(np.zeros((1, 2)), 0.0).shape == (1, 2, 3)


def test_a_picture_with_nan_is_a_picture():
    assert png_bytes(np.full((2, 2, 3), np.nan))[:4] == b"\x89PNG"


def test_dollars_are_no_formula():
    figure = Figure()
    axes = figure.add_subplot(title=plain("$x_$ and 5 $"))
    axes.set_xlabel(plain("a $ b"))
    figure.canvas.draw()


def test_new_panels_have_one_figure_without_empty_axes():
    panels = panels_on(None, (1, 5), (2.0, 1.0), columns=4)
    assert panels.shape == (1, 5)
    assert len(panels.figure.axes) == 5
    assert tuple(panels.figure.get_size_inches()) == (8.0, 2.0)
    assert isinstance(panels[:, :2], Panels)
    assert panels._repr_png_()[:4] == b"\x89PNG"
    others = np.array([Figure().add_subplot(), Figure().add_subplot()], dtype=object)
    with pytest.raises(ValueError, match="axes of one figure, got axes of 2"):
        _ = others.view(Panels).figure


def test_many_categories_are_the_likeliest_and_the_rest():
    probabilities = np.arange(1.0, 31.0)
    probabilities /= probabilities.sum()
    axes = Figure().add_subplot()
    draw_categories(axes, [f"category number {n}" for n in range(30)], probabilities, [""] * 30)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "category number…"
    assert len(labels) == 12
    assert labels[-1] == "19 others"
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(1.0)
