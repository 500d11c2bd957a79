"""Rejection: exact draws, counted proposals, and a budget that is kept."""

import math
import re

import pytest
import torch
from problems import linear_gaussian_problem, mirrored_problem, mixture_target, seeded
from scipy import stats

import crosscoding as cc
from crosscoding.methods import Rejection
from crosscoding.methods.rejection import _Accepted

CHEAP = {"num_draws": 60}  # for the tests of every method


def log_supremum(problem):
    """log max_z p(x|z) of a linear-Gaussian problem: the residual of least squares."""
    weight, bias = problem.vae.decoder.weight.double(), problem.vae.decoder.bias.double()
    scale = problem.vae.likelihood.scale
    result = []
    for values, mask in zip(problem.evidence.values, problem.evidence.mask, strict=True):
        rows, residual = weight[mask], (values.double() - bias)[mask]
        solution = torch.linalg.pinv(rows) @ residual
        squares = ((residual - rows @ solution) / scale).square().sum()
        normaliser = len(residual) * (math.log(scale) + 0.5 * math.log(2 * math.pi))
        result.append(-0.5 * squares - normaliser)
    return torch.stack(result)


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_draws_are_exact(latent_dim):
    problem = linear_gaussian_problem(latent_dim, data_dim=5, scale=0.7)
    num = 3000
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(num), seed=0)
    mean, covariance = problem.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    centred = (posterior.draws - mean) / sd
    # 5 standard errors of independent draws; the variance of x_i x_j is at most 2.
    assert centred.mean(0).abs().max() < 5 / math.sqrt(num)
    found = torch.einsum("sbi,sbj->bij", centred, centred) / num
    correlation = covariance / (sd[:, :, None] * sd[:, None, :])
    assert (found - correlation).abs().max() < 5 * math.sqrt(2 / num)
    for column in centred.flatten(1).T.numpy():
        # 12 tests at most, so an exact sampler fails one of them once in 8,000 seeds.
        assert stats.kstest(column, "norm").pvalue > 1e-5


def test_draws_are_independent_of_earlier_ones():
    problem = linear_gaussian_problem(1, scale=0.7, batch=())
    z = cc.condition(problem.vae, problem.evidence, Rejection(4000), seed=0).draws[:, 0]
    centred = z - z.mean()
    correlation = (centred[1:] * centred[:-1]).mean() / centred.square().mean()
    assert correlation.abs() < 5 / math.sqrt(4000)


def test_log_evidence_is_right_within_its_error():
    problem = linear_gaussian_problem(2, scale=0.7)
    scores = []
    for seed in range(8):
        posterior = cc.condition(problem.vae, problem.evidence, Rejection(300), seed=seed)
        error = posterior.log_evidence - problem.exact_log_evidence()
        scores.append(error / posterior.log_evidence_error)
    scores = torch.stack(scores)
    assert scores.abs().max() < 5
    # Not far too wide either: the root mean square of 8 standard normal scores of 4 queries that
    # share their noise is below 0.4 less than once in 1,000.
    assert scores.square().mean().sqrt() > 0.4


def test_query_log_prob_is_right():
    problem = linear_gaussian_problem(1, data_dim=4, scale=1.0)
    num = 4000
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(num), seed=0)
    likelihood = torch.distributions.Normal(problem.vae.decode(posterior.draws), 1.0)
    query = ~problem.evidence.mask
    weights = (likelihood.log_prob(problem.truth) * query).sum(-1).exp()  # p(y|z) of each draw
    error = weights.std(0) / weights.mean(0) / math.sqrt(num)
    difference = posterior.query_log_prob(problem.truth) - problem.exact_query_log_prob()
    assert (difference.abs() < 5 * error + 1e-5).all()
    assert error.max() < 0.05


def test_both_modes_of_the_mirrored_vae_have_half_the_mass():
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(1000), seed=0)
    assert abs(problem.masses(posterior.draws).item() - 0.5) < 5 * 0.5 / math.sqrt(1000)


def test_the_mixture_is_exact():
    target = mixture_target()
    posterior = cc.infer(target, Rejection(1000), seed=0)
    exact = target.sample(1000, generator=seeded(9))
    # The unbiased MMD^2 of two exact sets of 1,000 has a standard deviation of 0.0005 here.
    assert cc.diagnostics.kernel_mmd(posterior.draws, exact) < 0.003
    error = (target.weights * (1 - target.weights) / 1000).sqrt()
    assert abs(target.masses(posterior.draws)[2] - target.weights[2]) < 5 * error[2]
    assert posterior.log_evidence.abs() < 5 * posterior.log_evidence_error


def test_the_number_of_proposals_is_what_theory_says():
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.7)
    num = 2000
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(num), seed=0)
    # One proposal is accepted with probability p(x) / M, so num of them take a negative binomial
    # number: relative standard deviation below 1 / sqrt(num). The margin on M is 0.01 nats.
    expected = num * (log_supremum(problem) - problem.exact_log_evidence()).exp()
    ratio = posterior.stats["proposals"].double() / expected
    assert (ratio.log() - 0.01).abs().max() < 5 / math.sqrt(num)
    torch.testing.assert_close(
        posterior.stats["acceptance"], num / posterior.stats["proposals"], rtol=1e-5, atol=0
    )


def test_all_draws_are_effective_and_there_is_no_density():
    problem = linear_gaussian_problem(1)
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(50), seed=0)
    assert torch.equal(posterior.ess, torch.full((4,), 50.0))
    assert posterior.c_elbo.isnan().all()
    assert posterior.log_weights is None


# ---- budget --------------------------------------------------------------------------------------


def test_the_error_on_an_exhausted_budget_says_how_far_it_got():
    problem = linear_gaussian_problem(10, data_dim=24, scale=0.5, batch=(3,))
    nothing_for_one = problem.evidence.mask.clone()
    nothing_for_one[0] = False
    evidence = cc.Evidence(problem.truth, nothing_for_one)
    with pytest.raises(cc.BudgetError) as caught:
        cc.condition(problem.vae, evidence, Rejection(100, max_proposals=20_000), seed=0)
    said = re.search(
        r"accepted 100 draws for (\d+) of 3 queries from (\d+) proposals, and as few as (\d+) for",
        str(caught.value),
    )
    assert said is not None, str(caught.value)
    finished, proposals, fewest = map(int, said.groups())
    assert finished == 1  # the query without evidence, which accepts nearly everything
    assert 10_000 < proposals <= 20_000
    assert fewest < 100
    assert "raise max_proposals, ask for fewer draws, or use another method" in str(caught.value)


def test_a_budget_smaller_than_a_chunk_is_spent_before_giving_up():
    problem = linear_gaussian_problem(1, batch=())
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, Rejection(100, max_proposals=1000), seed=0)
    assert posterior.stats["proposals"] <= 1000


def test_invalid_settings_are_refused():
    for wrong in ({"num_draws": 0}, {"max_proposals": 0}):
        with pytest.raises(ValueError, match="expected num_draws >= 1 and max_proposals >= 1, got"):
            Rejection(**wrong)


# ---- a bound that was too low --------------------------------------------------------------------


@pytest.fixture
def accepted():
    """Room for four draws of one query, two of them taken under a bound of 0."""
    target = cc.DensityTarget(lambda z: -z.square().sum(-1), latent_dim=1).flatten()
    accepted = _Accepted(target, 4)
    z, likelihood = torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([[0.0], [-9.0], [-0.1]])
    log_u = torch.tensor([[-0.5], [-0.5], [-0.5]])
    bound = accepted.add(z, likelihood, log_u, torch.zeros(1))
    assert bound.item() == 0
    assert accepted.count.item() == 2
    assert accepted.draws[:2, 0, 0].tolist() == pytest.approx([0.1, 0.3])
    return accepted


def test_a_proposal_is_accepted_when_log_u_is_below_its_log_ratio(accepted):
    log_u = torch.tensor([[-1.0], [-1.0]])
    accepted.add(
        torch.tensor([[1.0], [2.0]]), torch.tensor([[-0.9], [-1.1]]), log_u, torch.zeros(1)
    )
    assert accepted.count.item() == 3
    assert accepted.draws[2].item() == 1.0


def test_a_bound_that_is_exceeded_is_raised_and_earlier_draws_are_dropped(accepted):
    z, likelihood = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [0.0], [-3.0]])
    log_u = torch.tensor([[-0.5], [-0.5], [-0.5]])
    bound = accepted.add(z, likelihood, log_u, torch.zeros(1))
    assert bound.item() == 2.0
    # Under the new bound the second and third need log u < -2 and < -5.
    assert 0 not in accepted.draws[: int(accepted.count)].tolist()
    assert accepted.count.item() <= 1
    assert not {0.1, 0.3} & set(accepted.draws[: int(accepted.count), 0, 0].tolist())


def test_a_bound_that_holds_is_not_changed(accepted):
    bound = accepted.add(
        torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[-0.5]]), torch.zeros(1)
    )
    assert bound.item() == 0
    assert accepted.count.item() == 3


def test_draws_stop_at_the_number_wanted_and_proposals_are_counted_to_the_last(accepted):
    z = torch.arange(6.0)[:, None]
    likelihood = torch.tensor([[-9.0], [0.0], [-9.0], [0.0], [0.0], [0.0]])
    accepted.add(z, likelihood, torch.full((6, 1), -0.5), torch.zeros(1))
    assert accepted.count.item() == 4
    assert accepted.draws[:, 0, 0].tolist() == pytest.approx([0.1, 0.3, 1.0, 3.0])
    assert not accepted.wanting.any()
    assert accepted.proposals.item() == 3 + 4  # the fourth of the second lot filled the last place


def test_a_finished_query_takes_no_more_draws_and_keeps_its_bound(accepted):
    accepted.add(torch.zeros(4, 1), torch.zeros(4, 1), torch.full((4, 1), -1.0), torch.zeros(1))
    before = accepted.draws.clone(), accepted.proposals.clone()
    bound = accepted.add(
        torch.ones(2, 1), torch.full((2, 1), 5.0), torch.full((2, 1), -1.0), torch.zeros(1)
    )
    assert bound.item() == 0
    assert torch.equal(accepted.draws, before[0])
    assert torch.equal(accepted.proposals, before[1])


def test_draws_are_exact_though_the_first_bound_was_far_too_low():
    # exp(-z^2 / (2 * 0.1^2)) against a N(0, 1) prior, with a likelihood said to be e^-3 at most.
    target = cc.DensityTarget(lambda z: -50 * z.square().sum(-1), latent_dim=1).flatten()
    num, generator = 4000, seeded(0)
    accepted, bound = _Accepted(target, num), torch.full((1,), -3.0)
    while accepted.wanting.any():
        z = target.draw_prior(4096, generator=generator)
        log_u = torch.rand(4096, 1, generator=generator).log()
        bound = accepted.add(z, target.pairwise_log_likelihood(z), log_u, bound)
    # log-likelihood = log-joint less log-prior, at most log sqrt(2 pi)
    assert 0.9 < bound.item() <= 0.5 * math.log(2 * math.pi) + 1e-6
    draws = accepted.draws[:, 0, 0].numpy()
    assert stats.kstest(draws / 0.1, "norm").pvalue > 1e-5


def test_the_acceptance_rate_after_a_raised_bound_is_that_of_the_bound_in_force():
    target = cc.DensityTarget(lambda z: -0.5 * z.square().sum(-1), latent_dim=1).flatten()
    accepted, generator = _Accepted(target, 1000), seeded(0)
    rejected = torch.full((5000, 1), -60.0)  # 5,000 proposals that are looked at under a low bound
    z = target.draw_prior(5000, generator=generator)
    bound = accepted.add(z, rejected, torch.full((5000, 1), -0.5), torch.full((1,), -50.0))
    while accepted.wanting.any():
        z = target.draw_prior(500, generator=generator)
        log_u = torch.rand(500, 1, generator=generator).log()
        bound = accepted.add(z, torch.full((500, 1), 0.7), log_u, bound)
    # Under the bound in force, 0.7, every proposal is accepted.
    assert accepted.findings().stats["acceptance"].item() == pytest.approx(1.0, abs=1e-6)
