"""Groups of draws: none in one mode of any shape, all in separated mixtures, with their shares."""

import pytest
import torch
from problems import seeded

from crosscoding.serve.modes import groups, with_different_data


@pytest.mark.parametrize("dim", [1, 2, 20, 100])
def test_one_mode_is_never_divided(dim):
    for seed in range(12):
        generator = seeded(seed)
        z = torch.randn(400, dim, generator=generator)
        if seed % 3 == 1:  # narrow in some directions
            z = z @ torch.randn(dim, dim, generator=generator)
        if seed % 3 == 2:  # heavy tails
            z = z * torch.randn(400, 1, generator=generator).abs().add(0.2)
        assert groups(z, generator=generator).max() == 0, seed


@pytest.mark.parametrize("dim", [2, 20])
def test_separated_modes_are_found_with_their_shares(dim):
    generator = seeded(0)
    z = 0.4 * torch.randn(600, dim, generator=generator)
    truth = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 600, True, generator=generator)
    z[:, 0] += torch.tensor([0.0, 4.0, 0.0])[truth]
    z[:, 1] += torch.tensor([0.0, 0.0, 4.0])[truth]
    found = groups(z, generator=generator)
    assert (found == truth).double().mean() > 0.99  # a draw may lie far out, beyond the gap


def test_a_tail_of_a_few_draws_is_no_mode():
    z = torch.randn(400, 2, generator=seeded(0))
    z[:8] += 20
    assert groups(z, generator=seeded(0)).max() == 0


def test_modes_of_z_with_the_same_data_are_one():
    label = torch.tensor([0, 0, 1, 1, 2]).repeat(40)
    means = torch.randn(200, 3, generator=seeded(0)) * 0.01
    means[label == 2, 1] += 1
    assert with_different_data(label, means).unique(return_counts=True)[1].tolist() == [160, 40]
