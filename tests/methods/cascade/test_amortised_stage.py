"""`Auto` with an amortised cross-coder: as right as without, whatever the network proposes."""

import math

import pytest
import torch
from amortised_problems import Constant, ExactGaussian, TwoBumps, narrow_at
from auto_answers import labels, spent
from problems import LinearGaussianProblem, linear_gaussian_problem, mirrored_vae

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.masks.distributions import Given
from crosscoding.methods import Auto
from crosscoding.methods.cascade.amortised_stage import AmortisedStage
from crosscoding.model.amortised_coverage import Coverage, CoveredShare
from crosscoding.model.amortised_record import Record


def stages_of(posterior: cc.Posterior) -> list[str]:
    return [stage.name for stage in posterior.trace if stage.decodes.any()]


def vouched(
    made: cc.Amortised,
    masks: cc.masks.MaskDistribution | None = None,
    least: float = -math.inf,
    most: float = math.inf,
) -> cc.Amortised:
    """The same for which twins are said to vouch, if log p(x) is in a range."""
    part = CoveredShare(0.0, 1.0, 400, 0, least, most)
    coverage = Coverage(cc.masks.mixed() if masks is None else masks, (part,))
    return made.with_record(Record("made", 1, 1.0, 0.0, 0.0, 0.0, (), coverage))


def exact_network(problem: LinearGaussianProblem, **said) -> cc.VAE:
    """The model of a problem with its exact posterior, for which twins vouch."""
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    return problem.vae.with_amortised(vouched(made, **said))


def assert_exact(posterior: cc.Posterior, problem: LinearGaussianProblem) -> None:
    assert posterior.trusted.all()
    error = (posterior.log_evidence - problem.exact_log_evidence()).abs()
    assert (error < 4 * posterior.log_evidence_error + 1e-3).all()


def test_where_twins_vouch_for_it_draws_suffice(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=8)
    posterior = cc.condition(exact_network(problem), problem.evidence, seed=0)
    assert stages_of(posterior) == ["amortised"]
    assert (spent(posterior) > 1200).all()  # with a few climbs
    assert (spent(posterior) < 1500).all()
    assert_exact(posterior, problem)
    words = "; ".join(posterior.verdicts[0].reasons)
    assert "on average over simulated twins, at most 0.7% of p(z|x) lies outside" in words
    assert posterior.stats["vouched"].all()


def test_fewer_draws_suffice_for_intervals(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=2)
    posterior = cc.condition(
        exact_network(problem), problem.evidence, Auto(purpose="interval"), seed=0
    )
    assert (spent(posterior) < 850).all()
    assert [verdict.purposes["interval"] for verdict in posterior.verdicts] == ["trusted"] * 2


def test_vouched_queries_reach_where_particles_do_not(without_closed_form):
    problem = linear_gaussian_problem(6, 12, scale=0.002, batch=2, dtype=torch.double)
    posterior = cc.condition(exact_network(problem), problem.evidence, seed=0)
    assert stages_of(posterior) == ["amortised"]
    assert_exact(posterior, problem)


@pytest.mark.parametrize(
    "said", [{"masks": Given(torch.arange(12)[None] == 5)}, {"least": 100.0}, {"most": -1000.0}]
)
def test_evidence_unlike_that_of_the_twins_is_answered_as_without_it(said, without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=2)
    posterior = cc.condition(exact_network(problem, **said), problem.evidence, seed=0)
    without = cc.condition(problem.vae, problem.evidence, seed=0)
    assert torch.equal(posterior.draws, without.draws)
    assert torch.equal(posterior.log_evidence, without.log_evidence)


def test_a_trained_network_without_twins_is_not_asked(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=2)
    made = cc.Amortised.of(problem.vae, ExactGaussian(problem), Gaussian())
    made = made.with_record(Record("made", 1, 1.0, 0.0, 0.0, 0.0, (), None))
    posterior = cc.condition(problem.vae.with_amortised(made), problem.evidence, seed=0)
    assert "amortised" not in stages_of(posterior)


def test_a_limit_of_time_leaves_vouched_answers_right(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=3)
    auto = Auto(max_seconds=600.0)
    posterior = cc.condition(exact_network(problem), problem.evidence, auto, seed=0)
    assert stages_of(posterior) == ["amortised"]
    assert_exact(posterior, problem)


def test_few_decodes_are_enough_where_twins_vouch(without_closed_form):
    problem = linear_gaussian_problem(6, 12, batch=3)
    vae, auto = exact_network(problem), Auto(max_decodes=7000)
    posterior = cc.condition(vae, problem.evidence, auto, seed=0)
    assert_exact(posterior, problem)
    assert (spent(posterior) <= 7000).all()
    posterior = cc.condition(vae, problem.evidence, Auto(max_decodes=500), seed=0)
    assert (spent(posterior) <= 500).all()
    assert not posterior.trusted.any()


def test_ctrl_c_leaves_the_answers_of_the_bank(without_closed_form, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    problem = linear_gaussian_problem(6, 12, batch=3)
    vae = exact_network(problem)
    monkeypatch.setattr(AmortisedStage, "_vouched", interrupted)
    posterior = cc.condition(vae, problem.evidence, seed=0)
    assert posterior.log_evidence.isfinite().all()
    assert posterior.mean().isfinite().all()
    assert not posterior.trusted.any()


@pytest.mark.parametrize("latent", [4, 8, 16])
def test_a_mode_that_twins_overlooked_is_found(latent):
    """p(z|x) = p(−z|x), of which the network knows one side, by a fit to draws of `Auto`.

    In four dimensions points of the bank show the other side, in 16 only climbs.
    """
    vae, num = mirrored_vae(latent, 2 * latent, 1.0, seed=2), 2 * latent
    z = torch.tensor([1.0, -0.5, 0.5, 1.0]).repeat(latent // 4)
    noise = torch.randn(1, num, generator=torch.Generator().manual_seed(5))
    evidence = cc.Evidence(vae.decode(z) + noise, torch.ones(num, dtype=torch.bool))
    without = cc.condition(vae, evidence, seed=0)
    side = (without.draws * (without.draws @ z).sign()[..., None])[:, 0]
    root, (row, column) = (
        torch.linalg.cholesky(side.mT.cov()),
        torch.tril_indices(latent, latent, -1),
    )
    numbers = torch.cat([side.mean(0), root.diagonal().log(), root[row, column]])
    made = vouched(cc.Amortised.of(vae, Constant(numbers), Gaussian()))
    posterior = cc.condition(vae.with_amortised(made), evidence, seed=0)
    assert labels(posterior) == labels(without)
    assert abs(float(posterior.log_evidence - without.log_evidence)) < 0.15
    assert abs(float((posterior.draws @ z > 0).float().mean()) - 0.5) < 0.1


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
