"""Gaussian priors: their density, and every refusal."""

import pytest
import torch
from prior_cases import drawn
from torch import distributions, nn

from crosscoding.priors import Gaussian


def test_log_prob_is_that_of_torch():
    mean, z = drawn(3), drawn(7, 3, seed=1)
    root = torch.tensor([[0.5, 0, 0], [1, 2, 0], [-1, 0.3, 0.1]], dtype=torch.double)
    wanted = distributions.MultivariateNormal(mean, scale_tril=root).log_prob(z)
    torch.testing.assert_close(Gaussian(mean, root).log_prob(z), wanted)
    scale = torch.tensor([0.5, 2, 0.1], dtype=torch.double)
    wanted = distributions.Normal(mean, scale).log_prob(z).sum(-1)
    torch.testing.assert_close(Gaussian(mean, scale).log_prob(z), wanted)


def test_numbers_stand_for_all_elements():
    z = drawn(4, 3)
    prior = Gaussian(1.0, 2.0, latent_dim=3).double()
    wanted = distributions.Normal(1.0, 2.0).log_prob(z).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), wanted)


def test_moments_come_from_covariates():
    class Means(nn.Module):
        def forward(self, label):
            return torch.stack([label, -label], -1).double()

    prior = Gaussian(
        Means(), lambda label: 1.0 + label[:, None].double().expand(-1, 2), latent_dim=2
    )
    assert prior.takes_given
    labels, noise = torch.tensor([0, 1, 3]), drawn(4, 3, 2)
    z = prior.from_noise(noise, labels)
    wanted = torch.stack([labels, -labels], -1) + (1 + labels[:, None]) * noise
    torch.testing.assert_close(z, wanted)
    torch.testing.assert_close(prior.to_noise(z, labels), noise)
    wanted = distributions.Normal(wanted - (1 + labels[:, None]) * noise, 1.0 + labels[:, None])
    torch.testing.assert_close(prior.log_prob(z, labels), wanted.log_prob(z).sum(-1))


def test_parameters_stay_trainable():
    mean = nn.Parameter(torch.zeros(2))
    prior = Gaussian(mean, torch.ones(2))
    prior.log_prob(torch.ones(2)).backward()
    torch.testing.assert_close(mean.grad, torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2), torch.tensor([1.0, 0.0])), ValueError, "scale of the prior, > 0, got 0"),
        ((torch.zeros(2), torch.tensor([1.0, -2.0])), ValueError, "> 0, got -2"),
        ((torch.zeros(2), torch.tensor([1.0, torch.inf])), ValueError, "NaN or infinity"),
        ((torch.zeros(2), torch.tensor([1.0, torch.nan])), ValueError, "NaN or infinity"),
        ((torch.tensor([0.0, torch.nan]), 1.0), ValueError, "finite mean"),
        ((torch.zeros(2), torch.ones(3)), ValueError, r"scale of shape \(2,\) or \(2, 2\)"),
        ((torch.zeros(2, 2), torch.ones(2)), ValueError, r"mean of shape \(2,\)"),
        ((torch.zeros(2), torch.ones(2, 2)), ValueError, "lower triangular"),
        ((torch.zeros(2), torch.ones(2).long()), ValueError, "floating-point"),
        ((0.0, 1.0), ValueError, "latent_dim"),
        (("zero", torch.ones(2)), TypeError, "mean to be a tensor"),
        ((torch.zeros(2), None), TypeError, "scale to be a tensor"),
        ((torch.zeros(2), True), TypeError, "scale to be a tensor"),
    ],
)
def test_refusals(arguments, error, words):
    with pytest.raises(error, match=words):
        Gaussian(*arguments)


def test_a_module_of_another_size_is_refused():
    prior = Gaussian(nn.Linear(1, 3), torch.ones(2))
    with pytest.raises(ValueError, match="mean of 2 numbers"):
        prior.from_noise(torch.zeros(4, 2), torch.zeros(4, 1))
