"""Every mismatch of data and model in support, units or columns, and the check that finds it."""

import math

import pytest
import torch
from faults import LATENT, drawn, network, right, status
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.checks.column_baseline import log_prob_of_columns
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed, Poisson

# ---- support and units -------------------------------------------------------------------------


def images(low: float, high: float, likelihood, last: nn.Module) -> tuple[cc.VAE, torch.Tensor]:
    """A model whose last layer is bounded, and its own means moved to low … high."""
    vae = cc.VAE(network(60, last), LATENT, likelihood)
    means = vae.decode(torch.randn(200, LATENT, generator=torch.Generator().manual_seed(2)))
    start, end = (-1, 1) if isinstance(last, nn.Tanh) else (0, 1)
    return vae, low + (high - low) * (means - start) / (end - start)


def test_values_that_are_not_finite():
    data = drawn(right())
    data[3, 2] = math.nan
    report = right().check(data)
    assert report["data"].status == "error"
    assert "1 of 2400 values are NaN" in report["data"].message
    assert "units" not in report


def test_values_outside_the_support():
    vae = cc.VAE(network(), LATENT, Bernoulli())
    finding = vae.check(255 * drawn(vae))["data"]
    assert finding.status == "error"
    assert "expected data between 0 and 1 for Bernoulli, got 255" in finding.message


def test_grey_values_under_a_bernoulli_are_noted():
    vae = cc.VAE(network(), LATENT, Bernoulli())
    finding = vae.check(vae.decode(torch.randn(50, LATENT)).sigmoid())["data"]
    assert finding.status == "note"
    assert "ContinuousBernoulli" in finding.message


@pytest.mark.parametrize(
    ("last", "low", "high"),
    [(nn.Tanh(), 0, 1), (nn.Tanh(), 0, 255), (nn.Sigmoid(), -1, 1), (nn.Sigmoid(), 0, 255)],
    ids=["tanh, 0 to 1", "tanh, 0 to 255", "sigmoid, -1 to 1", "sigmoid, 0 to 255"],
)
def test_a_bounded_mean_and_data_on_another_scale(last, low, high):
    vae, data = images(low, high, Gaussian(0.05), last)
    finding = vae.check(data)["units"]
    assert finding.status in ("warning", "error")
    assert finding.message.endswith("scale the data as in training")


@pytest.mark.parametrize(("last", "low"), [(nn.Tanh(), -1), (nn.Sigmoid(), 0)], ids=str)
def test_a_bounded_mean_and_data_on_its_scale(last, low):
    vae, data = images(low, 1, Gaussian(0.05), last)
    assert status(vae, "units", data) == "ok"


def test_a_table_of_other_units_in_some_columns():
    vae = right()
    data = drawn(vae)
    assert status(vae, "units", data) == "ok"
    data[:, :3] = 40 + 10 * data[:, :3]
    assert status(vae, "units", data) == "error"


def test_a_single_column_of_other_units():
    vae = cc.VAE(network(60), LATENT, Gaussian(0.3))
    data = drawn(vae)
    data[:, 7] = 20 + data[:, 7]
    finding = vae.check(data)["units"]
    assert finding.status == "warning"
    assert "most values of 1 of 60 elements, first index 7" in finding.message


def test_pictures_that_are_mostly_black_on_another_scale():
    vae = cc.VAE(network(60, nn.Sigmoid()), LATENT, Gaussian(0.05))
    grey = torch.rand(200, 60, generator=torch.Generator().manual_seed(3))
    finding = vae.check(255 * grey * (grey > 0.8))["units"]
    assert finding.status == "error"  # four of five pixels are 0 on either scale
    assert "20% of the values of data, 0 to 255, lie outside" in finding.message


def test_in_a_mixed_table_the_columns_of_other_units_are_named():
    vae = cc.VAE(network(), LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(), 4)]))
    data = drawn(vae, 400)
    data[:, :8] = 40 + 10 * data[:, :8]
    finding = vae.check(data)["units"]
    assert finding.status == "error"
    assert finding.message.startswith("columns 0 to 7: ")


def test_classes_have_no_units():
    decoder = nn.Sequential(network(), nn.Unflatten(1, (4, 3)))
    vae = cc.VAE(decoder, LATENT, Categorical(3))
    assert "units" not in vae.check(drawn(vae))


# ---- log p -------------------------------------------------------------------------------------


def test_a_model_that_is_not_of_these_data():
    vae = right()
    data = drawn(vae)
    assert status(vae, "explanation", data) == "ok"
    finding = vae.check(data.flip(1))["explanation"]  # other elements than those it was trained on
    assert finding.status == "warning"
    assert finding.figures["gain"] < 0


def test_too_few_data_to_compare():
    vae = right()
    assert status(vae, "explanation", drawn(vae, 5)) == "note"
    assert vae.check(drawn(vae, 1))["data"].status == "ok"


def test_log_prob_is_that_of_a_linear_model():
    problem = linear_gaussian_problem(batch=20)
    everything = cc.Evidence(problem.truth, torch.ones_like(problem.truth, dtype=torch.bool))
    exact = problem.exact_log_evidence(everything).mean().item()
    found = problem.vae.check(problem.truth)["explanation"].figures["log_prob"]
    assert found == pytest.approx(exact, abs=1e-3)  # a climb ends within that of the mode


# ---- the columns -------------------------------------------------------------------------------


def test_normal_columns_are_those_of_all_other_data():
    data = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    found = log_prob_of_columns(Gaussian(), data, torch.zeros(3))
    others = data[1:]
    law = torch.distributions.Normal(others.mean(0), others.std(0, correction=0))
    torch.testing.assert_close(found[0], law.log_prob(data[0]).sum())


def test_a_constant_column_has_the_least_variance():
    found = log_prob_of_columns(Gaussian(), torch.zeros(12, 1), torch.full((1,), 0.25))
    law = torch.distributions.Normal(0.0, 0.5)
    torch.testing.assert_close(found, law.log_prob(torch.zeros(12)).double())


def test_columns_of_zeros_and_ones_and_of_classes_count_the_others():
    data = torch.tensor([[1.0], [1.0], [0.0]])
    wanted = torch.tensor([2 / 4, 2 / 4, 1 / 4]).log().double()
    torch.testing.assert_close(log_prob_of_columns(Bernoulli(), data, torch.zeros(1)), wanted)
    torch.testing.assert_close(log_prob_of_columns(Categorical(2), data, torch.zeros(1)), wanted)


def test_columns_of_a_table_are_those_of_its_parts():
    parts = [(Gaussian(0.1), 2), Poisson()]
    data = torch.cat([torch.randn(20, 2), torch.arange(20.0)[:, None] % 3], 1)
    floor = torch.full((3,), 0.01)
    both = log_prob_of_columns(Mixed(parts), data, floor)
    first = log_prob_of_columns(Gaussian(0.1), data[:, :2], floor[:2])
    torch.testing.assert_close(both, first + log_prob_of_columns(Poisson(), data[:, 2:], floor[2:]))
