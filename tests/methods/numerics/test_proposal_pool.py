"""Draws of several proposals estimate the integral without bias, however these were fitted."""

import math

import pytest
import torch
from torch import Generator

import crosscoding as cc
from crosscoding.methods.numerics.components import Components
from crosscoding.methods.numerics.proposal_pool import ProposalPool, in_halves, merged, swapped


def normal_target(dim, batch):
    """The standard normal density, whose integral is 1, once for each query."""
    log_normaliser = 0.5 * dim * math.log(2 * math.pi)
    target = cc.DensityTarget(lambda z: -0.5 * z.square().sum(-1) - log_normaliser, dim)
    return target.flatten().select(torch.zeros(batch, dtype=torch.long))


def gaussians(dim, columns, scales, shift=0.0):
    """Components with these standard deviations in each column."""
    roots = torch.stack([scale * torch.eye(dim, dtype=torch.double) for scale in scales])
    mean = torch.full((columns, len(scales), dim), shift, dtype=torch.double)
    return Components.of(mean, roots.expand(columns, -1, -1, -1), torch.zeros(1))


def even(pool):
    """Equal shares of all components."""
    count = pool.components.num
    return torch.full((len(pool.expected), count), 1 / count)


@pytest.mark.parametrize("rounds", [[(1.5,)], [(1.5,), (0.9,)], [(3.0, 1.2), (1.0,), (0.7, 2.0)]])
def test_the_mean_weight_is_the_integral(rounds):
    generator = Generator().manual_seed(0)
    pool = ProposalPool.of(normal_target(2, 50), gaussians(2, 100, rounds[0], 0.1))
    pool = pool.drawn(100, even(pool), generator=generator)
    for number, scales in enumerate(rounds[1:]):
        pool = pool.grown(gaussians(2, 100, scales, 0.1))
        pool = pool.drawn(100 * (number + 2), even(pool), generator=generator)
    log_weights = merged(pool.log_weights)
    assert log_weights.shape == (pool.num, 50)
    weights = log_weights[:, 0].double().exp()  # queries share their random numbers
    error = (weights.std() / math.sqrt(pool.num)).item()
    assert abs(weights.mean().item() - 1) < 4 * error


def test_weights_are_those_of_the_mixture_of_all_proposals():
    generator = Generator().manual_seed(0)
    wide, narrow = gaussians(1, 6, (2.0,)), gaussians(1, 6, (0.5,))
    pool = ProposalPool.of(normal_target(1, 3), wide)
    pool = pool.drawn(10, even(pool), generator=generator).grown(narrow)
    pool = pool.drawn(30, torch.tensor([[0.2, 0.8]]).expand(6, 2), generator=generator)
    z, target = pool.z, pool.target
    densities = [part.log_density(z)[:, 0].mT.exp() for part in (wide, narrow)]
    reference = target.log_prior(merged(z)).exp()
    reference = torch.cat(reference.tensor_split(2), 1)
    first = 0.06 * reference + 0.94 * densities[0]
    second = 0.06 * reference + 0.94 * (0.2 * densities[0] + 0.8 * densities[1])
    expected = pool.log_joint - (0.25 * first + 0.75 * second).log()
    torch.testing.assert_close(pool.log_weights, expected, rtol=0, atol=1e-5)
    elsewhere = pool.log_weights_at(z, pool.log_joint)
    torch.testing.assert_close(elsewhere, expected, rtol=0, atol=1e-5)


def refitted(pool, *, exchange):
    """A Gaussian fitted to the draws of each half, for the same half or for the other."""
    weights = pool.log_weights.double().softmax(0)[..., None]
    mean = (weights * pool.z).sum(0)
    centred = (weights.sqrt() * (pool.z - mean)).transpose(0, 1)
    root = torch.linalg.cholesky(centred.mT @ centred + 1e-3 * torch.eye(mean.shape[-1]))
    num = pool.target.num_queries
    order = swapped(num, mean) if exchange else torch.arange(2 * num)
    return Components.of(mean[order][:, None], root[order][:, None], torch.zeros(1))


@pytest.mark.parametrize(("exchange", "is_biased"), [(True, False), (False, True)])
def test_a_fit_to_the_other_half_does_not_bias_the_integral(exchange, is_biased):
    """In 16 dimensions, from 40 draws a half, so that a fit knows its draws by heart."""
    integrals = []
    for seed in range(60):
        generator = Generator().manual_seed(seed)
        pool = ProposalPool.of(normal_target(16, 1), gaussians(16, 2, (1.1,)))
        pool = pool.drawn(40, even(pool), generator=generator)
        pool = pool.grown(refitted(pool, exchange=exchange))
        only_new = torch.tensor([[0.0, 1.0]]).expand(2, 2)
        pool = pool.drawn(40, only_new, generator=generator)
        integrals.append(pool.log_weights.double().exp().mean())
    integrals = torch.stack(integrals)
    error = integrals.std() / math.sqrt(len(integrals))
    assert ((integrals.mean() - 1).abs() > 4 * error) == is_biased


def test_shares_are_fitted_to_where_the_mass_is():
    pool = ProposalPool.of(normal_target(2, 2), gaussians(2, 4, (1.0, 0.05, 20.0)))
    z = torch.randn(2000, 4, 2, generator=Generator().manual_seed(0))
    shares = pool.fitted_shares(z, torch.zeros(2000, 4))
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert (shares[:, 0] > 0.85).all()
    assert (shares[:, 1:] > 0.03).all()  # a part stays even


def test_selected_queries_keep_their_draws_in_both_halves():
    generator = Generator().manual_seed(0)
    mean = torch.arange(8.0, dtype=torch.double)[:, None, None].expand(8, 1, 2)
    root = torch.eye(2, dtype=torch.double).expand(8, 1, 2, 2)
    pool = ProposalPool.of(normal_target(2, 4), Components.of(mean, root, torch.zeros(1)))
    pool = pool.drawn(50, even(pool), generator=generator)
    index = torch.tensor([3, 1])
    chosen = pool.select(index)
    assert torch.equal(chosen.z, pool.z[:, in_halves(index, 4)])
    assert torch.equal(merged(chosen.z), merged(pool.z)[:, index])
    torch.testing.assert_close(merged(chosen.log_weights), merged(pool.log_weights)[:, index])
