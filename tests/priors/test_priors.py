"""The contract of every continuous prior: a one-to-one map of noise, and its density."""

import math

import pytest
import torch
from prior_cases import PRIORS, drawn, prior_of
from problems import seeded
from torch.autograd import forward_ad

from crosscoding.priors.normal import standard_log_prob

each = pytest.mark.parametrize("name", PRIORS)


@each
def test_the_map_is_one_to_one(name):
    prior, noise = prior_of(name), 2 * drawn(5, 40, 2)
    z = prior.from_noise(noise)
    assert z.shape == (5, 40, 2)
    torch.testing.assert_close(prior.to_noise(z), noise, rtol=1e-9, atol=1e-9)


@each
def test_log_prob_is_the_density_of_the_map(name):
    prior, noise = prior_of(name), 1.5 * drawn(8, 2)
    jacobians = [torch.autograd.functional.jacobian(prior.from_noise, point) for point in noise]
    ladj = torch.linalg.slogdet(torch.stack(jacobians)).logabsdet
    wanted = standard_log_prob(noise) - ladj
    torch.testing.assert_close(prior.log_prob(prior.from_noise(noise)), wanted)


@each
def test_forward_and_reverse_derivatives_agree(name):
    prior, noise, along = prior_of(name), drawn(2), drawn(2, seed=1)
    jacobian = torch.autograd.functional.jacobian(prior.from_noise, noise)
    with forward_ad.dual_level():
        z = prior.from_noise(forward_ad.make_dual(noise, along))
        tangent = forward_ad.unpack_dual(z).tangent
    torch.testing.assert_close(tangent, jacobian @ along)


@each
def test_the_density_integrates_to_one(name):
    prior = prior_of(name)
    middle = prior.from_noise(drawn(4000, 2))
    low, high = middle.amin(0) - 2, middle.amax(0) + 2
    ticks = [torch.linspace(*ends, 401, dtype=torch.double) for ends in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1)
    density = prior.log_prob(grid).exp()
    cell = math.prod((tick[1] - tick[0]).item() for tick in ticks)
    assert abs(density.sum().item() * cell - 1) < 0.01  # what lies beyond 4000 draws, and the cells


@each
def test_draws_are_those_of_the_map_and_repeat_with_the_seed(name):
    prior, like = prior_of(name), torch.empty(0, dtype=torch.double)
    z = prior.sample(50, generator=seeded(3), like=like)
    assert z.shape == (50, 2)
    assert z.dtype == torch.double
    torch.testing.assert_close(z, prior.sample(50, generator=seeded(3), like=like), rtol=0, atol=0)
    torch.testing.assert_close(prior.to_noise(z), drawn(50, 2, seed=3), rtol=1e-9, atol=1e-9)


@each
def test_a_point_does_not_depend_on_the_others(name):
    prior, noise = prior_of(name), drawn(20, 2)
    alone = torch.cat([prior.from_noise(row[None]) for row in noise])
    torch.testing.assert_close(prior.from_noise(noise), alone, rtol=1e-12, atol=1e-12)
