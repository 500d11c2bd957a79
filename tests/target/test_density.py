"""The target of a bare density: log p(z, x) in every form that methods use."""

import pytest
import torch
from problems import mixture_target, points, seeded
from torch.distributions import Normal

import crosscoding as cc


def test_a_bare_density_is_its_own_log_joint():
    target, z = mixture_target(torch.double), 2 * points(7, 5, 2)
    torch.testing.assert_close(target.log_joint(z), target.log_prob(z))


def test_a_bare_density_is_split_into_a_wide_prior_and_the_rest():
    target, z = mixture_target(torch.double), 2 * points(7, 5, 2)
    log_prior = Normal(0.0, 3.0).log_prob(z).sum(-1)
    torch.testing.assert_close(target.log_prior(z), log_prior)
    torch.testing.assert_close(target.log_likelihood(z), target.log_prob(z) - log_prior)


def test_a_bare_density_is_the_same_for_every_query():
    target, z = mixture_target(torch.double), 2 * points(7, 2)
    flat = target.flatten()
    assert (target.batch_shape, flat.batch_shape) == ((), (1,))
    assert target.pairwise_log_likelihood(z).shape == (7,)
    expected = target.log_likelihood(z)
    torch.testing.assert_close(flat.pairwise_log_likelihood(z), expected[:, None])
    at = flat.log_likelihood_at(z, torch.zeros(7, dtype=torch.long))
    torch.testing.assert_close(at, expected)
    selected = flat.select(torch.tensor([0, 0, 0]))
    assert (selected.batch_shape, selected.prior_scale) == ((3,), 3.0)
    three = z[:, None].expand(7, 3, 2)
    torch.testing.assert_close(selected.log_joint(three), target.log_joint(three))


def test_flatten_keeps_the_number_of_queries_of_a_bare_density():
    target = mixture_target().flatten().select(torch.tensor([0, 0, 0]))
    assert target.flatten().batch_shape == (3,)


def test_a_bare_density_has_the_dtype_it_is_given():
    assert mixture_target(torch.double).draw_prior(2, generator=seeded(0)).dtype == torch.double
    assert mixture_target().draw_prior(2, generator=seeded(0)).dtype == torch.float32


@pytest.mark.parametrize(("latent_dim", "prior_scale"), [(0, 1.0), (2, 0.0), (2, -1.0)])
def test_a_bare_density_of_no_dimension_or_scale_is_refused(latent_dim, prior_scale):
    with pytest.raises(ValueError, match="latent_dim >= 1 and prior_scale > 0"):
        cc.DensityTarget(lambda z: z.sum(-1), latent_dim, prior_scale=prior_scale)


def test_a_bare_density_that_is_nan_raises():
    target = cc.DensityTarget(lambda z: z.sum(-1).log(), 2)
    with pytest.raises(cc.NonFiniteError, match="finite log-density, got NaN from log_density"):
        target.log_joint(-torch.ones(3, 2))


def test_a_bare_density_that_was_not_summed_is_refused():
    """−z² in place of −Σ z² would broadcast its way through where sample and latent sizes agree."""
    target = cc.DensityTarget(lambda z: -z.square(), 2)
    with pytest.raises(ValueError, match=r"log_density.*shape \(2,\), got \(2, 2\)"):
        target.log_joint(torch.zeros(2, 2))


def test_the_bank_of_a_bare_density_is_spread_as_its_prior():
    target = mixture_target(torch.double)
    z, log_likelihood = target.select(torch.zeros(3, dtype=torch.long)).log_likelihood_of_bank()
    assert log_likelihood.shape == (len(z), 3)
    # Evenly spread: nearer than 16,384 independent draws come in one standard error.
    assert (z.std(0) - 3.0).abs().max() < 3.0 / (2 * len(z)) ** 0.5
    torch.testing.assert_close(log_likelihood[:, 1], target.log_joint(z) - target.log_prior(z))
