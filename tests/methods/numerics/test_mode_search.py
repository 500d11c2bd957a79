"""Modes of bare densities are found wherever they are, or the unseen share says so."""

import densities
import pytest
import torch

import crosscoding as cc
from crosscoding.methods.numerics.mode_search import search


def peaks_of(density, scale=1.0):
    target = cc.DensityTarget(density.log_density, density.dim, prior_scale=scale).flatten()
    generator = torch.Generator().manual_seed(0)
    starts = scale * torch.randn(100, density.dim, generator=generator)
    with torch.no_grad():
        return search(target, starts, generator=generator)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_modes_have_the_right_positions_widths_and_masses(scale):
    means = torch.tensor([[0.0, 0, 10], [-6, 0, 0], [6, 3, 0]])
    density = densities.mixture(means.tolist(), [2.0, 1.0, 0.5], [0.5, 0.3, 0.2])
    peaks = peaks_of(density, scale)
    torch.testing.assert_close(peaks.z, means, rtol=0, atol=0.01)
    torch.testing.assert_close(peaks.scales, torch.tensor([2.0, 1.0, 0.5]), rtol=0.01, atol=0)
    masses = peaks.log_mass.softmax(0)
    torch.testing.assert_close(masses, masses.new_tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.01)
    assert peaks.unseen == 0


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_equal_modes_are_all_found(dim):
    density = densities.corners(min(2 * dim, 5), dim, 15.0, 1.0)
    assert len(peaks_of(density).z) == min(2 * dim, 5)


@pytest.mark.parametrize(
    "name", ["Cauchy in 3-d", "shifted t", "wide normal in 10-d", "product of Cauchy"]
)
def test_one_mode_is_found_once(name):
    peaks = peaks_of(densities.WIDE[name])
    assert len(peaks.z) == 1
    assert peaks.unseen == 0


@pytest.mark.parametrize("name", ["banana", "ring", "ring in 3-d"])
def test_points_on_a_ridge_do_not_count_as_modes_found_by_luck(name):
    assert peaks_of(densities.WIDE[name]).unseen == 0


def test_a_density_without_a_slope_has_no_modes_to_climb_to():
    box = densities.Density(lambda z: torch.where((z.abs() < 2).all(-1), 0.0, -1e4).to(z), 2, 0.0)
    assert len(peaks_of(box).z) >= 1
