"""The course of Algorithm 1, and the effect of fixed draws on a fit, on a linear model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.experiments import fixed_draws
from crosscoding.experiments.experiment import Context
from crosscoding.experiments.figures import convergence
from crosscoding.experiments.recorded_runs import run
from crosscoding.target.vae_target import VAETarget

DIM = 5


@pytest.fixture(scope="module")
def target():
    """A fully observed linear-Gaussian model, in double precision."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(DIM, 8, dtype=torch.double)
    nn.init.normal_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    vae = cc.VAE(linear, DIM, cc.likelihoods.Gaussian(0.5))
    values = vae.sample_prior(1, seed=1)[0]
    return VAETarget(vae, cc.Evidence(values, torch.ones(8, dtype=torch.bool)))


@pytest.fixture(scope="module")
def log_evidence(target):
    weight = target.vae.decoder.weight
    covariance = weight @ weight.mT + 0.25 * torch.eye(8, dtype=torch.double)
    zeros = torch.zeros(8, dtype=torch.double)
    exact = torch.distributions.MultivariateNormal(zeros, covariance)
    return exact.log_prob(target.evidence.values).item()


def fit(target, num):
    return fixed_draws.fit(
        target, num, rounds=30, per_round=20, generator=torch.Generator().manual_seed(0)
    )


def test_few_fixed_draws_raise_the_objective_and_lose_the_bound(target, log_evidence):
    """Trap 1: with N = D draws the objective has no maximum."""
    trace = fit(target, DIM)
    assert trace.own[-1] > log_evidence + 1
    assert trace.own[-1] > trace.own[5]
    assert trace.fresh[-1] < log_evidence - 50


def test_many_fixed_draws_fit_well(target, log_evidence):
    """The cure, N = 10 D: close to log p(x), also on fresh draws, and much closer with more."""
    short = log_evidence - fit(target, 10 * DIM).fresh[-1]
    shorter = log_evidence - fit(target, 200 * DIM).fresh[-1]
    assert -0.1 < short < 3  # a Gaussian with 20 parameters from 50 draws
    assert -0.1 < shorter < 0.1  # 1,000 fresh draws at the optimum have almost no variance


def test_the_objective_is_log_evidence_at_the_exact_posterior(target, log_evidence):
    weight = target.vae.decoder.weight
    precision = torch.eye(DIM, dtype=torch.double) + weight.mT @ weight / 0.25
    covariance = torch.linalg.inv(precision)
    mean = covariance @ weight.mT @ target.evidence.values / 0.25
    eps = torch.randn(20_000, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    factor = torch.linalg.cholesky(covariance)
    found = fixed_draws.objective(target, factor, mean, eps)
    # H[q(ε)] replaces the mean of −log q(ε), whose standard deviation per draw is √(D / 2).
    assert found.item() == pytest.approx(log_evidence, abs=4 * (DIM / 2) ** 0.5 / 20_000**0.5)


@pytest.mark.slow
def test_objectives_rise_and_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "_FAMILIES", {"mnist-2d": {"GVI": cc.crosscoders.Gaussian()}})
    settings = convergence.Settings(
        num_sets=2, num_seeds=1, steps=(2, 50), rounds=2, per_round=2, times_dim=(1,)
    )
    record, _ = run(replace(convergence.VARIANCE, full=settings), Context(tmp_path))
    first, second = record["numbers"]["courses"]["mnist-2d"]["methods"]["GVI"]
    assert sum(second["c_elbo"][0]) > sum(first["c_elbo"][0]) - 0.5
    assert second["evaluations"] > first["evaluations"]
    assert {"variance.png", "variance-fixed-draws.png"} <= set(record["files"])
