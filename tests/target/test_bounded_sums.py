"""Intervals of elements that sums have too, against draws and differences."""

import math

import pytest
import torch
from partly_known import (
    DOUBLE,
)
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding import likelihoods


def boxed_problem(bounded: int, decoded: bool = False):
    """Four normal elements with an exact sum and a noisy one, and an interval for one of them."""
    torch.manual_seed(0)
    if decoded:
        vae = cc.VAE(
            nn.Sequential(nn.Linear(1, 8), nn.Unflatten(1, (4, 2))).double(),
            1,
            likelihoods.Gaussian(None, log_variance=True),
        )
    else:
        scale = torch.tensor([0.5, 0.8, 0.4, 0.6], dtype=DOUBLE)
        vae = cc.VAE(nn.Linear(1, 4).double(), 1, likelihoods.Gaussian(scale))
    operator = torch.tensor([[1.0, 1, 1, 0], [0, 1, 0, -1]], dtype=DOUBLE)
    low = torch.tensor([0.2, -math.inf, -0.1, -0.5], dtype=DOUBLE)
    high = torch.tensor([0.9, 0.3, math.inf, 0.4], dtype=DOUBLE)
    only = torch.arange(4) == bounded
    sums = cc.Evidence.linear(
        operator, torch.tensor([0.7, 0.1], dtype=DOUBLE), torch.tensor([0.0, 0.3], dtype=DOUBLE)
    )
    low, high = torch.where(only, low, -math.inf), torch.where(only, high, math.inf)
    return vae, operator, low, high, sums & cc.Evidence.interval(low, high)


def free_law(vae, operator, z):
    """Mean and covariance of t given the sums at z (1,), and log p of the sums."""
    params = vae.decode_flat(z)
    mean, scale = vae.flat_likelihood.split(params)
    prior = scale.square().expand(4).diag()
    inner = operator @ prior @ operator.mT + torch.tensor([0.0, 0.09], dtype=DOUBLE).diag()
    gain = torch.linalg.solve(inner, operator @ prior).mT
    values = torch.tensor([0.7, 0.1], dtype=DOUBLE)
    log_sums = torch.distributions.MultivariateNormal(operator @ mean, inner).log_prob(values)
    return mean + gain @ (values - operator @ mean), prior - gain @ operator @ prior, log_sums


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("bounded", range(4))
def test_an_interval_of_a_summed_element(bounded, decoded):
    vae, operator, low, high, evidence = boxed_problem(bounded, decoded)
    target = cc.VAETarget(vae, evidence)
    z = torch.tensor([0.4], dtype=DOUBLE)
    with torch.no_grad():
        mean, covariance, log_sums = free_law(vae, operator, z)
        found = target.log_likelihood(z) - log_sums
        params = vae.decode_flat(z.expand(20_000, 1))[:, None]
    values, axes = torch.linalg.eigh(covariance)
    noise = torch.randn(400_000, 4, generator=seeded(0), dtype=DOUBLE)
    free = mean + (noise * values.clamp_min(0).sqrt()) @ axes.mT
    inside = free[((free >= low) & (free <= high)).all(-1)]
    share = len(inside) / len(free)
    error = ((1 - share) / share / len(free)) ** 0.5
    assert abs(found.exp() - share) < (5 * error + 3e-3) * share
    partial = target.partial
    draws = partial.put_draws(
        vae.flat_likelihood.draw(params, torch.randn(20_000, 1, 4, generator=seeded(1)).double()),
        params.flatten(2),
        partial.noise(20_000, generator=seeded(2), like=params),
    )[:, 0]
    assert ((draws >= low - 1e-9) & (draws <= high + 1e-9)).all()
    torch.testing.assert_close(
        draws[:, :3].sum(-1), torch.full((20_000,), 0.7, dtype=DOUBLE), rtol=0, atol=1e-9
    )
    deviation = inside.std(0)
    for own, wanted in (
        (draws.mean(0), inside.mean(0)),
        (partial.put_means(draws[:1, None], params[:1].flatten(2))[0, 0], inside.mean(0)),
        (draws.std(0), deviation),
        (partial.put_variances(draws[:1, None], params[:1].flatten(2))[0, 0].sqrt(), deviation),
    ):
        assert ((own - wanted).abs() <= 0.05 * deviation).all()


@pytest.mark.parametrize("bounded", range(4))
def test_gradient_and_curvature_of_an_interval_of_a_summed_element(bounded):
    vae, _, _, _, evidence = boxed_problem(bounded)
    target = cc.VAETarget(vae, evidence).flatten()
    z = torch.tensor([[[0.4]], [[-0.7]]], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(target.log_joint(z).sum(), z)
    with torch.no_grad():
        ahead, here, behind = (target.log_joint(z + step) for step in (1e-4, 0.0, -1e-4))
    torch.testing.assert_close(slope[..., 0], (ahead - behind) / 2e-4, rtol=1e-5, atol=1e-5)
    bend = target.curvature(z.detach())[..., 0, 0]
    second = -(ahead - 2 * here + behind) / 1e-8
    torch.testing.assert_close(bend, second, rtol=1e-3, atol=1e-3)
