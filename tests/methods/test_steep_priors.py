"""Priors whose map from noise is steep: answers are right, or not trusted."""

import math

import pytest
import torch
from problems import seeded
from torch import nn
from torch.distributions import MultivariateNormal

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.priors import Mixture

SCALE, NOISE = 0.5, 0.3


def model(distance: float, weights: tuple[float, float]) -> tuple[cc.VAE, nn.Linear, torch.Tensor]:
    """Two components of standard deviation 0.5 at ± distance, and a linear decoder."""
    linear = nn.Linear(2, 4)
    with torch.no_grad():
        linear.weight.copy_(0.5 * torch.randn(4, 2, generator=seeded(0)))
    means = torch.tensor([[-distance, 0.0], [distance, 0.0]])
    prior = Mixture(torch.tensor(weights), means, torch.tensor(SCALE))
    return cc.VAE(linear, 2, Gaussian(NOISE), prior=prior), linear, means


def exact(linear, means, weights, data, mask):
    """log p(x) of each query, a sum over components."""
    weight, bias = (part.detach().double() for part in (linear.weight[mask], linear.bias[mask]))
    covariance = SCALE**2 * weight @ weight.mT + NOISE**2 * torch.eye(len(bias)).double()
    terms = [
        MultivariateNormal(weight @ mean.double() + bias, covariance).log_prob(
            data[:, mask].double()
        )
        + math.log(share / sum(weights))
        for mean, share in zip(means, weights, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


@pytest.mark.filterwarnings("ignore:p.z.x. of query:UserWarning")
@pytest.mark.parametrize(("distance", "weights"), [(6.0, (0.3, 0.7)), (10.0, (1.0, 1.0))])
@pytest.mark.slow
def test_evidence_between_distant_components_is_never_trusted_wrongly(distance, weights):
    """Right up to 20 nats too high, and trusted, before steep maps were examined."""
    vae, linear, means = model(distance, weights)
    places = torch.tensor([[share * distance, 0.3] for share in (0.0, 0.2, 0.5, -0.6, 1.0)])
    data = linear(places).detach()
    for mask in (torch.ones(4, dtype=torch.bool), torch.arange(4) < 1):
        posterior = cc.condition(vae, cc.Evidence(data, mask), seed=0)
        gap = posterior.log_evidence.double() - exact(linear, means, weights, data, mask)
        assert (gap[posterior.trusted].abs() < 0.15).all()
        assert posterior.trusted[-1]  # at a component


@pytest.mark.slow
def test_a_warning_says_why():
    vae, linear, _ = model(6.0, (1.0, 1.0))
    data = linear(torch.zeros(1, 2)).detach()
    with pytest.warns(UserWarning, match=r"query 0 lies where the map of the prior is too steep"):
        posterior = cc.condition(vae, cc.Evidence(data, torch.arange(4) < 4), seed=0)
    assert posterior.verdicts[0].label == "unreliable"
