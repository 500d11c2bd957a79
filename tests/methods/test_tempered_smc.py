"""Tempered SMC: log p(x) is exact within its errors, the errors are right, no mode is lost."""

import math
from dataclasses import replace

import pytest
import torch
from problems import blocks, linear_gaussian_problem, mirrored_vae, mixture_target, seeded

import crosscoding as cc
from crosscoding.errors import BudgetError
from crosscoding.methods import TemperedSMC, tempered_smc
from crosscoding.methods.numerics import annealing

CHEAP = {"num_particles": 160, "num_moves": 1, "num_leapfrog": 2}  # for the tests of every method


def test_linear_gaussian_log_evidence_is_within_its_errors():
    """12 queries and 3 seeds: errors over standard errors have the spread that they should."""
    problem = linear_gaussian_problem(5, data_dim=12, scale=0.3, batch=12)
    exact = problem.exact_log_evidence()
    scores = []
    for seed in range(3):
        posterior = cc.condition(problem.vae, problem.evidence, TemperedSMC(400), seed=seed)
        scores.append((posterior.log_evidence - exact) / posterior.log_evidence_error)
    scores = torch.stack(scores)
    # Of a t with 7 degrees of freedom, sd 1.2; queries share their noise, so fewer than 36 count.
    assert scores.abs().max() < 6
    assert 0.4 < scores.square().mean().sqrt() < 2.0
    assert scores.mean().abs() < 1.0


def test_linear_gaussian_moments_are_within_their_errors():
    problem = linear_gaussian_problem(5, data_dim=12, scale=0.3, batch=6)
    posterior = cc.condition(problem.vae, problem.evidence, TemperedSMC(), seed=0)
    mean, covariance = problem.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    off = (posterior.draws.mean(0) - mean) / sd
    # 5 standard errors; the ESS is itself an estimate of 35 degrees of freedom: a third is granted.
    assert (off.abs().amax(-1) < 5 * (posterior.ess / 1.5).rsqrt()).all()
    assert (posterior.draws.std(0) / sd - 1).abs().max() < 0.15
    assert (posterior.stats["missed"] == 0).all()
    assert (posterior.stats["acceptance"] > 0.3).all()


def test_blocks_have_their_masses():
    target = blocks(4)
    posterior = cc.infer(target, TemperedSMC(num_particles=2000), seed=0)
    off = posterior.log_evidence - target.log_evidence
    assert off.abs() < 5 * posterior.log_evidence_error
    # A share of 0.65: 5 standard errors at the ESS of the means, which the modes dominate.
    error = math.sqrt(0.65 * 0.35) * posterior.ess.rsqrt()
    assert (target.masses(posterior.draws) - 0.65).abs().max() < 5 * error


def test_the_far_mode_of_the_mixture_is_kept():
    target = mixture_target()
    posterior = cc.infer(target, TemperedSMC(num_particles=2000), seed=0)
    error = math.sqrt(0.25 * 0.75) * posterior.ess.rsqrt()
    assert (target.masses(posterior.draws)[2] - 0.25).abs() < 5 * error
    assert posterior.log_evidence.abs() < 5 * posterior.log_evidence_error


def test_islands_that_lost_a_mode_lower_the_ess():
    """With few particles each island keeps one of two mirrored modes, and the means differ."""
    vae = mirrored_vae(8, 16, 0.3, seed=2)
    evidence = cc.Evidence(vae.sample_prior(4, seed=102), cc.random_mask((16,), 0.7, seed=2))
    posterior = cc.condition(vae, evidence, TemperedSMC(num_particles=64), seed=0)
    assert (posterior.ess < 20).all()
    assert not posterior.trusted.any()


@pytest.mark.parametrize("seed", range(3))
def test_a_trusted_mirrored_answer_has_both_sides(seed):
    vae = mirrored_vae(3, 8, 0.5, seed=seed)
    evidence = cc.Evidence(vae.sample_prior(4, seed=seed), cc.random_mask((8,), 0.7, seed=seed))
    posterior = cc.condition(vae, evidence, TemperedSMC(), seed=seed)
    axis = torch.linalg.svd(posterior.draws.transpose(0, 1), full_matrices=False)[2][:, 0]
    share = (torch.einsum("sbi,bi->sb", posterior.draws, axis) > 0).double().mean(0)
    assert posterior.trusted.any()  # otherwise this would test nothing
    # 4 standard errors of a half at 600 effective draws.
    assert ((share - 0.5).abs()[posterior.trusted] < 4 * 0.5 / math.sqrt(600)).all()


@pytest.mark.slow
def test_reported_errors_match_the_spread_of_answers():
    """The spread of log p(x) over seeds is the standard error that each run reports."""
    target, method = blocks(8), TemperedSMC(num_particles=800)
    runs = [cc.infer(target, method, seed=seed) for seed in range(16)]
    answers = torch.stack([run.log_evidence for run in runs])
    reported = torch.stack([run.log_evidence_error for run in runs]).square().mean().sqrt()
    # Standard deviations from 16 answers are known to 18 %: two of that, and errors of 8 islands.
    assert 0.5 < answers.std() / reported < 2
    assert (answers.mean() - target.log_evidence).abs() < 4 * answers.std() / math.sqrt(16)


def test_particles_that_no_step_moves_have_not_searched(monkeypatch):
    """If every move is rejected, only the bank has looked for modes."""
    monkeypatch.setattr(annealing, "_LEAST_ACCEPTANCE", 1.1)
    problem = linear_gaussian_problem(4, data_dim=8, scale=0.5, batch=2)
    method = TemperedSMC(num_particles=64, num_moves=1, num_leapfrog=1)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.stats["missed"].isnan().all()
    assert not posterior.trusted.any()
    for verdict in posterior.verdicts:
        assert "nothing has searched for modes that it may lack" in verdict.reasons


def test_too_many_temperatures_raise_an_error_that_names_the_query(monkeypatch):
    monkeypatch.setattr(tempered_smc, "MAX_TEMPERATURES", 2)
    problem = linear_gaussian_problem(4, data_dim=20, scale=0.02, batch=3)
    nothing = torch.zeros(3, 20, dtype=torch.bool)
    mask = torch.where(torch.arange(3)[:, None] == 1, problem.evidence.mask, nothing)
    evidence = cc.Evidence(problem.truth, mask)
    with pytest.raises(BudgetError, match=r"within 2 temperatures, .* not for query 1; .*use"):
        cc.condition(problem.vae, evidence, TemperedSMC(num_particles=64), seed=0)


def test_without_evidence_one_temperature_is_enough():
    problem = linear_gaussian_problem(4, data_dim=8, batch=2)
    nothing = cc.Evidence(problem.truth, torch.tensor(False))
    posterior = cc.condition(problem.vae, nothing, TemperedSMC(num_particles=400), seed=0)
    assert posterior.log_evidence.tolist() == [0, 0]
    assert posterior.stats["temperatures"].tolist() == [1, 1]


def test_a_sharper_query_takes_more_temperatures_without_affecting_others():
    problem = linear_gaussian_problem(4, data_dim=20, scale=0.1, batch=2, dtype=torch.double)
    mask = problem.evidence.mask.clone()
    mask[0] = torch.arange(20) < 1
    evidence, method = cc.Evidence(problem.truth, mask), TemperedSMC(num_particles=160)
    posterior = cc.condition(problem.vae, evidence, method, seed=0)
    few, many = posterior.stats["temperatures"].tolist()
    assert few < many
    alone = cc.condition(problem.vae, evidence[[0]], method, seed=0)
    # Sums in another order: 1e-16 a product, 1e-10 after the moves.
    torch.testing.assert_close(posterior.draws[:, 0], alone.draws[:, 0], rtol=0, atol=1e-8)
    torch.testing.assert_close(posterior.log_evidence[:1], alone.log_evidence)


def test_the_number_of_particles_is_the_one_given_or_follows_from_the_dimension():
    problem = linear_gaussian_problem(4, data_dim=8, batch=1)
    posterior = cc.condition(problem.vae, problem.evidence, TemperedSMC(), seed=0)
    assert len(posterior.draws) == 1000 + 64 * 4
    posterior = cc.condition(problem.vae, problem.evidence, TemperedSMC(100), seed=0)
    assert len(posterior.draws) == 104  # of 8 islands of one size
    assert posterior.log_weights is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_moves": 0}, "expected num_moves, num_leapfrog >= 1"),
        ({"num_leapfrog": 0}, "expected num_moves, num_leapfrog >= 1"),
        ({"num_islands": 1}, "num_islands >= 2"),
        ({"num_particles": 31}, "expected num_particles >= 32"),
        ({"ess_share": 0.0}, "expected ess_share between 0 and 1, got 0.0"),
        ({"ess_share": 1.0}, "expected ess_share between 0 and 1, got 1.0"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        replace(TemperedSMC(), **wrong)


def test_the_same_seed_gives_the_same_bits():
    target = blocks(4)
    runs = [cc.infer(target, TemperedSMC(400), seed=seeded(3)) for _ in range(2)]
    assert torch.equal(runs[0].draws, runs[1].draws)
    assert torch.equal(runs[0].log_evidence, runs[1].log_evidence)
