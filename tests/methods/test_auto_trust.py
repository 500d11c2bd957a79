"""Auto on targets that its stages are not made for: right, or else not trusted."""

import math

import pytest
import torch
from auto_answers import assert_entries_are_those_alone
from problems import linear_gaussian_problem
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.methods.cascade import stages

pytestmark = pytest.mark.usefixtures("without_closed_form")


class Funnel(nn.Module):
    """Means z₁ … and one scale exp(a z₀) for all of them: p(z|x) is wide where z₀ is large."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.register_buffer("steepness", torch.tensor(steepness))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, 1:], (self.steepness * z[:, :1]).exp().expand(-1, z.shape[1] - 1)


def funnel_log_evidence(dim: int, steepness: float) -> float:
    """log p(x = 0): given z₀ every element is N(0, 1 + exp(2 a z₀)); the rest by quadrature."""
    z = torch.linspace(-12, 12, 400_001, dtype=torch.double)
    normal = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    given = -0.5 * (1 + (2 * steepness * z).exp()).log() - 0.5 * math.log(2 * math.pi)
    log_density = normal.log_prob(z) + (dim - 1) * given
    return (log_density.logsumexp(0) + (z[1] - z[0]).log()).item()


@pytest.mark.parametrize(("dim", "steepness"), [(4, 3.0), (8, 2.0), (10, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_funnel_is_right_or_not_trusted(dim, steepness, seed):
    vae = cc.VAE(Funnel(steepness), dim, cc.likelihoods.Gaussian(None))
    evidence = cc.Evidence(torch.zeros(dim - 1), torch.tensor(True))
    posterior = cc.condition(vae, evidence, seed=seed)
    error = (posterior.log_evidence - funnel_log_evidence(dim, steepness)).abs()
    assert error < 0.1 or not posterior.trusted


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_tails_heavier_than_the_priors_are_right_or_not_trusted(dim, seed):
    def log_cauchy(z):
        return -(math.pi * (1 + z.square())).log().sum(-1)

    posterior = cc.infer(cc.DensityTarget(log_cauchy, dim), seed=seed)  # log p(x) is 0
    assert posterior.log_evidence.abs() < 0.1 or not posterior.trusted


@pytest.mark.parametrize("far", [1e3, 1e4, 1e10, 1e18])
@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.slow
def test_evidence_far_outside_of_the_model_is_right_or_not_trusted(dim, far):
    problem = linear_gaussian_problem(dim, data_dim=5, scale=0.1, batch=(1,))
    evidence = cc.Evidence(torch.tensor([[far, 0.0, 0.0, 0.0, -5.0]]), torch.arange(5) != 1)
    posterior = cc.condition(problem.vae, evidence, seed=0)
    error = (posterior.log_evidence - problem.exact_log_evidence(evidence)).abs()
    assert (error < 0.1) | ~posterior.trusted


def test_a_query_that_the_grid_cannot_do_does_not_keep_it_from_others():
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.01, batch=(3,), dtype=torch.double)
    values = problem.truth.clone()
    values[1] += 40 * problem.vae.decoder.weight[:, 0]
    evidence = cc.Evidence(values, torch.tensor(True))
    posterior = cc.condition(problem.vae, evidence, seed=0)
    integrated = next(stage.decodes for stage in posterior.trace if stage.name == "grid") > 0
    assert integrated[[0, 2]].all()
    exact = problem.exact_log_evidence(evidence)[[0, 2]]
    assert ((posterior.log_evidence[[0, 2]] - exact).abs() < 0.01).all()
    assert_entries_are_those_alone(posterior, seed=0)


def test_the_bank_alone_is_not_trusted_where_its_error_is_large(monkeypatch):
    """There are enough effective points, but the islands disagree, so the grid has to answer."""
    monkeypatch.setattr(stages, "_ISLAND_FACTOR", 1e6)
    problem = linear_gaussian_problem(2, scale=0.5)
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "grid"]


class Ripple(nn.Module):
    """A sine whose period is in step with the cells of a grid: they all see one phase of it."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(128 * math.pi * z[:, :1])


def test_the_grid_is_not_trusted_where_the_bank_found_more():
    """Two periods of a ripple are a cell: most cells hold peaks that no midpoint sees."""
    vae = cc.VAE(Ripple(), 1, cc.likelihoods.Gaussian(0.01))
    posterior = cc.condition(vae, cc.Evidence(torch.zeros(1), torch.tensor(True)), seed=0)
    sine = torch.linspace(0, 2 * math.pi, 1_000_001, dtype=torch.double)[:-1].sin()
    exact = torch.distributions.Normal(sine, 0.01).log_prob(torch.zeros(())).exp().mean().log()
    assert (posterior.log_evidence - exact).abs() < 0.1 or not posterior.trusted
