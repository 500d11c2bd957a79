"""Draws of several proposals estimate the integral without bias, however these were fitted."""

import math

import pytest
import torch

import crosscoding as cc
from crosscoding.crosscoders import Fitted, Gaussian
from crosscoding.methods.numerics.adapted_mixture import fit_to_weighted
from crosscoding.methods.numerics.proposal_pool import ProposalPool, in_halves, swapped


def normal_target(dim, batch):
    """The standard normal density, whose integral is 1, once for each query."""
    log_normaliser = 0.5 * dim * math.log(2 * math.pi)
    target = cc.DensityTarget(lambda z: -0.5 * z.square().sum(-1) - log_normaliser, dim)
    return target.flatten().select(torch.zeros(batch, dtype=torch.long))


def gaussian(dim, batch, scale, shift=0.0):
    identity = torch.eye(dim).expand(batch, dim, dim)
    return Gaussian.from_precision(torch.full((batch, dim), shift), identity.double() / scale**2)


@pytest.mark.parametrize("scales", [(1.5,), (1.5, 0.9), (3.0, 1.2, 1.0)])
def test_the_mean_weight_is_the_integral(scales):
    pool, generator = ProposalPool(normal_target(2, 50)), torch.Generator().manual_seed(0)
    for number, scale in enumerate(scales):
        pool.draw(gaussian(2, 100, scale, 0.1), 100 * (number + 1), generator=generator)
    assert pool.log_weights.shape == (pool.num, 50)
    weights = pool.log_weights[:, 0].double().exp()  # queries share their random numbers
    error = (weights.std() / math.sqrt(pool.num)).item()
    assert abs(weights.mean().item() - 1) < 4 * error
    assert pool.all_draws.shape == (pool.num, 50, 2)


def test_weights_are_those_of_the_mixture():
    pool, generator = ProposalPool(normal_target(1, 3)), torch.Generator().manual_seed(0)
    wide, narrow = gaussian(1, 6, 2.0), gaussian(1, 6, 0.5)
    pool.draw(wide, 10, generator=generator)
    pool.draw(narrow, 30, generator=generator)
    z = pool.all_draws
    twice = torch.cat([z, z], 1)
    mixture = 0.25 * wide.log_prob(twice).exp() + 0.75 * narrow.log_prob(twice).exp()
    log_joint = pool.target.log_joint(z)
    expected = log_joint - mixture[:, :3].log()
    torch.testing.assert_close(pool.log_weights, expected, rtol=0, atol=1e-5)
    elsewhere = pool.log_weights_elsewhere(z, log_joint)
    torch.testing.assert_close(elsewhere, torch.cat([expected] * 2, 1), rtol=0, atol=1e-5)


def refitted(pool, *, exchange):
    """A Gaussian fitted to the draws of each half, for the same half or for the other."""
    both = pool.target.select(torch.arange(pool.target.num_queries).repeat(2))
    z, log_weights = torch.cat(pool.draws), pool.log_weights_in_halves
    fitted = fit_to_weighted(Gaussian(), z, log_weights, both, torch.Generator())
    num = pool.target.num_queries
    order = swapped(num, z) if exchange else torch.arange(2 * num)
    return fitted.select(order)


@pytest.mark.parametrize(("exchange", "is_biased"), [(True, False), (False, True)])
def test_a_fit_to_the_other_half_does_not_bias_the_integral(exchange, is_biased):
    """In 16 dimensions, from 40 draws a half, so that a fit knows its draws by heart."""
    integrals = []
    for seed in range(60):
        pool, generator = ProposalPool(normal_target(16, 1)), torch.Generator().manual_seed(seed)
        pool.draw(gaussian(16, 2, 1.1), 40, generator=generator)
        pool.draw(refitted(pool, exchange=exchange), 40, generator=generator)
        integrals.append(pool.log_weights.double().exp().mean())
    integrals = torch.stack(integrals)
    error = integrals.std() / math.sqrt(len(integrals))
    assert ((integrals.mean() - 1).abs() > 4 * error) == is_biased


def test_selected_queries_keep_their_draws_in_both_halves():
    pool, generator = ProposalPool(normal_target(2, 4)), torch.Generator().manual_seed(0)
    scales = torch.arange(1.0, 9.0)
    params = gaussian(2, 8, 1.0).params
    params["log_diagonal"] = scales.log()[:, None].expand(8, 2)
    pool.draw(Fitted(Gaussian(), params, 2), 5, generator=generator, with_gradients=True)
    index = torch.tensor([3, 1])
    chosen = pool.select(index)
    assert torch.equal(chosen.all_draws, pool.all_draws[:, index])
    assert torch.equal(chosen.gradients[0], pool.gradients[0][:, in_halves(index, 4)])
    torch.testing.assert_close(chosen.gradients[0], -chosen.draws[0])
    torch.testing.assert_close(chosen.log_weights, pool.log_weights[:, index])
