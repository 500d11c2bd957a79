"""Moves, fits and counted states of discrete latents, against sums over all states."""

import math

import pytest
import torch
from discrete_models import by_brute_force, every_state, model, priors, queries
from problems import seeded

from crosscoding.methods.numerics.autoregressive_fit import AutoregressiveFit
from crosscoding.methods.numerics.discrete_annealing import DiscreteAnnealing
from crosscoding.methods.numerics.discrete_look import explored, looked
from crosscoding.methods.numerics.informed_moves import adapted, moved, redrawn
from crosscoding.methods.numerics.known_states import KnownStates, Stratified, keys_of
from crosscoding.progress import silent
from crosscoding.target.discrete_target import DiscreteTarget

PRIORS = priors()
every_prior = pytest.mark.parametrize("name", PRIORS)


def problem(name, strength=3.0, num=3):
    """A target, all z, and the exact p(z|x), (N, B)."""
    vae = model(PRIORS[name], strength)
    evidence = queries(vae, num)
    z, log_joint = by_brute_force(vae, evidence)
    target = DiscreteTarget(vae, evidence).flatten().prepare()
    return target, z, log_joint - log_joint.logsumexp(0), log_joint.logsumexp(0)


def means(target, z, log_p):
    """E[inputs|x], (B, inputs)."""
    inputs = target.prior.inputs_of(z).flatten(1)
    return torch.einsum("sb,se->be", log_p.exp().float(), inputs)


@every_prior
def test_targets_agree_with_decoding_every_state(name):
    target, z, log_p, log_evidence = problem(name)
    log_joint = (log_p + log_evidence).float()
    shared = z[:, None].expand(-1, 3, -1)
    pairwise = target.log_prior(z)[:, None] + target.pairwise_log_likelihood(z)
    torch.testing.assert_close(target.log_joint(shared), log_joint, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairwise, log_joint, rtol=1e-4, atol=1e-4)
    points = target.points(shared.contiguous(), torch.ones(3))
    together = points.log_reference + points.log_ratio
    torch.testing.assert_close(together, log_joint, rtol=1e-4, atol=1e-4)


@every_prior
def test_moves_leave_the_density_invariant(name):
    target, z, _, _ = problem(name, 6.0)
    num, here = 20_000, torch.tensor([0.3, 1.0, 1.0])
    log_prior = target.log_prior(z)[:, None]
    tempered = log_prior + here * target.pairwise_log_likelihood(z)
    tempered = tempered - tempered.logsumexp(0)
    cumulative = tempered.double().exp().cumsum(0).mT.contiguous()
    chance = torch.rand(3, num, generator=seeded(0), dtype=torch.double)
    place = torch.searchsorted(cumulative, chance * cumulative[:, -1:]).mT
    points = target.points(z[place.clamp_max(len(z) - 1)], here)
    cost = torch.tensor([0.0, 1.0, 3.0])
    for _ in range(3):
        points, acceptance = moved(target, points, here, cost, generator=seeded(1))
        assert (acceptance > 0).all()
    exact = means(target, z, tempered)
    found = target.prior.inputs_of(points.z).flatten(2).mean(0)
    error = 5 * (exact * (1 - exact) / num).sqrt() + 2e-4
    assert ((found - exact).abs() < error).all()


def test_a_larger_cost_changes_fewer_places():
    target, *_ = problem("pairs")
    z = target.draw_prior(500, generator=seeded(0))[:, None].expand(-1, 3, -1).contiguous()
    points = target.points(z, torch.ones(3))
    changed = []
    for cost in (0.0, 2.0, 5.0):
        there, _ = moved(target, points, torch.ones(3), torch.full((3,), cost), generator=seeded(1))
        changed.append((there.z != z).float().sum(-1).mean().item())
    assert changed[0] > changed[1] > changed[2]
    assert (adapted(torch.ones(2), torch.tensor([0.1, 0.9])) > 1).tolist() == [True, False]


@every_prior
def test_fits_are_normalised_and_draw_from_their_density(name):
    target, z, log_p, _ = problem(name)
    shared = z[:, None].expand(-1, 3, -1)
    fit = AutoregressiveFit.to(shared, log_p.float(), target.prior.num_values)
    log_q = fit.log_density(target.prior.inputs_of(shared))
    assert (log_q.double().logsumexp(0).abs() < 1e-4).all()
    exact = means(target, z, log_q)
    draws = fit.sample(20_000, generator=seeded(0))
    found = target.prior.inputs_of(draws).flatten(2).mean(0)
    assert ((found - exact).abs() < 5 * (exact * (1 - exact) / 20_000).sqrt() + 1e-3).all()


def test_a_fit_recovers_a_density_of_its_own_kind():
    target, z, *_ = problem("bernoulli")
    log_p = target.log_prior(z)[:, None].expand(-1, 3)  # independent: the fit can be exact
    shared = z[:, None].expand(-1, 3, -1)
    # equal points of many: the penalty, relative to their number, hardly counts
    fit = AutoregressiveFit.to(shared, log_p.contiguous(), 2)
    exact = means(target, z, log_p)
    log_q = fit.log_density(target.prior.inputs_of(shared))
    assert (
        means(target, z, log_q) - exact
    ).abs().max() < 0.05  # a tenth is drawn from shrunk logits


@pytest.mark.slow
@every_prior
def test_redrawn_points_leave_the_density_invariant(name):
    target, z, log_p, _ = problem(name)
    shared, here = z[:, None].expand(-1, 3, -1), torch.ones(3)
    fit = AutoregressiveFit.to(shared, (0.5 * log_p).float(), target.prior.num_values)
    points = target.points(fit.sample(8000, generator=seeded(0)), here, fit)
    for step in range(30):
        draws = fit.sample(8000, generator=seeded(step + 1))
        draws = draws[torch.randperm(8000, generator=seeded(step))]
        points, _ = redrawn(target, points, here, fit, draws, generator=seeded(step))
    exact = means(target, z, log_p)
    found = target.prior.inputs_of(points.z).flatten(2).mean(0)
    assert ((found - exact).abs() < 6 * (exact * (1 - exact) / 8000).sqrt() + 3e-3).all()


@every_prior
def test_annealed_particles_estimate_log_evidence_from_prior_and_fit(name):
    target, _, _, log_evidence = problem(name)
    annealing = DiscreteAnnealing(16, num_chains=8, num_moves=16, ess_share=0.5)
    draws = target.draw_prior(4096, generator=seeded(0))
    log_likelihood = target.pairwise_log_likelihood(draws)
    shared = draws[:, None].expand(-1, 3, -1)
    first = annealing.run(target, shared, log_likelihood, generator=seeded(1), report=silent)
    fit = AutoregressiveFit.to(*first.weighted(), target.prior.num_values)
    start = fit.sample(4096, generator=seeded(2))
    start = start[torch.randperm(4096, generator=seeded(3))]
    ratio = target.log_joint(start) - fit.log_density(target.prior.inputs_of(start))
    second = annealing.run(target, start, ratio, fit, generator=seeded(4), report=silent)
    for particles in (first, second):
        value, error = particles.log_evidence
        assert particles.reached.all()
        assert ((value - log_evidence).abs() < 5 * error + 1e-3).all()
        points, log_weights = particles.weighted()
        torch.testing.assert_close(log_weights.exp().sum(0), torch.ones(3))
        joint = target.log_joint(points)
        torch.testing.assert_close(particles.log_joint.flatten(0, 1), joint, rtol=1e-4, atol=1e-4)


def test_equal_states_have_equal_numbers_and_others_do_not():
    z = every_state(PRIORS["pairs"])
    keys = keys_of(z)
    assert len(keys.unique()) == len(z)
    assert torch.equal(keys_of(z.flip(0)), keys.flip(0))


def test_known_states_are_distinct_and_the_likeliest():
    _, z, log_p, _ = problem("codes")
    twice = torch.cat([z, z])[:, None].expand(-1, 3, -1)
    log_joint = torch.cat([torch.full_like(log_p, -math.inf), log_p])  # the better of two counts
    known = KnownStates.among(twice, log_joint, 100)
    assert torch.equal(known.log_joint.sort(0).values, log_p.topk(100, dim=0).values.flip(0))
    shared = z[:, None].expand(-1, 3, -1)
    assert torch.equal(known.has(shared), log_p >= log_p.topk(100, dim=0).values[-1])
    padded = KnownStates.among(twice[:50], log_joint[len(z) :][:50], 80)
    assert padded.has(shared).sum(0).tolist() == [50] * 3
    assert padded.select(torch.tensor([1])).z.shape == (50, 1, 5)


@every_prior
def test_counted_states_and_draws_together_are_unbiased(name):
    target, z, log_p, log_evidence = problem(name, 6.0)
    shared = z[:, None].expand(-1, 3, -1)
    fit = AutoregressiveFit.to(shared, (0.3 * log_p).float(), target.prior.num_values)
    known = KnownStates.among(shared, (log_p + log_evidence).float(), 20)
    draws = fit.sample(8192, generator=seeded(0))
    weights = target.log_joint(draws) - fit.log_density(target.prior.inputs_of(draws))
    answer = Stratified.of(known, draws, weights)
    assert ((answer.log_evidence - log_evidence).abs() < 5 * answer.error).all()
    exact = means(target, z, log_p)
    inputs = target.prior.inputs_of(answer.z).flatten(2)
    found = torch.einsum("sb,sbe->be", answer.log_weights.exp(), inputs)
    assert (
        (found - exact).abs() < 6 * (exact * (1 - exact) / answer.ess[:, None]).sqrt() + 1e-3
    ).all()


def test_neighbours_of_a_narrow_mode_that_the_fit_lacks_are_counted():
    target, z, log_p, log_evidence = problem("pairs", 6.0)
    best = log_p.argmax(0)
    away = (z[:, None] != z[best]).sum(-1) > 4  # the fit sees only what is far from the mode
    shared = z[:, None].expand(-1, 3, -1)
    log_weights = torch.where(away, torch.zeros_like(log_p), -math.inf).float()
    fit = AutoregressiveFit.to(shared, log_weights, 2)
    top, place = (log_p + log_evidence).float().max(0, keepdim=True)
    known = KnownStates.among(z[place], top, 1)
    grown, _ = explored(target, fit, known, log_evidence.float())
    before, after = known.log_joint.logsumexp(0), grown.log_joint.logsumexp(0)
    assert (after >= before).all()
    assert (after > before).any()
    assert (after <= log_evidence + 1e-3).all()


def test_chains_from_the_prior_end_where_the_posterior_is():
    target, _, log_p, log_evidence = problem("pairs")
    ends, log_joint = looked(target, generator=seeded(0))
    torch.testing.assert_close(target.log_joint(ends), log_joint, rtol=1e-4, atol=1e-4)
    usual = (log_p.exp() * log_p).sum(0) + log_evidence
    assert ((log_joint.mean(0) - usual).abs() < 2.0).all()
