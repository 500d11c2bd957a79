"""Laplace's approximation in narrow directions at draws from the others: weights and log p(x)."""

import math
from dataclasses import replace

import pytest
import torch
from bent_problem import SCALE, bent, exact_log_evidence
from problems import linear_gaussian_problem, points, seeded

import crosscoding as cc
from crosscoding.clock import Clock
from crosscoding.diagnostics import importance_ess, log_mean_exp
from crosscoding.methods.numerics.fibres import Fibres, across
from crosscoding.methods.numerics.partial_laplace import Directions, PartialLaplace, num_narrow


def proposal_of(target: cc.VAETarget) -> PartialLaplace:
    curvature = target.curvature(points(5, target.num_queries, target.latent_dim))
    return PartialLaplace.from_prior(target, Directions.of(curvature, target.like))


def test_linear_evidence_has_even_weights_and_an_exact_log_evidence():
    scale = torch.full((40,), 2.0)
    scale[:4] = SCALE
    problem = linear_gaussian_problem(32, 40, scale, batch=3, dtype=torch.double)
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[:, :4], mask[2, 3] = True, False
    target = cc.VAETarget(problem.vae, cc.Evidence(problem.truth, mask)).flatten()
    assert num_narrow(target.curvature(points(1, 3, 32).double())).tolist() == [4, 4, 3]
    draws = proposal_of(target).draw(500, generator=seeded(0))
    exact = torch.distributions.MultivariateNormal
    weight, bias = (parameter[:4] for parameter in problem.vae.decoder.parameters())
    for query, kept in enumerate([4, 4, 3]):
        own = weight[:kept]
        covariance = own @ own.mT + SCALE**2 * torch.eye(kept)
        wanted = exact(bias[:kept], covariance).log_prob(problem.truth[query, :kept].double())
        found, error = log_mean_exp(draws.log_weights[:, query])
        assert (found - wanted).abs() < 4 * error + 1e-6
        assert error < 0.02  # only _WIDER and the shares of the prior make weights uneven


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_log_evidence_of_a_bent_and_narrow_element_is_right(bend):
    values = (0.2, 1.5)
    target = bent(bend, values).flatten()
    proposal = proposal_of(target)
    proposal = proposal.fitted_to(proposal.draw(300, generator=seeded(1)))
    draws = proposal.draw(2000, generator=seeded(0))
    found, error = log_mean_exp(draws.log_weights)
    assert (importance_ess(draws.log_weights) > 100).all()
    assert ((found - exact_log_evidence(bend, values)).abs() < 4 * error).all()


def test_weights_at_draws_are_those_of_the_draws():
    target = bent(0.3, (0.2, 1.5)).flatten()
    proposal = proposal_of(target)
    proposal = proposal.fitted_to(proposal.draw(200, generator=seeded(1)))
    draws = proposal.draw(50, generator=seeded(0))
    again = proposal.log_weights_at(draws.z, generator=seeded(3))
    torch.testing.assert_close(again, draws.log_weights, atol=0.01, rtol=0.0)


def test_several_starts_find_the_solutions_that_one_leaves_out():
    values = (0.2, 1.5)
    target = bent(1.0, values).flatten()
    proposal = replace(proposal_of(target), num_starts=12)
    proposal = proposal.fitted_to(proposal.draw(300, generator=seeded(1)))
    found, error = log_mean_exp(proposal.draw(2000, generator=seeded(0)).log_weights)
    assert ((found - exact_log_evidence(1.0, values)).abs() < 4 * error).all()


def test_climbs_from_other_starts_end_at_the_other_solution():
    target = bent(0.0, (0.7,), folded=True).flatten()
    proposal = proposal_of(target)
    draws = proposal.draw(200, generator=seeded(0))
    beside = proposal.beside(draws.z, generator=seeded(2))
    flipped = (draws.z[..., 0] - 0.5) * (beside[..., 0] - 0.5) < 0
    assert 0.3 < flipped.double().mean() < 0.7
    limit = draws.log_weights.amax(0) + 1
    assert (proposal.log_weights_at(beside, generator=seeded(3)) > limit).double().mean() > 0.1


def test_fibres_have_the_density_and_curvature_of_their_target():
    target = bent(0.5, (0.2, 1.5, -0.3)).flatten()
    directions = torch.linalg.qr(points(3, 24, 2))[0]
    u = points(4, 3, 24)
    u = u - (directions @ across(directions, u)[..., None])[..., 0]
    fibres = Fibres(target, u, directions)
    v = points(12, 2)[None]
    z = fibres.at(v).unflatten(1, (4, 3))[0]
    log_prior_of_u = target.log_prior(u) + math.log(2 * math.pi)  # of 22 coordinates
    wanted = target.log_joint(z) - log_prior_of_u
    torch.testing.assert_close(fibres.log_joint(v)[0].unflatten(0, (4, 3)), wanted)
    whole = directions.mT.double() @ target.curvature(z) @ directions.double()
    found = fibres.curvature(v)[0].unflatten(0, (4, 3))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-3)


def test_draws_of_a_query_do_not_depend_on_others_with_more_narrow_directions():
    problem = linear_gaussian_problem(32, 40, SCALE, batch=2, dtype=torch.double)
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, :1], mask[1, :4] = True, True
    target = cc.VAETarget(problem.vae, cc.Evidence(problem.truth, mask)).flatten()
    alone = target.select(torch.tensor([0]))
    both, own = proposal_of(target), proposal_of(alone)
    assert both.directions.narrow.shape[-1] == 4
    assert own.directions.narrow.shape[-1] == 1
    for num_starts in (1, 3):
        both, own = replace(both, num_starts=num_starts), replace(own, num_starts=num_starts)
        together = both.draw(40, generator=seeded(0)).select(torch.tensor([0]))
        separate = own.draw(40, generator=seeded(0))
        torch.testing.assert_close(together.z, separate.z)
        torch.testing.assert_close(together.log_weights, separate.log_weights)
        torch.testing.assert_close(together.decodes, separate.decodes)


def test_few_directions_are_narrow_and_curvatures_that_overflow_count_as_the_priors():
    curvature = torch.eye(40, dtype=torch.double).expand(3, 2, 40, 40).clone()
    curvature[:, 0] *= 100.0
    curvature[:, 1, 0, 0] = math.inf
    assert num_narrow(curvature).tolist() == [40, 0]
    directions = Directions.of(curvature, points(1))
    assert directions.narrow.shape == (2, 40, 5)
    assert directions.narrow[0].any(0).all()
    assert not directions.narrow[1].any()


def test_planes_climbed_in_a_few_at_a_time_have_the_same_draws():
    target = bent(0.3, (0.2, 1.5)).flatten()
    proposal = proposal_of(target)
    whole = proposal.draw(50, generator=seeded(0))
    little = Clock(max_bytes=2**17)  # 64 MiB of 1 GiB is then 8 KiB
    pieces = replace(proposal, target=target.timed(little)).draw(50, generator=seeded(0))
    torch.testing.assert_close(pieces.z, whole.z)
    torch.testing.assert_close(pieces.log_weights, whole.log_weights, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(pieces.decodes, whole.decodes)
