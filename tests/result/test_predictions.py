"""Predictions: moments, draws of y and log p(y|x), with the evidence exactly as given."""

import math

import pytest
import torch
from cheap_methods import every_method

import crosscoding as cc

pytestmark = pytest.mark.usefixtures("short_start")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


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


def test_observed_elements_of_truth_are_ignored(problem, exact):
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


def test_truth_that_is_not_a_tensor_is_refused(problem, exact):
    with pytest.raises(TypeError, match=r"truth to be a torch.Tensor or a NumPy array, got list"):
        exact.query_log_prob(problem.truth.tolist())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_truth_that_is_not_finite_where_unobserved_is_refused(problem, exact, wrong):
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
