"""Bounds on log p(x) from both sides hold on average."""

import math

import pytest
import torch
from problems import linear_gaussian_problem, seeded

import crosscoding as cc
from crosscoding.calibration.sandwich import Sandwich


@pytest.mark.parametrize(("latent", "data", "scale"), [(2, 6, 0.5), (3, 10, 0.2)])
def test_bounds_hold_on_average(latent, data, scale):
    problem = linear_gaussian_problem(latent, data, scale, batch=1)
    z = torch.randn(150, latent, generator=seeded(1))
    values = problem.vae.decode(z) + scale * torch.randn(150, data, generator=seeded(2))
    evidence = cc.Evidence(values, torch.arange(data) < data // 2)
    draws = problem.exact_posterior(evidence)[0] + 0.1 * torch.randn(
        64, 150, latent, generator=seeded(3)
    )  # poor ones, as these choose coordinates only
    target = cc.VAETarget(problem.vae, evidence)
    bounds = Sandwich.of(target, z, draws, generator=seeded(4))
    exact = problem.exact_log_evidence(evidence)
    below, above = exact - bounds.lower, bounds.upper - exact
    for gap in (below, above):
        assert gap.mean() > -3 * gap.std() / math.sqrt(150)
        assert gap.mean() < 0.5
