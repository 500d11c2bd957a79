"""Components are densities, and their draws have these densities."""

import pytest
import torch
from torch import Generator

from crosscoding.methods.numerics.components import Components


def components(dim, num, *, heavy=False, columns=1):
    """Components of several means and widths, with correlations."""
    generator = Generator().manual_seed(0)
    mean = torch.randn(columns, num, dim, generator=generator, dtype=torch.double)
    root = 0.3 * torch.randn(columns, num, dim, dim, generator=generator, dtype=torch.double).tril()
    root.diagonal(dim1=-2, dim2=-1).abs_().add_(0.4)
    return Components.of(mean, root, torch.zeros(1, dtype=torch.double), heavy=heavy)


@pytest.mark.parametrize("heavy", [False, True])
def test_densities_integrate_to_one(heavy):
    some = components(1, 3, heavy=heavy)
    angles = torch.linspace(-1.5707, 1.5707, 200_001, dtype=torch.double)
    z = angles.tan()  # reaches into Cauchy tails
    density = some.log_density(z[:, None, None])[0].exp() * (1 + z.square())
    integral = torch.trapezoid(density, angles)
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=0, atol=1e-5)


@pytest.mark.parametrize("heavy", [False, True])
def test_draws_have_the_density(heavy):
    """E[q(z) / k(z)] is 1 for a density q that is nowhere much larger than k."""
    some = components(3, 2, heavy=heavy)
    q = Components.of(some.mean, 0.9 * some.root, some.inverse, heavy=False)
    for k in range(2):
        chosen = torch.full((20_000, 1), k)
        z = some.draw(chosen, generator=Generator().manual_seed(1))
        ratio = (q.log_density(z) - some.log_density(z))[0, k].exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(z) ** 0.5
        assert ratio.std() < 1.5


def test_the_bulk_is_the_gaussian_that_was_fitted():
    some = components(4, 1)
    z = some.mean[:, 0][None]
    normal = torch.distributions.MultivariateNormal(some.mean[0, 0], scale_tril=some.root[0, 0])
    expected = normal.log_prob(z[0, 0]) + torch.tensor(0.88 + 0.12 / 2.5**2).log()
    torch.testing.assert_close(some.log_density(z)[0, 0, 0], expected)


def test_columns_and_sets_keep_their_components():
    some, other = components(2, 2, columns=3), components(2, 1, columns=3)
    z = torch.randn(5, 3, 2, generator=Generator().manual_seed(2), dtype=torch.double)
    together = Components.joined([some, other])
    assert together.num == 3
    expected = torch.cat([some.log_density(z), other.log_density(z)], 1)
    torch.testing.assert_close(together.log_density(z), expected)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(together.select(index).log_density(z[:, index]), expected[index])


def test_a_narrow_component_far_from_the_others_is_exact_enough():
    """In float32, where log densities are evaluated."""
    mean = torch.tensor([[[5.0, -3.0], [-4.0, 2.0]]], dtype=torch.double)
    root = torch.stack([torch.eye(2), 1e-3 * torch.eye(2)]).double()[None]
    double = Components.of(mean, root, torch.zeros(1, dtype=torch.double))
    single = Components.of(mean, root, torch.zeros(1))
    z = mean[:, 1] + torch.tensor([[[1e-3, -2e-3]]], dtype=torch.double)
    difference = double.log_density(z) - single.log_density(z.float())
    assert difference[:, 1].abs().max() < 0.01


def test_each_draw_is_that_of_its_own_component_whatever_others_are_chosen():
    some = components(3, 4, columns=5)
    chosen = torch.randint(4, (37, 5), generator=Generator().manual_seed(2))
    z = some.draw(chosen, generator=Generator().manual_seed(1))
    for k in range(4):
        alone = some.draw(torch.full_like(chosen, k), generator=Generator().manual_seed(1))
        torch.testing.assert_close(z[chosen == k], alone[chosen == k])
