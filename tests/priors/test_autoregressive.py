"""Autoregressive priors: their density, and what their network may see."""

import pytest
import torch
from prior_cases import Masked, drawn
from torch import distributions, nn

import crosscoding as cc
from crosscoding.priors import Autoregressive


def test_log_prob_is_the_product_of_conditionals():
    network, z = Masked(), drawn(9, 2)
    mean, log_variance = network(z)
    wanted = distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(Autoregressive(2, network).log_prob(z), wanted)


def test_a_draw_is_made_element_by_element():
    network, noise = Masked(), drawn(9, 2)
    z = Autoregressive(2, network).from_noise(noise)
    mean, log_variance = network(z)
    torch.testing.assert_close(z, mean + (0.5 * log_variance).exp() * noise)


def test_a_network_that_sees_later_elements_is_refused():
    torch.manual_seed(0)
    prior = Autoregressive(2, nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"whose inverse is off|must not"):
        cc.VAE(nn.Linear(2, 5), 2, cc.likelihoods.Gaussian(0.1), prior=prior)


def test_refusals():
    with pytest.raises(TypeError, match="latent_dim"):
        Autoregressive(2.0, nn.Linear(2, 4))
    with pytest.raises(ValueError, match="latent_dim >= 1"):
        Autoregressive(0, nn.Linear(2, 4))
    with pytest.raises(TypeError, match=r"network to be a torch\.nn\.Module"):
        Autoregressive(2, torch.tanh)
    with pytest.raises(ValueError, match="from the network"):
        Autoregressive(2, nn.Linear(2, 3)).from_noise(torch.zeros(1, 2))
