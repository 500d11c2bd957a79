"""Hierarchical priors: order of levels, and what the decoder gets."""

import pytest
import torch
from prior_cases import drawn, filled
from torch import distributions, nn

from crosscoding.priors import Hierarchical


def linear(num_in: int, size: int) -> nn.Linear:
    """A level whose mean is linear in those above, and whose scale is fixed."""
    layer = filled(nn.Linear(num_in, 2 * size))
    with torch.no_grad():
        layer.weight[size:] = 0
    return layer


def moments(prior: Hierarchical) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact mean and covariance if all networks are linear."""
    zero = torch.zeros(prior.latent_dim, dtype=torch.double)
    root = torch.autograd.functional.jacobian(prior.from_noise, zero)
    return prior.from_noise(zero), root @ root.mT


@pytest.mark.parametrize("next_only", [False, True])
def test_linear_levels_are_one_gaussian(next_only):
    sizes = (2, 3, 1)
    networks = [linear(2, 3), linear(3 if next_only else 5, 1)]
    prior = Hierarchical(sizes, networks, next_only=next_only)
    z = drawn(6, 6)
    wanted = distributions.MultivariateNormal(*moments(prior)).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), wanted)


def test_log_prob_is_the_sum_over_levels():
    network = nn.Sequential(filled(nn.Linear(2, 4)), nn.Tanh(), filled(nn.Linear(4, 6)))
    prior, z = Hierarchical((2, 3), [network]), drawn(9, 5)
    top, bottom = prior.levels(z)
    mean, log_variance = network(top).chunk(2, -1)
    wanted = distributions.Normal(0, 1).log_prob(top).sum(-1)
    wanted = wanted + distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(bottom).sum(
        -1
    )
    torch.testing.assert_close(prior.log_prob(z), wanted)


def test_the_decoder_gets_all_levels_or_the_last():
    z = drawn(3, 5)
    assert Hierarchical((2, 3), [linear(2, 3)]).decoder_input(z).shape == (3, 5)
    last = Hierarchical((2, 3), [linear(2, 3)], last_only=True).decoder_input(z)
    torch.testing.assert_close(last, z[:, 2:])


@pytest.mark.parametrize(
    ("sizes", "networks", "words"),
    [
        ((2,), [], "at least two levels"),
        ((2, 3), [], "2 sizes and 0 networks"),
        ((2, 0), [nn.Linear(2, 2)], "got 0"),
        ((2, 2.5), [nn.Linear(2, 2)], "got 2.5"),
        ((True, 1), [nn.Linear(1, 2)], "got True"),
    ],
)
def test_refused_sizes(sizes, networks, words):
    with pytest.raises(ValueError, match=words):
        Hierarchical(sizes, networks)


def test_a_network_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"network 0 to be a torch\.nn\.Module"):
        Hierarchical((2, 3), [torch.tanh])


def test_levels_in_the_wrong_order_are_refused():
    upside_down = Hierarchical((8, 2), [nn.Linear(2, 16)])
    with pytest.raises(ValueError, match="network 0, of the level of size 2 to take the 8 numbers"):
        upside_down.from_noise(torch.zeros(1, 10))


def test_a_network_that_gives_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"mean and log-variance of 3 numbers each .* got \(1, 4\)"
    ):
        Hierarchical((2, 3), [nn.Linear(2, 4)]).from_noise(torch.zeros(1, 5))
