"""Changing the coordinates of z: the same model, with q(z) matching the prior's moments."""

import pytest
import torch
from torch import nn

from crosscoding.likelihoods import Gaussian
from crosscoding.zoo.training.latent_moments import match_prior
from crosscoding.zoo.training.publishing import evaluate

LATENT = 3


def problem(*, bias):
    """An encoder with correlated means far from 0, and variances that differ little."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(400, 6, generator=generator)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 10, bias=bias), nn.Tanh(), nn.Linear(10, 6))
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        encoder[-1].weight[LATENT:] *= 0.05
        encoder[-1].bias[LATENT:] -= 2
    return encoder, decoder, data


@torch.no_grad()
def moments(encoder, data):
    mean, log_variance = encoder(data).chunk(2, -1)
    within = log_variance.exp().mean(0).diag()
    return mean.mean(0), torch.cov(mean.mT) + within


@pytest.mark.parametrize("bias", [True, False])
def test_q_of_all_data_gets_the_moments_of_the_prior(bias):
    encoder, decoder, data = problem(bias=bias)
    mean, covariance = moments(encoder, data)
    assert mean.abs().max() > 0.1
    assert (covariance - torch.eye(LATENT)).abs().max() > 1
    match_prior(encoder, decoder, data)
    mean, covariance = moments(encoder, data)
    torch.testing.assert_close(mean, torch.zeros(LATENT), rtol=0, atol=1e-4)
    # The variances are transformed to first order in their differences, which are 5 %.
    torch.testing.assert_close(covariance, torch.eye(LATENT), rtol=0, atol=5e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_of_a_datum_still_decodes_to_the_same_output(bias):
    encoder, decoder, data = problem(bias=bias)
    before = decoder(encoder(data)[:, :LATENT])
    match_prior(encoder, decoder, data)
    torch.testing.assert_close(decoder(encoder(data)[:, :LATENT]), before, rtol=0, atol=1e-3)


def test_the_means_of_q_are_mapped_by_one_affine_map_and_its_covariance_with_them():
    encoder, decoder, data = problem(bias=True)
    with torch.no_grad():
        encoder[-1].weight[LATENT:] = 0  # one variance for all data, which makes the map exact
        old, old_variance = encoder(data).chunk(2, -1)
        first = decoder[0].weight.clone()
        match_prior(encoder, decoder, data)
        new, new_variance = encoder(data).chunk(2, -1)
    to_old = torch.linalg.lstsq(first, decoder[0].weight).solution
    torch.testing.assert_close(new @ to_old.mT + old.mean(0), old, rtol=0, atol=1e-4)
    covariance = to_old @ new_variance[0].exp().diag() @ to_old.mT
    torch.testing.assert_close(covariance, old_variance[0].exp().diag(), rtol=0, atol=1e-4)


def test_the_elbo_rises_by_what_the_moments_cost():
    """It rises by KL[N(m, C) ‖ N(0, I)] of the old moments, if all data have one variance."""
    encoder, decoder, data = problem(bias=True)
    with torch.no_grad():
        encoder[-1].weight[LATENT:] = 0
    mean, covariance = moments(encoder, data)
    q = torch.distributions.MultivariateNormal(mean, covariance)
    prior = torch.distributions.MultivariateNormal(torch.zeros(LATENT), torch.eye(LATENT))
    cost = torch.distributions.kl_divergence(q, prior).item()
    likelihood = Gaussian(10.0)  # so wide that draws of z hardly matter
    before, _ = evaluate(encoder, decoder, likelihood, data)
    match_prior(encoder, decoder, data)
    after, _ = evaluate(encoder, decoder, likelihood, data)
    assert after - before == pytest.approx(cost, rel=0.01)


def test_networks_without_linear_outer_layers_are_refused():
    encoder, decoder, data = problem(bias=True)
    for networks in ((encoder, nn.Sequential(nn.Tanh())), (nn.Sequential(nn.Tanh()), decoder)):
        with pytest.raises(ValueError, match=r"begins with a linear layer, got .*Tanh"):
            match_prior(*networks, data)


def test_too_few_data_for_the_moments_are_refused():
    encoder, decoder, data = problem(bias=True)
    with pytest.raises(ValueError, match="more data than latent dimensions, 3, got 3"):
        match_prior(encoder, decoder, data[:3])
