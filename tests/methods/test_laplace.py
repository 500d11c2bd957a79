"""Laplace: exact if p(z|x) is Gaussian; finds every mode once, with its share."""

import math

import pytest
import torch
from problems import (
    blocks,
    ill_conditioned_problem,
    linear_gaussian_problem,
    mirrored_problem,
    mixture_target,
    seeded,
)
from torch.distributions import MultivariateNormal

import crosscoding as cc
from crosscoding.methods import Laplace, NaturalGradient
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.numerics.gauss_newton import Modes, climb, positive

CHEAP = {"num_starts": 2, "num_fresh": 100}  # for the tests of every method


@pytest.mark.parametrize("latent", [2, 8, 64])
def test_linear_gaussian_answers_are_exact(latent):
    problem = linear_gaussian_problem(
        latent, data_dim=latent + 6, scale=0.3, batch=3, dtype=torch.double
    )
    posterior = cc.condition(problem.vae, problem.evidence, Laplace(num_starts=1), seed=0)
    exact = problem.exact_log_evidence()
    # The climb stops 1e-3 nats from the top at most; half of that on average over draws.
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(posterior.c_elbo, exact, rtol=0, atol=1e-3)
    assert (posterior.ess > 990).all()
    assert posterior.stats["modes"].tolist() == [1, 1, 1]
    z = torch.randn(5, 3, latent, generator=seeded(1), dtype=torch.double)
    expected = MultivariateNormal(*problem.exact_posterior()).log_prob(z)
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=1e-3, atol=0.1)


def test_climbs_in_hundreds_of_dimensions_work_on_several_threads():
    """Batched LU with 200 rows or more fails on some builds of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        problem = linear_gaussian_problem(200, data_dim=20, scale=0.3, batch=4)
        posterior = cc.condition(problem.vae, problem.evidence, Laplace(num_starts=1), seed=0)
    finally:
        torch.set_num_threads(threads)
    exact = problem.exact_log_evidence()
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize("condition", [1e4, 1e6, 1e8, 1e10, 1e12, 1e14])
@pytest.mark.parametrize("latent", [2, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("method", [Laplace(), NaturalGradient()], ids=["laplace", "natural"])
@pytest.mark.slow
def test_ill_conditioned_answers_are_right_or_not_trusted(method, dtype, latent, condition):
    target, exact = ill_conditioned_problem(latent, condition, dtype)
    posterior = cc.infer(target, method, seed=0)
    off = (posterior.log_evidence - exact).abs()
    assert posterior.draws.isfinite().all()
    # In float32 the decoder rounds x to 1e-7: at 1e12 a tenth of its scale, and at 1e14 all of it.
    if dtype == torch.double or condition <= 1e12:
        unsure = posterior.ess < 600
        assert unsure or off < 4 * posterior.log_evidence_error + 0.02
    if isinstance(method, NaturalGradient) and condition <= (
        1e12 if dtype == torch.double else 1e10
    ):
        assert off < 0.01
        assert posterior.ess > 950


def test_steps_on_a_gaussian_leave_only_what_damping_leaves():
    """Gauss–Newton is Newton here: what is left after a step is what damping left, ever less."""
    problem = linear_gaussian_problem(8, data_dim=20, batch=3, dtype=torch.double)
    target, starts = problem.target.flatten(), torch.zeros(1, 3, 8, dtype=torch.double)
    mean, covariance = problem.exact_posterior()
    gaps = []
    for steps in (0, 1, 2, 3):
        gap = climb(target, starts, steps).z[0] - mean
        gaps.append(torch.einsum("bi,bij,bj->b", gap, torch.linalg.inv(covariance), gap).sqrt())
    # Damping starts at 0.1 of the diagonal, which narrow directions feel little and wide ones
    # more, and falls to a fifth with each step.
    assert (gaps[1] < 0.3 * gaps[0]).all()
    assert (gaps[2] < 0.3 * gaps[1]).all()
    assert (gaps[3] < 0.1 * gaps[2]).all()


def test_a_climb_that_has_arrived_takes_no_more_steps():
    problem = linear_gaussian_problem(4, data_dim=10, batch=2, dtype=torch.double)
    mean, _ = problem.exact_posterior()
    starts = torch.stack([mean[0], mean[1] + 30.0])[None]
    modes = climb(problem.target.flatten(), starts, 50)
    assert modes.steps[0, 0] == 1
    assert 1 < modes.steps[0, 1] < 10
    torch.testing.assert_close(modes.log_joint[0], problem.target.log_joint(modes.z)[0])


def test_a_climb_never_goes_down():
    target = mixture_target(torch.double).flatten()
    starts = 3 * torch.randn(30, 1, 2, generator=seeded(0), dtype=torch.double)
    before = target.log_joint(starts)
    for steps in (1, 3, 10):
        after = climb(target, starts, steps).log_joint
        assert (after >= before - 1e-12).all()
        before = after


def test_climbs_to_one_mode_go_on_as_one():
    problem = linear_gaussian_problem(4, data_dim=10, batch=2, dtype=torch.double)
    target, mean = problem.target.flatten(), problem.exact_posterior()[0]
    starts = 3 * torch.randn(16, 2, 4, generator=seeded(0), dtype=torch.double)
    together = climb(target, starts, 50)
    alone = [climb(target, start[None], 50) for start in starts]
    assert (together.log_weights()[1].amax(0) == 16).all()
    torch.testing.assert_close(together.z, mean.expand(16, 2, 4), rtol=0, atol=0.05)
    assert (together.z == together.z[0]).all()
    assert (together.decodes < 0.6 * sum(one.decodes for one in alone)).all()


def test_climbs_that_join_end_where_they_would_have_ended_alone():
    target = mixture_target(torch.double).flatten()
    starts = 3 * torch.randn(40, 1, 2, generator=seeded(0), dtype=torch.double)
    together = climb(target, starts, 50)
    for start, z in zip(starts, together.z, strict=True):
        torch.testing.assert_close(climb(target, start[None], 50).z[0], z, rtol=0, atol=0.05)


def test_climbs_of_a_query_do_not_depend_on_those_of_others():
    problem = linear_gaussian_problem(4, data_dim=10, batch=3, dtype=torch.double)
    target = problem.target.flatten()
    starts = torch.randn(8, 3, 4, generator=seeded(1), dtype=torch.double)
    starts[:, 0] *= 100.0
    together = climb(target, starts, 4)
    for query in range(3):
        alone = climb(target.select(torch.tensor([query])), starts[:, [query]], 4)
        of_query = together.select(torch.tensor([query]))
        torch.testing.assert_close(vars(of_query), vars(alone))


def test_a_climb_from_where_the_density_overflows_stays_finite():
    target = cc.DensityTarget(lambda z: -(1e3 * z.square()).exp().sum(-1), latent_dim=1).flatten()
    starts = torch.tensor([[[2.0]], [[0.01]]])  # log p and its gradient are −inf at the first
    modes = climb(target, starts, 20)
    assert modes.z.isfinite().all()
    assert abs(float(modes.z[1])) < 0.001


def test_both_modes_of_the_mirrored_problem_have_half_the_weight():
    problem = mirrored_problem(torch.double)
    posterior = cc.condition(problem.vae, problem.evidence, Laplace(num_starts=16), seed=0)
    assert posterior.stats["modes"] == 2
    share = (posterior.log_weights.exp() * (posterior.draws @ problem.mode > 0)).sum(0)
    # 5 standard errors of a half at the ESS.
    assert (share - 0.5).abs() < 5 * 0.5 * posterior.ess.rsqrt()
    z = problem.mode + 0.1 * torch.randn(5, 2, generator=seeded(0), dtype=torch.double)
    # The climbs end within 1e-3 nats of the top: at slightly different places of it.
    torch.testing.assert_close(posterior.log_prob(z), posterior.log_prob(-z), rtol=0.02, atol=0.2)


def test_modes_of_a_mixture_have_their_masses():
    target = mixture_target(torch.double)
    posterior = cc.infer(target, Laplace(num_starts=32), seed=0)
    assert posterior.stats["modes"] >= 2  # the two that touch may share one
    share = (posterior.log_weights.exp() * (posterior.draws.sum(-1) > 5)).sum(0)
    assert (share - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75) * posterior.ess.rsqrt()
    assert posterior.log_evidence.abs() < 5 * posterior.log_evidence_error


def test_modes_found_twice_count_once():
    z = torch.tensor([[0.0, 0.0], [0.05, 0.0], [5.0, 0.0], [0.0, 0.05], [5.0, 0.01]]).double()
    precision = (4 * torch.eye(2, dtype=torch.double)).expand(5, 1, 2, 2)
    log_joint = torch.tensor([-1.0, -1.01, -2.0, -1.02, -2.01]).double()[:, None]
    modes = Modes(z[:, None], log_joint, precision, torch.ones(5, 1), torch.zeros(1))
    log_weights, climbs = modes.log_weights()
    assert climbs[:, 0].tolist() == [3, 0, 2, 0, 0]
    assert log_weights[[1, 3, 4], 0].tolist() == [-math.inf] * 3
    expected = torch.tensor([-1.0, -2.0]).double().log_softmax(0)
    torch.testing.assert_close(log_weights[[0, 2], 0], expected)


def test_a_wider_mode_weighs_more():
    """Its share is proportional to 1 / sqrt |H|."""
    z = torch.tensor([[0.0, 0.0], [9.0, 0.0]]).double()[:, None]
    precision = torch.stack([torch.eye(2), 16 * torch.eye(2)]).double()[:, None]
    modes = Modes(z, torch.zeros(2, 1).double(), precision, torch.ones(2, 1), torch.zeros(1))
    weights = modes.log_weights()[0].exp()[:, 0]
    torch.testing.assert_close(weights, torch.tensor([16 / 17, 1 / 17]).double())


def test_duplicates_are_merged_for_each_query_by_itself():
    z = torch.tensor([[[0.0], [0.0]], [[0.1], [8.0]]]).double()
    none = torch.zeros(2, 2).double()
    modes = Modes(z, none, torch.ones(2, 2, 1, 1).double(), torch.ones(2, 2), none[0])
    assert modes.log_weights()[1].tolist() in ([[2, 1], [0, 1]], [[0, 1], [2, 1]])


def test_starts_agree_with_the_evidence_and_lie_apart():
    problem = mirrored_problem()
    target = problem.target.flatten()
    starts = spread_starts(target, 16, generator=seeded(0))
    assert starts.shape == (16, 1, 2)
    _, log_likelihood = target.log_likelihood_of_bank()
    torch.testing.assert_close(target.log_likelihood(starts)[0], log_likelihood.amax(0))
    sides = (starts @ problem.mode > 0).float().mean()
    assert 0.25 < sides < 0.75
    prior = (problem.target.log_likelihood(torch.randn(200, 2, generator=seeded(1)))).median()
    assert target.log_likelihood(starts).median() > prior


def test_a_saddle_is_made_positive_and_the_rest_left_as_it_is():
    curvature = torch.stack([torch.diag(torch.tensor([2.0, -3.0])), torch.eye(2)])
    fixed = positive(curvature, prior_scale=1.0)
    torch.testing.assert_close(fixed[0], torch.diag(torch.tensor([2.0, 3.0])))
    assert torch.equal(fixed[1], torch.eye(2))
    overflown = positive(torch.full((1, 2, 2), math.inf), prior_scale=2.0)
    torch.testing.assert_close(overflown[0], torch.eye(2) / 4)
    flat = positive(torch.diag(torch.tensor([1.0, 0.0]))[None], prior_scale=2.0)
    torch.testing.assert_close(flat[0].diagonal(), torch.tensor([1.0, 1e-3 / 4]))


def test_an_answer_is_not_trusted_if_nothing_has_searched_for_other_modes():
    posterior = cc.infer(blocks(8), Laplace(), seed=0)
    assert not posterior.trusted


@pytest.mark.parametrize("wrong", [{"num_starts": 0}, {"steps": 0}, {"num_fresh": 1}], ids=str)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected num_starts, steps >= 1 and num_fresh >= 2"):
        Laplace(**wrong)


def test_modes_found_again_count_where_they_were_found_best():
    """As comparing them pair by pair, best first, has it."""
    generator = seeded(3)
    place = torch.randint(4, (12, 3), generator=generator)
    z = 3 * torch.randn(4, 3, 2, generator=generator).gather(0, place[..., None].expand(-1, -1, 2))
    z = z + 0.4 * torch.randn(12, 3, 2, generator=generator)
    width = 0.5 + torch.rand(12, 3, generator=generator).double()
    precision = width[..., None, None] * torch.eye(2).double()
    log_joint = torch.randn(12, 3, generator=generator)
    nothing = torch.zeros_like(log_joint)
    log_weights, climbs = Modes(z, log_joint, precision, nothing, nothing[0]).log_weights()
    log_mass = log_joint - width.log().float()
    for query in range(3):
        wanted = torch.ones(12)
        order = log_mass[:, query].argsort(descending=True).tolist()
        for position, best in enumerate(order):
            for other in order[position + 1 :]:
                gap = (z[best, query] - z[other, query]).square().sum()
                far = gap * width[[best, other], query].amax() >= 1
                if wanted[best] and wanted[other] and not far:
                    wanted[best], wanted[other] = wanted[best] + wanted[other], 0.0
        assert climbs[:, query].tolist() == wanted.tolist()
        assert 0 < (wanted == 0).sum() < 11
    kept = torch.where(climbs > 0, log_mass, -torch.inf)
    torch.testing.assert_close(log_weights, kept.log_softmax(0))
