"""Importance weights: the mean weight, its standard error and the effective sample size."""

import math

import pytest
import torch
from problems import seeded

from crosscoding.diagnostics import importance_ess, log_mean_exp


def log_weights(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.double)


def test_log_mean_exp_is_the_logarithm_of_the_mean_weight():
    weights = log_weights(50, 2, 3)
    log_mean, error = log_mean_exp(weights)
    assert log_mean.shape == error.shape == (2, 3)
    torch.testing.assert_close(log_mean, weights.exp().mean(0).log())
    expected = weights.exp().std(0) / weights.exp().mean(0) / math.sqrt(50)
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_weights_too_small_or_large_for_a_float_are_averaged(offset):
    weights = log_weights(50)
    log_mean, error = log_mean_exp(weights + offset)
    expected, expected_error = log_mean_exp(weights)
    torch.testing.assert_close(log_mean, expected + offset)
    torch.testing.assert_close(error, expected_error)
    torch.testing.assert_close(importance_ess(weights + offset), importance_ess(weights))


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    """Log-normal weights with σ = 0.5: over 4,000 replications of 400 draws."""
    log_mean, error = log_mean_exp(0.5 * log_weights(400, 4000))
    # the spread of 4,000 is known to 1.1 %; the delta method's own bias is of order 1 / 400
    assert log_mean.std().item() == pytest.approx(error.mean().item(), rel=0.05)
    exact = 0.125  # log E[w] = σ² / 2
    assert abs(log_mean.mean().item() - exact) < 5 * error.mean().item() / math.sqrt(4000) + 1e-3


def test_equal_weights_have_no_error_and_full_ess():
    weights = torch.full((40, 3), -7.0, dtype=torch.double)
    log_mean, error = log_mean_exp(weights)
    torch.testing.assert_close(log_mean, torch.full((3,), -7.0, dtype=torch.double))
    torch.testing.assert_close(error, torch.zeros(3, dtype=torch.double), rtol=0, atol=1e-12)
    torch.testing.assert_close(importance_ess(weights), torch.full((3,), 40.0).double())


def test_minus_infinity_is_a_weight_of_zero():
    """A quarter of the draws count, the others are 0: their mean a quarter, the ESS a quarter."""
    weights = torch.full((40,), -torch.inf, dtype=torch.double)
    weights[:10] = 0.0
    log_mean, error = log_mean_exp(weights)
    torch.testing.assert_close(log_mean.item(), math.log(0.25))
    expected = torch.tensor([1.0] * 10 + [0.0] * 30).std().item() / 0.25 / math.sqrt(40)
    assert error.item() == pytest.approx(expected)
    torch.testing.assert_close(importance_ess(weights).item(), 10.0)


def test_one_dominant_weight_is_one_draw():
    weights = torch.zeros(100, dtype=torch.double)
    weights[3] = 60.0
    torch.testing.assert_close(importance_ess(weights).item(), 1.0)


def test_importance_ess_is_kishs_ratio():
    weights = log_weights(50, 4)
    expected = weights.exp().sum(0).square() / weights.exp().square().sum(0)
    torch.testing.assert_close(importance_ess(weights), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_weights(dtype):
    weights = log_weights(50).to(dtype)
    results = (*log_mean_exp(weights), importance_ess(weights))
    assert {result.dtype for result in results} == {dtype}
