"""Densities of single elements, which `Posterior.plot` draws, against closed forms."""

import pytest
import torch
from problems import linear_gaussian_problem
from torch import nn
from torch.distributions import Normal

import crosscoding as cc
from crosscoding.likelihoods import Gaussian, Poisson
from crosscoding.methods import Auto, Grid


def linear(data_dim: int, latent: int, scale: float, *, seed: int = 0) -> cc.VAE:
    torch.manual_seed(seed)
    return cc.VAE(nn.Linear(latent, data_dim), latent, Gaussian(scale))


def test_the_density_of_an_element_is_the_exact_one():
    problem = linear_gaussian_problem(2, data_dim=6, scale=0.5, batch=(3,))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(num_draws=4000), seed=0)
    mean, variance = problem.exact_prediction()
    spread = variance.sqrt().clamp_min(1e-3)
    values = mean + spread * torch.linspace(-2.5, 2.5, 11)[:, None, None]
    z = posterior._sample(4000, torch.Generator().manual_seed(0))
    density = posterior._predictions().density(z, values)
    exact = Normal(mean.double(), spread.double()).log_prob(values.double()).exp()
    free = ~problem.evidence.mask
    # 4,000 draws: 3 % of the largest density is five standard errors
    error = (density - exact).abs() * spread
    assert error[:, free].max() < 0.03 / 2.5


def test_the_density_within_bounds_is_truncated():
    vae = linear(3, 2, 0.5)
    low = torch.tensor([-torch.inf, 0.2, -torch.inf])
    evidence = cc.Evidence.interval(low=low) & cc.Evidence(
        torch.tensor([0.3, 0.0, 0.0]), torch.tensor([True, False, False])
    )
    posterior = cc.condition(vae, evidence, seed=0)
    values = torch.linspace(-4, 6, 2001)[:, None, None].expand(-1, 1, 3).contiguous()
    z = posterior._sample(2000, torch.Generator().manual_seed(0))
    density = posterior._predictions().density(z, values)[:, 0]
    total = torch.trapezoid(density, values[:, 0, 0].double(), dim=0)
    torch.testing.assert_close(total[1:], torch.ones(2).double(), atol=0.01, rtol=0)
    assert (density[values[:, 0, 1] < 0.2, 1] == 0).all()
    # beyond the bound it is proportional to the density without it
    free = cc.condition(vae, cc.Evidence(evidence.values, evidence.exact), seed=0)
    z = free._sample(2000, torch.Generator().manual_seed(0))
    own = free._predictions().density(z, values)[:, 0, 1]
    beyond = values[:, 0, 1] >= 0.2
    own = own[beyond] / torch.trapezoid(own[beyond], values[beyond, 0, 1].double(), dim=0)
    assert (density[beyond, 1] - own).abs().max() < 0.05 * own.max()


def test_the_density_of_a_noisy_value_is_the_exact_one():
    vae = linear(2, 1, 0.5)
    evidence = cc.Evidence(torch.tensor([0.7, 0.0]), torch.tensor([True, False]), noise=0.4)
    posterior = cc.condition(vae, evidence, Grid(), seed=0)
    weight, bias = vae.decoder.weight[0, 0].double(), vae.decoder.bias[0].double()
    prior = weight.square() + 0.25
    variance = 1 / (1 / prior + 1 / 0.16)
    mean = variance * (bias / prior + 0.7 / 0.16)
    values = (mean + variance.sqrt() * torch.linspace(-2, 2, 9).double()).float()
    z = posterior._sample(4000, torch.Generator().manual_seed(0))
    found = posterior._predictions().density(z, values[:, None, None].expand(-1, 1, 2))[:, 0, 0]
    exact = Normal(mean, variance.sqrt()).log_prob(values.double()).exp()
    torch.testing.assert_close(found, exact.detach(), atol=0.03, rtol=0)


def test_the_density_of_a_count_is_its_probability():
    vae = cc.VAE(nn.Linear(1, 2), 1, Poisson())
    allowed = torch.ones(2, 9, dtype=torch.bool)
    allowed[1] = torch.arange(9) % 2 == 0
    evidence = cc.Evidence.one_of(allowed) & cc.Evidence(
        torch.tensor([2.0, 0.0]), torch.tensor([True, False])
    )
    posterior = cc.condition(vae, evidence, seed=0)
    values = torch.arange(9.0)[:, None, None].expand(-1, 1, 2).contiguous()
    z = posterior._sample(1000, torch.Generator().manual_seed(0))
    found = posterior._predictions().density(z, values)[:, 0, 1]
    assert (found[1::2] == 0).all()
    assert found.sum().item() == pytest.approx(1.0, abs=1e-6)
