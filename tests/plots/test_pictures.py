import numpy as np
import pytest
import torch

from crosscoding.experiments import gaussian_mixture
from crosscoding.plots import colour, density_panels, mark_evidence, sheet, write_labelled
from crosscoding.plots.densities import _levels_of_mass


def test_observed_white_is_orange_and_observed_black_is_blue():
    picture = colour(np.array([[1.0, 0.0], [1.0, 0.0]]))
    mask = np.array([[True, True], [False, False]])
    marked = mark_evidence(picture, mask)
    red, green, blue = marked[0, 0]
    assert red > green > blue
    red, green, blue = marked[0, 1]
    assert blue > green > red
    np.testing.assert_array_equal(marked[1], picture[1])
    hidden = mark_evidence(picture, mask, hide=True)
    np.testing.assert_array_equal(hidden[1, 0], hidden[1, 1])


def test_observed_pixels_can_keep_their_own_colour():
    picture = np.random.default_rng(0).random((2, 2, 3))
    mask = np.array([[True, True], [False, False]])
    np.testing.assert_array_equal(mark_evidence(picture, mask, tint=False), picture)
    hidden = mark_evidence(picture, mask, hide=True, tint=False)
    np.testing.assert_array_equal(hidden[0], picture[0])
    np.testing.assert_array_equal(hidden[1], 0.5)


def test_colour_takes_grey_and_three_channels_and_refuses_two():
    assert colour(np.zeros((1, 4, 5))).shape == (4, 5, 3)
    faces = colour(np.stack([np.full((4, 5), v) for v in (-1.0, 0.0, 1.0)]), low=-1)
    np.testing.assert_allclose(faces[0, 0], [0, 0.5, 1])
    with pytest.raises(ValueError, match="grey or a colour image"):
        colour(np.zeros((2, 4, 5)))


def test_a_sheet_puts_every_picture_in_its_place():
    shades = [[np.full((2, 3, 3), 0.1 * (3 * i + j)) for j in range(3)] for i in range(2)]
    canvas = sheet(shades, gap=1)
    assert canvas.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    np.testing.assert_allclose(canvas[4:6, 9:12], 0.5)


def test_levels_enclose_the_stated_mass():
    z = torch.linspace(-5, 5, 400)
    density = (-0.5 * (z[:, None].square() + z.square())).exp()
    lowest, *_ = _levels_of_mass(density)
    inside = density[density > lowest].sum() / density.sum()
    assert inside == pytest.approx(0.999, abs=1e-3)


def test_pictures_are_written(tmp_path):
    draws = {"one": gaussian_mixture.sample(50, seed=0), "two": gaussian_mixture.sample(50, seed=1)}
    density_panels(
        gaussian_mixture.log_prob, draws, tmp_path / "a.png", title="t", reference=draws["one"]
    )
    picture = colour(np.eye(5))
    write_labelled({"row": [picture, picture]}, ["first"], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000
