"""`Auto` with an amortised cross-coder: as right as without, whatever the network proposes."""

import pytest
import torch
from amortised_problems import ExactGaussian, TwoBumps, narrow_at
from auto_answers import labels, spent
from problems import linear_gaussian_problem, mirrored_vae

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import Auto


def stages_of(posterior: cc.Posterior) -> list[str]:
    return [stage.name for stage in posterior.trace if stage.decodes.any()]


def test_draws_of_the_exact_posterior_are_trusted_at_once(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=8)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    posterior = cc.condition(problem.vae.with_amortised(made), problem.evidence, seed=0)
    assert stages_of(posterior) == ["amortised"]
    assert labels(posterior) == ["trusted"] * 8
    error = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert (error < 4 * posterior.log_evidence_error + 1e-3).all()
    bound = posterior.c_elbo - 4 * posterior.c_elbo_error
    assert (bound <= problem.exact_log_evidence() + 1e-3).all()
    without = cc.condition(problem.vae, problem.evidence, seed=0)
    assert (spent(posterior) <= spent(without)).all()


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.5, 4.0])
def test_proposals_that_are_too_narrow_or_too_wide_are_weighed(factor, without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=8)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem, factor), Gaussian())
    posterior = cc.condition(problem.vae.with_amortised(made), problem.evidence, seed=0)
    error = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert (error < 4 * posterior.log_evidence_error + 1e-3).all()
    assert posterior.trusted.all()


@pytest.mark.parametrize("log_scale", [-2.0, 0.0])
def test_a_network_that_is_far_off_leaves_queries_to_other_stages(log_scale, without_closed_form):
    problem = linear_gaussian_problem(6, 12, scale=0.2, batch=4)
    vae = problem.vae.with_amortised(narrow_at(problem.vae, 3 * torch.ones(6), log_scale))
    posterior = cc.condition(vae, problem.evidence, seed=0)
    assert set(stages_of(posterior)) > {"amortised"}
    error = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert ((error < 0.1) | ~posterior.trusted).all()
    assert posterior.trusted.all()


def test_a_network_is_not_asked_where_no_particles_could_check_it(without_closed_form):
    problem = linear_gaussian_problem(6, 12, scale=0.002, batch=1, dtype=torch.double)
    made = narrow_at(problem.vae, torch.zeros(6, dtype=torch.double), -5.0)
    posterior = cc.condition(problem.vae.with_amortised(made), problem.evidence, seed=0)
    assert "amortised" not in stages_of(posterior)
    error = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert ((error < 0.1) | ~posterior.trusted).all()


@pytest.mark.parametrize("log_scale", [-3.0, -1.0])
def test_a_network_that_knows_one_of_two_modes_loses_none(log_scale):
    """p(z|x) = p(−z|x): half of the draws lie on each side."""
    vae = mirrored_vae(8, 16, 0.3, seed=2)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(8, generator=generator)
    vae = vae.with_amortised(narrow_at(vae, z, log_scale))
    data = vae.decode(z) + 0.3 * torch.randn(4, 16, generator=generator)
    posterior = cc.condition(vae, cc.Evidence(data, torch.arange(16) < 12), seed=0)
    assert labels(posterior) == ["trusted"] * 4
    share = (posterior.draws @ z > 0).float().mean(0)
    assert ((share - 0.5).abs() < 0.1).all()
    evidence = cc.Evidence(data, torch.arange(16) < 12)
    without = cc.condition(vae.with_amortised(None), evidence, seed=0)
    assert without.trusted.all()
    assert ((posterior.log_evidence - without.log_evidence).abs() < 0.15).all()


@pytest.mark.parametrize(
    "seed", [1, *[pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3)]]
)
@pytest.mark.parametrize(
    ("width", "share"), [(0.26, 0.6), pytest.param(0.3, 0.2, marks=pytest.mark.slow)]
)
def test_a_narrow_mode_is_missed_no_more_often_than_without_a_network(width, share, seed):
    """All 16 first climbs end in the wide mode, which is all that the network knows."""
    bumps = TwoBumps(16, (0.6, width), share)
    vae = cc.VAE(bumps, 16, cc.likelihoods.Gaussian(scale=1.0))
    evidence = cc.Evidence(torch.zeros(1), torch.tensor([True]))

    def is_wrong(made: cc.VAE) -> bool:
        posterior = cc.condition(made, evidence, seed=seed)
        error = (posterior.log_evidence - bumps.log_evidence).abs()
        return bool(posterior.trusted & (error > 0.1))

    assert not is_wrong(vae.with_amortised(bumps.network(vae))) or is_wrong(vae)


def test_queries_with_other_evidence_are_answered_as_without_it(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=2, dtype=torch.double)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    noise = torch.tensor([[0.0], [0.5]], dtype=torch.double)
    noisy = cc.Evidence(problem.evidence.values, problem.evidence.mask, noise=noise)
    with_network = cc.condition(problem.vae.with_amortised(made), noisy, seed=0)
    (stage,) = [stage for stage in with_network.trace if stage.name == "amortised"]
    assert (stage.decodes > 0).tolist() == [True, False]
    alone = cc.condition(problem.vae, noisy[1:], seed=0)
    torch.testing.assert_close(with_network.log_evidence[1:], alone.log_evidence)


def test_a_query_does_not_depend_on_others(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=3, dtype=torch.double)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    vae = problem.vae.with_amortised(made)
    together = cc.condition(vae, problem.evidence, seed=0)
    alone = cc.condition(vae, problem.evidence[1:2], seed=0)
    torch.testing.assert_close(together.draws[:, 1:2], alone.draws)
    torch.testing.assert_close(together.log_evidence[1:2], alone.log_evidence)


def test_a_budget_of_decodes_holds(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=3)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    vae = problem.vae.with_amortised(made)
    posterior = cc.condition(vae, problem.evidence, Auto(max_decodes=500), seed=0)
    assert (spent(posterior) <= 500).all()
    assert not posterior.trusted.any()
