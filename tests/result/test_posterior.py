"""Posterior: draws and densities of z, and what it refuses; saving is in test_files.py."""

import math

import pytest
import torch
from cheap_methods import LISTED, every_method
from problems import linear_gaussian_problem, mixture_target, seeded

import crosscoding as cc
from crosscoding.crosscoders import Gaussian, Planar
from crosscoding.methods import (
    HMC,
    Auto,
    Grid,
    Importance,
    Laplace,
    NaturalGradient,
    Rejection,
    TemperedSMC,
    Variational,
)

pytestmark = pytest.mark.usefixtures("short_start")


# ---- shapes and streams --------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("num", [0, 1, 130])
@pytest.mark.slow
def test_as_many_draws_as_asked_for(problem, method, num):
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.sample(num).shape == (num, 3, 2)
    assert posterior.predict(num).shape == (num, 3, 6)
    assert posterior.predict_mean(num).shape == (num, 3, 6)
    assert posterior.sample(num).dtype == posterior.predict(num).dtype == torch.float32


@pytest.mark.parametrize("ask", ["sample", "predict", "predict_mean"])
def test_an_invalid_number_of_draws_is_refused(exact, ask):
    with pytest.raises(ValueError, match="expected a number of draws >= 0, got -1"):
        getattr(exact, ask)(-1)
    for wrong in (1.5, "3", True, None, torch.tensor(3)):
        with pytest.raises(TypeError, match="expected the number of draws to be an int, got"):
            getattr(exact, ask)(wrong)


@every_method
@pytest.mark.slow
def test_the_posteriors_stream_continues_and_a_seed_leaves_it_alone(problem, method):
    first, second = (cc.condition(problem.vae, problem.evidence, method, seed=0) for _ in range(2))
    one = first.sample(5)
    assert not torch.equal(first.sample(5), one)
    aside = second.sample(5, seed=11)
    assert torch.equal(second.sample(5, seed=11), aside)
    assert torch.equal(second.sample(5), one)  # a seed of a call's own leaves the stream alone


def test_stored_draws_are_all_used_before_one_repeats(problem):
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(40), seed=0)
    z = posterior.sample(40)
    assert not torch.equal(z, posterior.draws)
    assert torch.equal(z[:, 0].sort(0).values, posterior.draws[:, 0].sort(0).values)
    twice = posterior.sample(80)[:, 0, 0]
    assert torch.equal(twice.sort().values, posterior.draws[:, 0, 0].repeat(2).sort().values)


def test_draws_of_queries_with_other_answers_are_spread_by_their_own_weights():
    target = mixture_target()
    z = cc.infer(target, Grid(), seed=0).sample(5000, seed=1)
    mean, sd = target.mean(), target.covariance().diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * sd / math.sqrt(5000)).all()


def test_its_repr_says_what_it_is(exact):
    assert repr(exact).startswith("Posterior(method=Grid, batch_shape=(3,), seconds=")


# ---- log_prob ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [Grid(), Variational(Gaussian(), steps=100), Variational(Planar(4), steps=100)],
    ids=["grid", "gvi", "nf"],
)
def test_the_density_integrates_to_one_and_its_draws_follow_it(problem, method):
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    count, half = 301, 7.0
    axis = (torch.arange(count) + 0.5) * (2 * half / count) - half
    points = torch.cartesian_prod(axis, axis)
    log_prob = posterior.log_prob(points[:, None].expand(-1, 3, -1))
    assert log_prob.shape == (len(points), 3)
    log_total = log_prob.logsumexp(0) + 2 * math.log(2 * half / count)
    # The midpoint rule at 0.05 is exact for densities this smooth; 5e-3 covers Grid's own
    # normaliser and the bisection that inverts a planar flow in float32.
    torch.testing.assert_close(log_total, torch.zeros(3), rtol=0, atol=5e-3)
    mass = (log_prob + 2 * math.log(2 * half / count)).exp()
    mean = mass.mT @ points
    variance = mass.mT @ points.square() - mean.square()
    z = posterior.sample(4000, seed=0)
    assert ((z.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt() + 0.01).all()
    assert ((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 4000) + 0.02).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rejection", "Rejection gives draws but no density; use Variational or Grid"),
        ("hmc", "HMC gives draws but no density; use Variational or Grid"),
        ("fcn", "FCN is not one-to-one: it has no density at a given z; use Gaussian or Planar"),
    ],
)
def test_log_prob_without_a_density_says_why(problem, name, said):
    posterior = cc.condition(problem.vae, problem.evidence, LISTED[name], seed=0)
    with pytest.raises(NotImplementedError, match=said):
        posterior.log_prob(torch.zeros(3, 2))


@pytest.mark.parametrize("name", ["grid", "gvi", "nf"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_density_takes_any_sample_shape(name, batch):
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    posterior = cc.condition(problem.vae, problem.evidence, LISTED[name], seed=0)
    z = torch.randn(4, 5, *batch, 2, generator=seeded(0))
    log_prob = posterior.log_prob(z)
    assert log_prob.shape == (4, 5, *batch)
    torch.testing.assert_close(posterior.log_prob(z[1, 2]), log_prob[1, 2])


@pytest.mark.parametrize("shape", [(2,), (4, 2), (3, 3), (5, 2, 2), ()])
def test_a_density_at_points_of_another_shape_is_refused(exact, shape):
    with pytest.raises(ValueError, match=r"expected z of shape \(\*sample, 3, 2\), got"):
        exact.log_prob(torch.zeros(shape))


def test_a_density_at_points_of_another_dtype_is_refused(exact):
    with pytest.raises(ValueError, match=r"expected z of the model's dtype torch.float32, got"):
        exact.log_prob(torch.zeros(3, 2).double())


def test_arrays_are_accepted_like_tensors(problem, exact):
    truth, z = problem.truth, exact.sample(4, seed=0)
    assert torch.equal(exact.query_log_prob(truth.numpy()), exact.query_log_prob(truth))
    assert torch.equal(exact.query_ess(truth.numpy()), exact.query_ess(truth))
    assert torch.equal(exact.log_prob(z.numpy()), exact.log_prob(z))


# ---- without a decoder ---------------------------------------------------------------------------


def test_a_bare_density_has_draws_and_a_density_and_no_data():
    posterior = cc.infer(mixture_target(), Grid(), seed=0)
    assert posterior.sample(3).shape == (3, 2)
    assert posterior.log_prob(torch.zeros(4, 2)).shape == (4,)
    asked = (
        lambda: posterior.predict(1),
        lambda: posterior.predict_mean(1),
        posterior.mean,
        posterior.std,
        lambda: posterior.query_log_prob(torch.zeros(2)),
    )
    for ask in asked:
        with pytest.raises(ValueError, match=r"with a decoder, got .* use sample\(num\)"):
            ask()


# ---- Pareto k ------------------------------------------------------------------------------------


@every_method
@pytest.mark.slow
def test_pareto_k_is_that_of_importance_weights_and_nan_elsewhere(problem, method):
    weighs = (Variational, Laplace, NaturalGradient, Importance, Grid)
    never = (HMC, Rejection, TemperedSMC, Auto)  # Auto: the bank answers
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    assert posterior.pareto_k.shape == (3,)
    assert posterior.pareto_k.dtype == torch.float32
    if isinstance(method, (*weighs, *never)):
        assert posterior.pareto_k.isnan().all() == isinstance(method, never)
