"""Posterior: what it computes and what it refuses; saving is in test_files.py."""

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


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.fixture(scope="module")
def problem():
    """A 2-d linear-Gaussian problem of three queries."""
    return linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=(3,))


@pytest.fixture(scope="module")
def exact(problem):
    """Its posterior by Grid."""
    return cc.condition(problem.vae, problem.evidence, Grid(), seed=0)


@pytest.fixture(scope="module")
def digit_posterior():
    """Two half-seen digits."""
    vae = cc.zoo.load("mnist-2d")
    digits = cc.zoo.digits()[0][:2]
    mask = cc.rectangle_mask((28, 28), rows=(0, 13))
    return cc.condition(vae, cc.Evidence(digits, mask), Grid(tolerance=0.01), seed=0)


# ---- answers -------------------------------------------------------------------------------------


def test_mean_and_standard_deviation_are_those_of_the_exact_prediction(problem, exact):
    mean, variance = problem.exact_prediction()
    # Cells stand for their centres: a thousandth of a standard deviation in the mean, and up to 1 %
    # in the spread, of which p(y|z) itself, known exactly, is the larger part here.
    torch.testing.assert_close(exact.mean(), mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(exact.std(), variance.sqrt(), rtol=1e-2, atol=0)


def test_query_log_prob_is_exact_on_a_grid(problem, exact):
    torch.testing.assert_close(
        exact.query_log_prob(problem.truth), problem.exact_query_log_prob(), rtol=0, atol=5e-3
    )


def test_what_truth_says_at_observed_elements_is_not_looked_at(problem, exact):
    rubbish = torch.where(problem.evidence.mask, math.nan, problem.truth)
    assert torch.equal(exact.query_log_prob(rubbish), exact.query_log_prob(problem.truth))


def test_predictions_have_the_mean_and_variance_of_p_y_given_x(problem, exact):
    num = 20_000
    draws = exact.predict(num, seed=0)
    mean, variance = problem.exact_prediction()
    # 5 standard errors of independent Gaussian draws, and 1 % for the cells; float32 sums.
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / num).sqrt() + 5e-3).all()
    allowed = variance * (5 * math.sqrt(2 / num) + 0.02) + 1e-6
    assert ((draws.var(0) - variance).abs() <= allowed).all()


def test_predicted_elements_are_correlated_through_z(problem, exact):
    """Drawn jointly, not each from its own marginal."""
    draws = exact.predict(20_000, seed=0)[:, 0][:, ~problem.evidence.mask[0]].double()
    weight = problem.vae.decoder.weight[~problem.evidence.mask[0]].double()
    covariance = weight @ problem.exact_posterior()[1][0].double() @ weight.mT
    covariance += torch.eye(len(weight)).double()
    sd = covariance.diagonal().sqrt()
    difference = (torch.cov(draws.T) - covariance) / (sd[:, None] * sd)
    assert difference.abs().max() < 5 * math.sqrt(2 / 20_000) + 0.02


def test_a_digits_predictions_are_zeros_and_ones_and_their_mean_is_grey(digit_posterior):
    """Trap 5: a draw from p(y|x) is drawn from p(y|z) too."""
    draws = digit_posterior.predict(400, seed=0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    grey = digit_posterior.predict_mean(400, seed=0)
    assert ((grey > 0.01) & (grey < 0.99)).float().mean() > 0.05
    mean, error = digit_posterior.mean(), digit_posterior.std() / math.sqrt(400)
    hidden = ~digit_posterior.target.evidence.mask
    # 784 pixels: 6 standard errors, and 0.01 where a rare pixel makes them meaningless.
    assert ((draws.mean(0) - mean).abs() <= 6 * error + 0.01)[hidden].all()
    assert ((grey.mean(0) - mean).abs() <= 6 * error + 0.01)[hidden].all()


def test_the_standard_deviation_of_a_zero_or_one_follows_from_its_mean(digit_posterior):
    mean, std = digit_posterior.mean(), digit_posterior.std()
    hidden = ~digit_posterior.target.evidence.mask
    # float32: a probability of 1e-7 is rounded off in 1 − p.
    torch.testing.assert_close(
        std[hidden], (mean * (1 - mean))[hidden].sqrt(), rtol=1e-3, atol=1e-3
    )


def test_predictions_differ_where_predicted_means_are_smooth(problem, exact):
    z = exact.sample(5, seed=3)
    means = exact.predict_mean(5, seed=3)
    hidden = ~problem.evidence.mask
    torch.testing.assert_close(means[:, hidden], problem.vae.decode(z)[:, hidden])
    spread = (exact.predict(5, seed=3) - means)[:, hidden]
    assert spread.std() > 0.5  # the likelihood's scale is 1


# ---- evidence exactly as given -------------------------------------------------------------------

ODD = [-0.0, 0.1, 1e-42, float(torch.tensor(1.0).nextafter(torch.tensor(2.0))), -1 / 3, 0.0]


@every_method
@pytest.mark.parametrize("observed", [slice(0, 3), slice(3, 6), slice(0, 6)])
@pytest.mark.slow
def test_odd_floats_come_back_bit_for_bit(problem, method, observed):
    mask = torch.zeros(6, dtype=torch.bool)
    mask[observed] = True
    given = torch.tensor(ODD)
    posterior = cc.condition(problem.vae, cc.Evidence(given, mask), method, seed=0)
    answers = [*posterior.predict(2), *posterior.predict_mean(2), posterior.mean()]
    for answer in answers:
        assert torch.equal(bits(answer[mask]), bits(given[mask]))
        assert answer.isfinite().all()
    assert torch.equal(posterior.std()[mask], torch.zeros(int(mask.sum())))
    assert (posterior.std()[~mask] > 0).all()


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
def test_a_number_of_draws_that_is_none_is_refused(exact, ask):
    with pytest.raises(ValueError, match="expected a number of draws >= 0, got -1"):
        getattr(exact, ask)(-1)
    for wrong in (1.5, "3", True, None, torch.tensor(3)):
        with pytest.raises(TypeError, match="expected the number of draws to be an int, got"):
            getattr(exact, ask)(wrong)


@every_method
@pytest.mark.slow
def test_its_own_stream_goes_on_and_a_seed_stands_apart(problem, method):
    first, second = (cc.condition(problem.vae, problem.evidence, method, seed=0) for _ in range(2))
    one = first.sample(5)
    assert not torch.equal(first.sample(5), one)
    aside = second.sample(5, seed=11)
    assert torch.equal(second.sample(5, seed=11), aside)
    assert torch.equal(second.sample(5), one)  # a seed of a call's own leaves the stream alone


def test_stored_draws_are_used_up_before_one_comes_again(problem):
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


def test_it_says_what_it_is(exact):
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
def test_where_there_is_no_density_it_says_so(problem, name, said):
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


def test_arrays_are_taken_as_tensors_are(problem, exact):
    truth, z = problem.truth, exact.sample(4, seed=0)
    assert torch.equal(exact.query_log_prob(truth.numpy()), exact.query_log_prob(truth))
    assert torch.equal(exact.query_ess(truth.numpy()), exact.query_ess(truth))
    assert torch.equal(exact.log_prob(z.numpy()), exact.log_prob(z))


# ---- unusable truth ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (2, 6), (3, 5), (1, 3, 6), ()])
def test_truth_of_another_shape_is_refused(exact, shape):
    with pytest.raises(ValueError, match=r"expected truth of shape \(3, 6\), got"):
        exact.query_log_prob(torch.zeros(shape))


def test_truth_of_another_dtype_or_device_is_refused(problem, exact):
    with pytest.raises(
        ValueError, match=r"model's dtype torch.float32, got torch.float64; convert"
    ):
        exact.query_log_prob(problem.truth.double())
    with pytest.raises(
        ValueError, match="expected truth on the model's device cpu, got meta; move"
    ):
        exact.query_log_prob(problem.truth.to("meta"))


def test_truth_that_is_no_tensor_is_refused(problem, exact):
    with pytest.raises(TypeError, match=r"truth to be a torch.Tensor or a NumPy array, got list"):
        exact.query_log_prob(problem.truth.tolist())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_truth_that_is_not_finite_where_it_is_asked_for_is_refused(problem, exact, wrong):
    truth = torch.where(problem.evidence.mask, problem.truth, wrong)
    with pytest.raises(cc.NonFiniteError, match="finite unobserved elements of truth, got NaN"):
        exact.query_log_prob(truth)


def test_truth_outside_the_support_is_refused(digit_posterior):
    truth = cc.zoo.digits()[0][:2].clone()
    truth[1, 27, 27] = 2.0
    with pytest.raises(ValueError, match="expected elements of truth between 0 and 1"):
        digit_posterior.query_log_prob(truth)
    truth[1, 27, 27], truth[0, 0, 0] = 1.0, 2.0  # an observed element may be anything
    assert digit_posterior.query_log_prob(truth).isfinite().all()


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
