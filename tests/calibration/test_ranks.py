"""Ranks of a truth among draws, and tests of their uniformity."""

import math

import torch
from problems import seeded

from crosscoding.calibration.ranks import band, ecdf_difference, randomised_ranks, smooth_test


def test_ranks_of_ties_are_uniform():
    classes = torch.randint(3, (1001, 500, 1), generator=seeded(0)).double()
    ranks = randomised_ranks(classes[0], classes[1:], generator=seeded(1))[:, 0]
    assert smooth_test(ranks, 0.0) > 0.01


def test_the_smooth_test_has_its_level():
    ranks = torch.rand(8000, 200, generator=seeded(0))
    values = torch.tensor([smooth_test(row, 0.0) for row in ranks])
    for level in (0.2, 0.05, 0.005):
        error = math.sqrt(level * (1 - level) / 8000)
        assert abs((values < level).double().mean() - level) < 3.5 * error


def test_the_smooth_test_has_its_level_for_ranks_among_shared_draws():
    def rejected(noise: float) -> int:
        generator, found = seeded(3), 0
        for _ in range(400):
            truth = torch.rand(300, 1, generator=generator)
            draws = torch.rand(200, 1, 1, generator=generator).expand(-1, 300, 1)
            ranks = randomised_ranks(truth, draws, generator=generator)[:, 0]
            found += smooth_test(ranks, noise) < 0.05
        return found

    assert rejected(1 / 200) < 20 + 3.5 * math.sqrt(400 * 0.05 * 0.95)
    assert rejected(0.0) > 100  # what the allowance is for


def test_the_band_holds_whole_curves_at_its_level():
    ranks, width = torch.rand(1000, 60, generator=seeded(5)), band(60, 0.0)
    inside = sum(bool((ecdf_difference(row)[1].abs() <= width).all()) for row in ranks)
    assert abs(inside - 950) < 3.5 * math.sqrt(1000 * 0.05 * 0.95) + 15  # and that of the band
