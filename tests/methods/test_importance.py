"""Importance: unbiased, from the bank, an adapted mixture or another method's fit."""

import math

import pytest
import torch
from problems import blocks, linear_gaussian_problem, mixture_target

import crosscoding as cc
from crosscoding.crosscoders import FCN, Gaussian
from crosscoding.methods import HMC, Grid, Importance, Laplace, Variational

CHEAP = {"rounds": 1, "num_adapt": 200, "num_draws": 200}  # for the tests of every method

PROBLEM = linear_gaussian_problem(4, data_dim=10, scale=0.3, batch=6, dtype=torch.double)


def scores(posterior: cc.Posterior, exact: torch.Tensor) -> torch.Tensor:
    return (posterior.log_evidence - exact) / posterior.log_evidence_error


def test_the_bank_alone_is_right_where_the_prior_is_near():
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, dtype=torch.double)
    posterior = cc.condition(problem.vae, problem.evidence, Importance(rounds=0), seed=0)
    # Evenly spread points: the errors are less than those of independent draws.
    assert scores(posterior, problem.exact_log_evidence()).abs().max() < 3
    assert posterior.trusted.all()
    assert posterior.c_elbo.isnan().all()
    with pytest.raises(NotImplementedError, match="gives draws but no density"):
        posterior.log_prob(torch.zeros(4, 2, dtype=torch.double))


def test_the_bank_alone_is_not_trusted_where_it_is_not_enough():
    problem = linear_gaussian_problem(16, data_dim=40, scale=0.1)
    posterior = cc.condition(problem.vae, problem.evidence, Importance(rounds=0), seed=0)
    assert [verdict.label for verdict in posterior.verdicts] == ["unreliable"] * 4


@pytest.mark.parametrize("components", [1, 2])
def test_an_adapted_mixture_is_right_and_has_a_density(components):
    method = Importance(components=components)
    posterior = cc.condition(PROBLEM.vae, PROBLEM.evidence, method, seed=0)
    exact = PROBLEM.exact_log_evidence()
    assert scores(posterior, exact).abs().max() < 5
    assert (posterior.log_evidence_error < 0.02).all()
    assert (posterior.pareto_k < 0.7).all()
    assert (posterior.ess > 1000).all()
    assert ((posterior.c_elbo - exact) < 5 * posterior.c_elbo_error).all()
    assert posterior.log_prob(posterior.draws).shape == posterior.draws.shape[:-1]
    mean, covariance = PROBLEM.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    weighted = (posterior.log_weights.exp()[..., None] * posterior.draws).sum(0)
    assert ((weighted - mean).abs() < 5 * sd * posterior.ess.rsqrt()[:, None]).all()


def test_weights_are_unbiased(monkeypatch):
    """Estimates of p(x) average to p(x) over seeds, with few draws and a rough proposal."""
    monkeypatch.setattr("crosscoding.model.bank.MAX_POINTS", 500)
    problem = linear_gaussian_problem(4, data_dim=10, scale=0.3, batch=3, dtype=torch.double)
    exact = problem.exact_log_evidence()
    method = Importance(rounds=1, num_adapt=100, num_draws=50)
    ratios = torch.stack(
        [
            (cc.condition(problem.vae, problem.evidence, method, seed=s).log_evidence - exact).exp()
            for s in range(60)
        ]
    )
    error = ratios.std(0) / math.sqrt(60)
    assert ((ratios.mean(0) - 1).abs() < 5 * error).all()


def test_an_adapted_mixture_finds_the_far_mode():
    target = mixture_target()
    posterior = cc.infer(target, Importance(components=3), seed=0)
    weights = posterior.log_weights.exp()
    nearest = torch.cdist(posterior.draws, target.means).argmin(-1)
    # 5 standard errors of a share of a quarter.
    share = (weights * (nearest == 2)).sum()
    assert (share - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / posterior.ess)
    assert posterior.log_evidence.abs() < 5 * posterior.log_evidence_error


def test_an_adapted_mixture_is_not_trusted_without_a_search():
    posterior = cc.infer(blocks(2), Importance(), seed=0)
    assert not posterior.trusted
    assert "nothing has searched for modes that it may lack" in posterior.verdicts[0].reasons


@pytest.mark.parametrize("proposal", [Variational(Gaussian(), steps=150), Laplace()])
def test_another_methods_fit_is_drawn_from(proposal):
    posterior = cc.condition(
        PROBLEM.vae, PROBLEM.evidence, Importance(proposal, num_draws=2000), seed=0
    )
    assert len(posterior.draws) == 2000
    # Laplace is exact here: its errors are 0, and double's roundings are left.
    off = (posterior.log_evidence - PROBLEM.exact_log_evidence()).abs()
    assert (off < 5 * posterior.log_evidence_error + 1e-9).all()


@pytest.mark.parametrize(
    "proposal",
    [Grid(), HMC(4, 20, 20), Variational(FCN((8,)), steps=5)],
    ids=["grid", "hmc", "fcn"],
)
def test_a_proposal_without_a_density_is_refused(proposal):
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0)
    with pytest.raises(ValueError, match="expected a proposal with a density, got "):
        cc.condition(problem.vae, problem.evidence, Importance(proposal), seed=0)


def test_a_proposal_that_is_not_a_method_is_refused():
    with pytest.raises(TypeError, match="expected proposal to be a method or None, got 'gvi'"):
        Importance("gvi")


@pytest.mark.parametrize(
    "wrong", [{"rounds": -1}, {"components": 0}, {"num_adapt": 1}, {"num_draws": 1}], ids=str
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected rounds >= 0, components >= 1, num_adapt and"):
        Importance(**wrong)


def test_impossible_points_of_the_prior_do_not_matter():
    """A density of 0 on half of the space: weights of −inf, and p(x) is of the other half."""

    def log_density(z):
        half = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        return torch.where(z[..., 0] > 0, half, -math.inf)

    target = cc.DensityTarget(log_density, 2, like=torch.empty(0, dtype=torch.double))
    for method in (Importance(rounds=0), Importance()):
        posterior = cc.infer(target, method, seed=0)
        off = posterior.log_evidence - math.log(0.5)
        assert off.abs() < 5 * posterior.log_evidence_error
        assert (posterior.sample(100, seed=0)[:, 0] > 0).all()
