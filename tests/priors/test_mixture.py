"""Mixture priors: their density, the Rosenblatt map far out, and every refusal."""

import math

import pytest
import torch
from prior_cases import drawn, mixture
from problems import seeded
from torch import distributions, nn

from crosscoding.priors import Mixture
from crosscoding.priors.quantiles import Components, normal_score, quantile


def test_log_prob_is_that_of_torch():
    prior, z = mixture(), drawn(9, 2)
    wanted = distributions.MixtureSameFamily(
        distributions.Categorical(torch.tensor([0.2, 0.3, 0.5]).double()),
        distributions.Independent(distributions.Normal(prior.means, prior.scales), 1),
    )
    torch.testing.assert_close(prior.log_prob(z), wanted.log_prob(z), rtol=1e-6, atol=1e-6)


def test_components_have_their_shares():
    prior = Mixture(torch.tensor([1.0, 3.0]), torch.tensor([[-9.0], [9.0]]), 1.0)
    z = prior.sample(20_000, generator=seeded(), like=torch.empty(0))
    share = (z > 0).float().mean().item()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 20_000)


@pytest.mark.parametrize("distance", [1.0, 5.0, 12.0, 20.0, 50.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_the_map_is_one_to_one_far_out(distance, dtype):
    prior, noise = mixture().to(dtype), drawn(500, 2)
    noise = (distance * noise / noise.norm(dim=-1, keepdim=True)).to(dtype)
    tolerance = 100 * distance * torch.finfo(dtype).eps
    back = prior.to_noise(prior.from_noise(noise))
    torch.testing.assert_close(back, noise, rtol=0, atol=tolerance)


def test_one_component_is_a_gaussian():
    noise = 8 * drawn(50)
    log_weights = torch.zeros(50, 1, dtype=torch.double)
    one = Components(log_weights, torch.tensor([3.0]).double(), torch.tensor([0.5]).double())
    torch.testing.assert_close(quantile(noise, one), 3 + 0.5 * noise)
    torch.testing.assert_close(normal_score(3 + 0.5 * noise, one), noise)


def test_modes_far_apart_keep_their_shares_and_shapes():
    """Half of the noise goes to each mode, though the map is vertical between them."""
    prior = Mixture(torch.ones(2), torch.tensor([[-1e3], [1e3]]).double(), 1.0)
    noise = torch.tensor([-3.0, -1e-3, 1e-3, 3.0]).double()[:, None]
    z = prior.from_noise(noise)[:, 0]
    assert (z[:2] < -990).all()
    assert (z[2:] > 990).all()
    torch.testing.assert_close(prior.to_noise(z[:, None]), noise, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_differences():
    prior = mixture()
    noise = drawn(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(prior.from_noise, noise)
    assert torch.autograd.gradcheck(prior.from_noise, noise, check_forward_ad=True)


def test_vamp_is_the_mean_of_encodings():
    encoder = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).double()
    inputs, z = drawn(3, 5), drawn(7, 2, seed=1)
    prior = Mixture.vamp(inputs, encoder)
    assert encoder.training
    mean, log_variance = encoder.eval()(inputs).chunk(2, -1)
    each = distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z[:, None]).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), each.logsumexp(-1) - math.log(3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(2), torch.zeros(3, 2), 1.0), "3 weights"),
        ((torch.ones(3), torch.zeros(3), 1.0), "means of shape"),
        ((torch.ones(3), torch.zeros(3, 2).long(), 1.0), "floating-point means"),
        ((torch.tensor([1.0, 0.0]), torch.zeros(2, 2), 1.0), "finite weights > 0, got 0"),
        ((torch.ones(2), torch.zeros(2, 2), 0.0), "finite scales > 0, got 0"),
        ((torch.ones(2), torch.zeros(2, 2), torch.nan), "finite scales > 0, got nan"),
        ((torch.ones(2), torch.zeros(2, 2), torch.ones(3)), "scales that broadcast"),
        ((torch.ones(2), torch.full((2, 2), torch.inf), 1.0), "finite means"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        Mixture(*arguments)


def test_an_encoder_that_gives_something_else_is_refused():
    with pytest.raises(
        ValueError, match="mean and log-variance of 1 numbers each from the encoder"
    ):
        Mixture.vamp(torch.zeros(3, 5), nn.Linear(5, 3))
