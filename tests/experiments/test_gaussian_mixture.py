"""The paper's Figure 9: the same methods on a bare density without a VAE."""

import pytest
import torch
from problems import seeded

import crosscoding as cc
from crosscoding.diagnostics import kernel_mmd
from crosscoding.experiments import gaussian_mixture
from crosscoding.methods import METHODS

FAR = torch.tensor(gaussian_mixture.MEANS[-1])


def share_of_far_mode(z):
    return ((z - FAR).norm(dim=-1) < 1.75).float().mean().item()


def test_the_mixture_is_normalised_and_its_draws_have_its_moments():
    axis = torch.linspace(-8, 10, 901)
    density = gaussian_mixture.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum() * 0.02**2 == pytest.approx(1, abs=1e-4)
    draws = gaussian_mixture.sample(20_000, seed=seeded(0))
    mean = sum(
        w * torch.tensor(m)
        for w, m in zip(gaussian_mixture.WEIGHTS, gaussian_mixture.MEANS, strict=True)
    )
    # 4 standard errors: the largest standard deviation is about 2, over the root of 20,000.
    torch.testing.assert_close(draws.mean(0), mean, atol=4 * 2 / 20_000**0.5, rtol=0)
    assert share_of_far_mode(draws) == pytest.approx(gaussian_mixture.WEIGHTS[-1], abs=0.015)


# MMD² of two sets of 1,000 exact draws is 0 ± 0.001 here; a lost far mode gives 0.07.
@pytest.mark.parametrize("name", ["nf", "fcn", "rejection", "grid"])
@pytest.mark.slow
def test_flexible_and_exact_methods_find_all_modes(name):
    posterior = cc.infer(gaussian_mixture.target(), METHODS[name].method, seed=0)
    draws = posterior.sample(1000, seed=1)
    assert share_of_far_mode(draws) == pytest.approx(gaussian_mixture.WEIGHTS[-1], abs=0.13)
    assert kernel_mmd(draws, gaussian_mixture.sample(1000, seed=2)) < 0.02


def test_a_gaussian_cannot_fit_the_mixture():
    posterior = cc.infer(gaussian_mixture.target(), METHODS["gvi"].method, seed=0)
    assert kernel_mmd(posterior.sample(1000, seed=1), gaussian_mixture.sample(1000, seed=2)) > 0.05
    assert posterior.c_elbo < -0.5
