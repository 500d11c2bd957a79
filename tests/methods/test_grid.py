"""Grid against closed forms, and against a plain uniform grid written here."""

import math

import pytest
import torch
from problems import (
    MixtureTarget,
    linear_gaussian_problem,
    mirrored_problem,
    mixture_target,
    seeded,
)
from torch.nn import functional as F

import crosscoding as cc
from crosscoding.methods import Grid

CHEAP = {"tolerance": 0.02}  # for the tests of every method

TOLERANCE = 1e-3  # Grid's own default, in nats


def weighted_moments(posterior):
    """Mean and covariance over the cells, by their weights."""
    weights, draws = posterior.log_weights.double().exp(), posterior.draws.double()
    mean = torch.einsum("s...,s...i->...i", weights, draws)
    centred = draws - mean
    return mean, torch.einsum("s...,s...i,s...j->...ij", weights, centred, centred)


def peak(position, sd, prior_scale=1.0, mass=1.0):
    """A single Gaussian of known log-evidence as a bare target."""
    position = torch.tensor(position)
    return MixtureTarget(
        torch.ones(1),
        position[None],
        torch.full((1, len(position)), sd),
        prior_scale=prior_scale,
        log_evidence=math.log(mass),
    )


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@pytest.mark.parametrize("observed", ["half", "none", "all", "one element"])
def test_linear_gaussian_answers_are_exact(latent_dim, observed):
    problem = linear_gaussian_problem(latent_dim, data_dim=5, scale=1.0, batch=(2,))
    mask = {
        "half": problem.evidence.mask,
        "none": torch.tensor(False),
        "all": torch.tensor(True),
        "one element": torch.arange(5) == 2,
    }[observed]
    evidence = cc.Evidence(problem.truth, mask)
    posterior = cc.condition(problem.vae, evidence, Grid(), seed=0)
    exact = problem.exact_log_evidence(evidence)
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=2 * TOLERANCE)
    mean, covariance = problem.exact_posterior(evidence)
    found_mean, found_covariance = weighted_moments(posterior)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # A cell's centre stands for the cell, so the spread within it (width^2 / 12, under 2 % of a
    # standard deviation where most mass is) is missing; the mean has no such error.
    assert ((found_mean - mean) / sd).abs().max() < 0.01
    scale = sd[..., :, None] * sd[..., None, :]
    assert ((found_covariance - covariance) / scale).abs().max() < 0.02
    query = problem.exact_query_log_prob(evidence=evidence)
    torch.testing.assert_close(
        posterior.query_log_prob(problem.truth), query, rtol=0, atol=20 * TOLERANCE
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_settings_are_enough_for_a_gaussian_in_three_dimensions(seed):
    problem = linear_gaussian_problem(3, seed=seed)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    exact = problem.exact_log_evidence()
    torch.testing.assert_close(posterior.log_evidence, exact, rtol=0, atol=2 * TOLERANCE)


def test_a_smaller_tolerance_gives_a_smaller_error():
    problem = linear_gaussian_problem(2, dtype=torch.double)
    errors = []
    for tolerance in (0.1, 1e-3, 1e-5):
        method = Grid(tolerance=tolerance, max_cells=10**6)
        posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
        errors.append((posterior.log_evidence - problem.exact_log_evidence()).abs().max().item())
    # "About": the tolerance is divided over 50 cells, and there are more of them.
    assert errors[0] < 0.2
    assert errors[1] < 2e-3
    assert errors[2] < 1e-4


@pytest.mark.parametrize("sd", [0.1, 0.01, 0.003])
@pytest.mark.parametrize("position", [(0.4567,), (1.0, -0.4371), (0.41, -1.23, 0.777)])
@pytest.mark.slow
def test_a_narrow_peak_is_found_wherever_it_lies(position, sd):
    posterior = cc.infer(peak(position, sd, mass=0.3), Grid(), seed=0)
    assert posterior.log_evidence.item() == pytest.approx(math.log(0.3), abs=2 * TOLERANCE)
    z = posterior.sample(4000, seed=0)
    # 5 standard errors of 4,000 draws, plus 2 % for the steps of the cells.
    assert ((z.mean(0) - torch.tensor(position)).abs() < 5 * sd / math.sqrt(4000)).all()
    assert ((z.std(0) / sd - 1).abs() < 5 / math.sqrt(2 * 4000) + 0.02).all()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.0625, 0.0625), (1.0, -1.0)),  # on a coarse cell's centre, and at a corner of four
        ((-2.0, 0.5), (2.0625, 0.0)),
        ((3.1, 3.3), (3.2, 3.3)),  # within one coarse cell of each other
    ],
)
def test_a_narrow_peak_between_points_is_not_lost_next_to_one_on_a_point(first, second):
    target = MixtureTarget(
        torch.tensor([0.3, 0.7]),
        torch.tensor([first, second]),
        torch.full((2, 2), 0.01),
        prior_scale=1.0,
    )
    posterior = cc.infer(target, Grid(), seed=0)
    assert posterior.log_evidence.item() == pytest.approx(0.0, abs=2 * TOLERANCE)
    to_first = (posterior.draws - target.means[0]).norm(dim=-1)
    to_second = (posterior.draws - target.means[1]).norm(dim=-1)
    mass = posterior.log_weights.exp()[to_first < to_second].sum()
    assert mass.item() == pytest.approx(0.3, abs=2 * TOLERANCE)


def test_both_modes_of_the_mirrored_vae_have_half_the_mass():
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    side = posterior.draws @ problem.mode > 0
    mass = posterior.log_weights.exp()[side].sum()
    assert mass.item() == pytest.approx(0.5, abs=TOLERANCE)
    z = posterior.sample(4000, seed=0)
    assert abs(problem.masses(z).item() - 0.5) < 5 * 0.5 / math.sqrt(4000)


def test_the_mixture_is_exact():
    target = mixture_target()
    posterior = cc.infer(target, Grid(), seed=0)
    assert posterior.log_evidence.item() == pytest.approx(0.0, abs=2 * TOLERANCE)
    z, exact = posterior.sample(1000, seed=0), target.sample(1000, generator=seeded(9))
    # The unbiased MMD^2 of two exact sets of 1,000 has a standard deviation of 0.0005 here.
    assert cc.diagnostics.kernel_mmd(z, exact) < 0.003
    masses = target.masses(posterior.sample(4000, seed=1))
    error = (target.weights * (1 - target.weights) / 4000).sqrt()
    # The two near components overlap: only the far one is identified without error.
    assert abs(masses[2] - target.weights[2]) < 5 * error[2]


# ---- a digit VAE against a uniform grid --------------------------------------------------------


def log_joint_of_digit(vae, digit, mask, points):
    """log p(z, x) at points, from the decoder's logits alone, in double."""
    values, weights = digit[mask], torch.ones(int(mask.sum()))
    pieces = []
    with torch.no_grad():
        for piece in points.split(20_000):
            logits = vae.decoder(piece)[:, mask]
            # log Bernoulli = x logit - log(1 + e^logit), of the observed pixels
            pieces.append(logits @ values - F.softplus(logits) @ weights)
    log_prior = -0.5 * points.double().square().sum(-1) - math.log(2 * math.pi)
    return torch.cat(pieces).double() + log_prior


def uniform_grid_answers(vae, digit, mask, per_side=301):
    """log p(x) and E[z|x] by the midpoint rule, with no inference code of the library.

    One grid over [-6, 6]^2 finds the rectangle that holds all but e^-25 of the mass; another fills
    that rectangle.
    """
    low, high = torch.full((2,), -6.0), torch.full((2,), 6.0)
    for _ in range(2):
        width = (high - low) / per_side
        axes = [low[i] + (torch.arange(per_side) + 0.5) * width[i] for i in range(2)]
        points = torch.cartesian_prod(*axes)
        log_joint = log_joint_of_digit(vae, digit, mask, points)
        inside = points[log_joint > log_joint.max() - 25]
        low, high = inside.amin(0) - width, inside.amax(0) + width
    log_mass = log_joint + width.double().log().sum()
    log_evidence = log_mass.logsumexp(0)
    return log_evidence, (log_mass - log_evidence).exp() @ points.double()


@pytest.fixture(scope="module")
def digit_queries():
    """Digits of which 5, 15 or 25 % of the pixels are seen, a quarter, as in the paper, or all."""
    digits = cc.zoo.digits()[0][::7][:5]
    masks = [cc.random_mask((28, 28), share, seed=i) for i, share in enumerate((0.05, 0.15, 0.25))]
    masks += [cc.rectangle_mask((28, 28), rows=(0, 13), columns=(14, 27))]
    masks += [torch.ones(28, 28, dtype=torch.bool)]
    return digits, torch.stack(masks)


@pytest.mark.slow
def test_digit_answers_are_those_of_a_fine_uniform_grid(mnist_2d, digit_queries):
    digits, masks = digit_queries
    answers = [uniform_grid_answers(mnist_2d, *query) for query in zip(digits, masks, strict=True)]
    log_evidence, mean = (torch.stack(part) for part in zip(*answers, strict=True))
    posterior = cc.condition(mnist_2d, cc.Evidence(digits, masks), Grid(), seed=0)
    # Grid's tolerance, plus 1e-3 for float32 sums of up to 784 terms and for the uniform grid.
    torch.testing.assert_close(
        posterior.log_evidence.double(), log_evidence, rtol=0, atol=TOLERANCE + 1e-3
    )
    found, covariance = weighted_moments(posterior)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found - mean) / sd).abs().max() < 0.01


# ---- density and draws ---------------------------------------------------------------------------


def test_the_density_integrates_to_one():
    problem = linear_gaussian_problem(2, scale=1.0)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    axis = (torch.arange(401) + 0.5) * (12 / 401) - 6
    points = torch.cartesian_prod(axis, axis)[:, None].expand(-1, 4, -1)
    total = posterior.log_prob(points).logsumexp(0) + 2 * math.log(12 / 401)
    torch.testing.assert_close(total, torch.zeros(4), rtol=0, atol=2 * TOLERANCE)


def test_the_density_is_that_of_the_exact_posterior():
    problem = linear_gaussian_problem(2, scale=1.0)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    mean, covariance = problem.exact_posterior()
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    z = exact.mean + torch.randn(5, 4, 2, generator=seeded(0))
    # Tolerance in the normaliser, and float32 at log-densities of size up to 100.
    torch.testing.assert_close(
        posterior.log_prob(z), exact.log_prob(z), rtol=1e-5, atol=2 * TOLERANCE
    )


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_draws_have_the_right_moments(latent_dim):
    problem = linear_gaussian_problem(latent_dim, data_dim=5, scale=1.0)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    num = 10_000
    z = posterior.sample(num, seed=0)
    mean, covariance = problem.exact_posterior()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # 5 standard errors; the draws are uniform within cells, so nothing is missing but shape.
    assert ((z.mean(0) - mean) / sd).abs().max() < 5 / math.sqrt(num)
    centred = (z - mean) / sd
    found = torch.einsum("sbi,sbj->bij", centred, centred) / num
    correlation = covariance / (sd[:, :, None] * sd[:, None, :])
    # The variance of x_i x_j is 1 + rho^2 <= 2; 2 % for the steps of the cells.
    assert (found - correlation).abs().max() < 5 * math.sqrt(2 / num) + 0.02


def test_draws_are_spread_over_cells_rather_than_at_their_centres():
    problem = linear_gaussian_problem(1, scale=1.0, batch=())
    z = cc.condition(problem.vae, problem.evidence, Grid(), seed=0).sample(1000)
    assert len(z.unique()) > 990  # float32 repeats hardly ever in 1,000


def ridge(scale, seed, dtype=torch.float32):
    """One element of a linear decoder observed almost exactly: p(z|x) is a thin ridge."""
    problem = linear_gaussian_problem(
        2, data_dim=6, scale=scale, batch=(1,), dtype=dtype, seed=seed
    )
    return problem, cc.Evidence(problem.truth, torch.arange(6) == 0)


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(4))
def test_a_thin_ridge_keeps_its_mass(scale, seed):
    """All parts of a cell may be equally far from the ridge that runs through them."""
    problem, evidence = ridge(scale, seed)
    posterior = cc.condition(problem.vae, evidence, Grid(0.01), seed=0)
    error = (posterior.log_evidence - problem.exact_log_evidence(evidence)).abs()
    assert (error < 0.02).all()
    assert (error < 4 * posterior.log_evidence_error).all()


@pytest.mark.parametrize("period", [0.128 / 2, 0.128 / 4])
def test_a_ripple_in_step_with_the_cells_is_noticed(period):
    """Midpoints see only one phase of it, and log p(x) is several nats too high."""

    def log_density(z):
        ripple = torch.sin(2 * math.pi * z[..., 0] / period)
        return -0.5 * z.square().sum(-1) - 0.5 * (ripple / 0.02).square()

    posterior = cc.infer(cc.DensityTarget(log_density, 2), Grid(0.05), seed=0)
    # ∫ exp(−sin² u / 2σ²) du over a period holds 2 peaks of √(2π) σ, of 2π.
    exact = math.log(2 * math.pi) + math.log(2 * math.sqrt(2 * math.pi) * 0.02 / (2 * math.pi))
    wrong = (posterior.log_evidence - exact).abs() > 0.1
    assert not (posterior.trusted & wrong).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("far", [1e3, 1e5, 1e10, 1e18])
def test_evidence_far_outside_of_the_model_is_refused_and_not_answered(far, dtype):
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.1, batch=(1,), dtype=dtype)
    evidence = cc.Evidence(torch.full((1, 5), far, dtype=dtype), torch.tensor(True))
    with pytest.raises(ValueError, match="query 0 has mass at the edge"):
        cc.condition(problem.vae, evidence, Grid(), seed=0)


def test_the_c_elbo_is_the_log_evidence():
    problem = linear_gaussian_problem(2)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    assert torch.equal(posterior.c_elbo, posterior.log_evidence)
    assert torch.equal(posterior.c_elbo_error, posterior.log_evidence_error)


def test_the_number_of_cells_is_reported():
    problem = linear_gaussian_problem(2)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    held = (posterior.log_weights > -math.inf).sum(0)
    assert torch.equal(posterior.stats["cells"], held.float())


# ---- what it refuses -----------------------------------------------------------------------------


def test_four_latent_dimensions_are_refused():
    problem = linear_gaussian_problem(4)
    with pytest.raises(ValueError, match="latent <= 3 for Grid, got 4; use Variational or HMC"):
        cc.condition(problem.vae, problem.evidence, Grid(), seed=0)


@pytest.mark.parametrize("position", [(7.98,), (8.0, 0.0), (20.0, 20.0), (0.0, -9.0, 1.0)])
def test_mass_at_the_edge_or_outside_of_the_box_is_refused(position):
    with pytest.raises(ValueError, match="query 0 has mass at the edge of that box; use Grid"):
        cc.infer(peak(position, 0.5), Grid(), seed=0)


def test_a_larger_radius_takes_in_what_was_refused():
    posterior = cc.infer(peak((9.0, 0.0), 0.5), Grid(radius=14.0), seed=0)
    assert posterior.log_evidence.item() == pytest.approx(0.0, abs=2 * TOLERANCE)


def test_one_query_with_mass_outside_makes_the_batch_refused():
    problem = linear_gaussian_problem(1, scale=0.1, batch=(3,))
    values = problem.truth.clone()
    values[1] += 30 * problem.vae.decoder.weight[:, 0]
    evidence = cc.Evidence(values, torch.tensor(True))
    with pytest.raises(ValueError, match="mass at the edge"):
        cc.condition(problem.vae, evidence, Grid(), seed=0)


def test_too_few_cells_raise_and_name_the_query():
    problem = linear_gaussian_problem(2)
    with pytest.raises(cc.BudgetError, match=r"at most 50 cells a query, but query \d needs more;"):
        cc.condition(problem.vae, problem.evidence, Grid(max_cells=50), seed=0)


def test_integrate_says_of_each_query_whether_it_could():
    problem = linear_gaussian_problem(1, scale=0.1, batch=(3,))
    values = problem.truth.clone()
    values[1] += 30 * problem.vae.decoder.weight[:, 0]
    target = cc.VAETarget(problem.vae, cc.Evidence(values, torch.tensor(True)))
    findings, outcome = Grid().integrate(target, generator=seeded(0))
    assert (outcome == 0).tolist() == [True, False, True]
    alone, _ = Grid().integrate(target.select(torch.tensor([0, 2])), generator=seeded(0))
    torch.testing.assert_close(findings.log_evidence[[0, 2]], alone.log_evidence)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_decodes_are_counted_and_limited_for_each_query(latent, monkeypatch):
    problem = linear_gaussian_problem(latent, scale=0.1, batch=(2,))
    target, seen = cc.VAETarget(problem.vae, problem.evidence).flatten(), torch.zeros(2)
    original = cc.VAETarget.log_likelihood_at

    def counted(self, z, query):
        seen.add_(torch.bincount(query, minlength=2))
        return original(self, z, query)

    monkeypatch.setattr(cc.VAETarget, "log_likelihood_at", counted)
    grid = Grid(num_checks=100)
    findings, outcome = grid.integrate(target, generator=seeded(0))
    needed = findings.stats["decodes"] - 100
    assert torch.equal(needed, seen)
    assert outcome.tolist() == [0, 0]
    seen.zero_()
    most = torch.stack([needed[0], needed[1] - 1])
    limited, outcome = grid.integrate(target, generator=seeded(0), most=most)
    assert (outcome == 0).tolist() == [True, False]
    assert (seen <= most).all()
    assert limited.log_evidence[0] == findings.log_evidence[0]


def test_a_single_checking_draw_is_refused():
    with pytest.raises(ValueError, match="expected num_checks >= 2, got 1"):
        Grid(num_checks=1)


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"radius": -1.0}, {"max_cells": 0}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected tolerance, radius and max_cells > 0"):
        Grid(**wrong)
