"""A fixed scale that does not match the data, and the check that suggests another."""

import pytest
import torch
from faults import LATENT, drawn, network, status
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian, Mixed, Poisson


@pytest.mark.parametrize("factor", [0.2, 0.9, 5.0])
def test_the_suggested_scale_is_that_of_the_exact_likelihood_of_a_linear_vae(factor):
    problem = linear_gaussian_problem(latent_dim=3, data_dim=8, scale=0.5, batch=32)
    guessed = cc.VAE(problem.vae.decoder, 3, Gaussian(0.5 / factor))
    finding = guessed.check(problem.truth)["scale"]
    best = cc.calibrate_scale(guessed, problem.truth, tolerance=1e-4)
    # A step of the search is 1.2 %; the draws of EM leave 1 %.
    assert finding.figures["factor"] * 0.5 / factor == pytest.approx(best, rel=0.03)
    assert finding.status == ("ok" if factor == 0.9 else "warning")


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_scale_that_does_not_fit_the_data(factor):
    decoder = network(60)
    data = drawn(cc.VAE(decoder, LATENT, Gaussian(0.3)))
    finding = cc.VAE(decoder, LATENT, Gaussian(0.3 / factor)).check(data)["scale"]
    assert finding.status == "warning"
    assert "cc.calibrate_scale(vae, data)" in finding.message
    assert finding.figures["factor"] == pytest.approx(factor, rel=0.1)  # the decoder bends


def test_data_that_z_can_match_do_not_determine_the_scale():
    problem = linear_gaussian_problem(latent_dim=3, data_dim=3, scale=0.01, batch=32)
    vae = cc.VAE(problem.vae.decoder, 3, Gaussian(0.1))
    finding = vae.check(problem.truth[:2].repeat(16, 1))["scale"]
    assert finding.status == "note"
    assert "z of 3 dimensions can match 3 elements almost exactly" in finding.message


def test_a_scale_for_each_element_is_checked_by_one_factor():
    scales = torch.linspace(0.1, 0.5, 60)
    decoder = network(60)
    data = drawn(cc.VAE(decoder, LATENT, Gaussian(scales)))
    assert status(cc.VAE(decoder, LATENT, Gaussian(scales)), "scale", data) == "ok"
    assert status(cc.VAE(decoder, LATENT, Gaussian(scales / 3)), "scale", data) == "warning"


def table(*scales: float) -> cc.VAE:
    """Twenty columns of each scale, and four counts between them."""
    parts = [(Gaussian(scales[0]), 20), (Poisson(), 4), *[(Gaussian(s), 20) for s in scales[1:]]]
    return cc.VAE(network(sum(num for _, num in parts)), LATENT, Mixed(parts))


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_the_scale_of_each_gaussian_part_of_a_table_is_checked(factor):
    data = drawn(table(0.3, 0.8))
    assert status(table(0.3, 0.8), "scale", data) == "ok"
    finding = table(0.3, 0.8 / factor).check(data)["scale"]
    assert finding.status == "warning"
    assert finding.message.startswith("columns 24 to 43: data suggest about")
    assert finding.figures["factor"] == pytest.approx(factor, rel=0.1)  # the decoder bends


def test_a_table_without_a_fixed_scale_has_no_finding_on_it():
    vae = cc.VAE(
        network(10), LATENT, Mixed([(Gaussian(None, log_variance=True), 3), (Poisson(), 4)])
    )
    assert "scale" not in vae.check(drawn(vae))


@pytest.mark.parametrize("dim", [-1, -3])
@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_the_scale_of_a_part_is_that_of_the_exact_likelihood_of_a_linear_vae(factor, dim):
    """One scale for both parts, of which the second's is guessed wrongly by a factor."""
    problem = linear_gaussian_problem(latent_dim=3, data_dim=12, scale=0.5, batch=32)
    decoder, data = problem.vae.decoder, problem.truth
    if dim == -3:
        decoder, data = (
            nn.Sequential(decoder, nn.Unflatten(1, (6, 2, 1))),
            data.unflatten(1, (6, 2, 1)),
        )
    num = 6 if dim == -1 else 3
    likelihood = Mixed([(Gaussian(0.5), num), (Gaussian(0.5 / factor), num)], dim)
    guessed = cc.VAE(decoder, 3, likelihood)
    finding = guessed.check(data)["scale"]
    wanted = _likeliest_factor_of_second(problem, 0.5, factor)
    assert finding.figures["factor"] == pytest.approx(wanted, rel=0.02)  # a step is 1.2 %
    assert finding.status == "warning"


def _likeliest_factor_of_second(problem, scale: float, factor: float) -> float:
    """Of the second half's scale / factor, by the marginal likelihood log N(t; b, W Wᵀ + Σ)."""
    weight, bias = problem.vae.decoder.weight.double(), problem.vae.decoder.bias.double()
    half = len(bias) // 2

    def log_prob(times: float) -> float:
        deviation = torch.full((len(bias),), scale, dtype=torch.double)
        deviation[half:] *= times / factor
        law = torch.distributions.MultivariateNormal(
            bias, weight @ weight.T + deviation.square().diag()
        )
        return law.log_prob(problem.truth.double()).sum().item()

    return max(torch.logspace(-2, 2, 2001).tolist(), key=log_prob)
