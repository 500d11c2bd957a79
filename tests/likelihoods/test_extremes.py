"""Huge logits, tiny scales, counts of 0 and a million, values at the ends."""

import math

import pytest
import scipy.stats
import torch
from families import DOUBLE, FAMILIES, E
from problems import seeded
from torch import Tensor

from crosscoding.likelihoods import (
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)

FLOATS = [torch.float32, torch.float64]


def finite(likelihood: Likelihood, params: Tensor, values: Tensor) -> Tensor:
    """log p of each element, after checking that it, all sums and their gradients are finite."""
    params = params.requires_grad_()
    result = likelihood.log_prob(params, values)
    assert result.isfinite().all(), result
    mask = torch.ones_like(values, dtype=torch.bool)
    pairwise = likelihood.pairwise_log_prob(
        likelihood.to_keep(params[None]), values[None], mask[None]
    )
    masked = likelihood.masked_log_prob(params[None], values[None], mask[None])
    (gradient,) = torch.autograd.grad(result.sum() + masked.sum() + pairwise.sum(), params)
    assert gradient.isfinite().all(), gradient
    torch.testing.assert_close(masked[0], result.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairwise[0, 0], result.sum(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (likelihood.fisher(params) >= 0).all()
        assert likelihood.mean(params).isfinite().all()
        assert (likelihood.variance(params) >= 0).all()
        noise = likelihood.noise(values.shape, generator=torch.Generator(), like=params)
        assert likelihood.in_support(likelihood.draw(params, noise)).all()
    return result.detach()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1e-6, 10.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_tiny_and_large_outputs(name, size, dtype):
    family = FAMILIES[name]
    num = max(sum(family.likelihood.param_shape), 1)
    noise = torch.randn(E, num, generator=seeded(0), dtype=DOUBLE)
    params = family.params(size * noise).to(dtype)
    finite(family.likelihood, params, family.values(params))


@pytest.mark.parametrize("dtype", FLOATS)
def test_continuous_bernoulli_of_huge_and_vanishing_logits(dtype):
    logits = torch.tensor([-1e4, -1e4, 1e4, 1e4, 0.0, 1e-12, 0.25, -0.25], dtype=dtype)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.3, 0.3, 0.5, 0.5], dtype=dtype)
    result = finite(ContinuousBernoulli(), logits, values)
    top = math.log(1e4)  # the density e^(l t) l / (e^l − 1) at its high end is l
    expected = torch.tensor([top, top - 1e4, top - 1e4, top], dtype=dtype)
    # t l and log((eˡ − 1) / l) are 1e4 each, which float32 holds to 1e-3
    torch.testing.assert_close(result[:4], expected, rtol=0, atol=1e4 * torch.finfo(dtype).eps)
    assert result[4:6].abs().max() < 1e-6  # uniform


def test_the_series_of_the_continuous_bernoulli_meets_its_formula():
    edge = 0.25
    logits = torch.tensor([edge - 1e-9, edge + 1e-9], dtype=torch.double)
    likelihood, value = ContinuousBernoulli(), torch.tensor([0.7], dtype=torch.double)
    for figure in (
        likelihood.log_prob(logits, value), likelihood.mean(logits), likelihood.variance(logits)
    ):  # fmt: skip
        assert (figure[0] - figure[1]).abs() < 3e-9


@pytest.mark.parametrize("saturated", [0.0, 1.0])
def test_a_probability_of_0_or_1_makes_nothing_impossible(saturated):
    values = torch.tensor([0.0, 0.5, 1.0])
    finite(ContinuousBernoulli(logits=False), torch.full((3,), saturated), values)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
@pytest.mark.parametrize("family", [Laplace, lambda scale: StudentT(3.0, scale)])
def test_tiny_and_huge_scales_with_data_near_and_far(family, scale, dtype):
    locations = torch.tensor([0.0, 0.0, -1e6, 5.0], dtype=dtype)
    values = torch.tensor([0.0, 1.0, 1e6, 5.0], dtype=dtype)
    finite(family(scale), locations, values)
    pairs = torch.stack([locations.detach(), torch.full((4,), scale, dtype=dtype)], -1)
    finite(family(None), pairs, values)


def test_students_tail_does_not_overflow():
    likelihood, far = StudentT(3.0, 1e-12), torch.tensor([1e15])
    result = likelihood.log_prob(torch.zeros(1), far)  # r² would be 1e54
    exact = scipy.stats.t(3.0, 0, 1e-12).logpdf(1e15)
    assert result.item() == pytest.approx(exact, rel=1e-6)


def test_students_t_with_many_degrees_of_freedom_is_a_gaussian():
    values = torch.linspace(-3, 3, 7)
    result = StudentT(1e8, 1.0).log_prob(torch.zeros(7), values)
    gaussian = -0.5 * values.square() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(result, gaussian, rtol=0, atol=1e-6)


@pytest.mark.parametrize("df", [0.5, 1.0])
def test_students_t_without_a_mean_has_nan_for_it(df):
    likelihood, location = StudentT(df, 1.0), torch.zeros(2)
    assert likelihood.mean(location).isnan().all()
    assert likelihood.variance(location).isnan().all()
    assert (StudentT(1.5, 1.0).variance(location) == torch.inf).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_class_of_huge_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    result = finite(Categorical(3), logits, torch.tensor([0.0, 1.0, 2.0], dtype=dtype))
    expected = torch.tensor([0.0, -2e4, -math.log(3)], dtype=dtype)
    torch.testing.assert_close(result, expected)
    one_hot = torch.eye(3, dtype=dtype).flatten()
    flat = finite(Categorical(3, one_hot=True), logits.detach().flatten(), one_hot)
    torch.testing.assert_close(flat.reshape(3, 3).sum(-1), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ordinal_far_from_its_cut_points(dtype):
    locations = torch.tensor([-1e4, -1e4, 1e4, 1e4, 1e4], dtype=dtype)
    values = torch.tensor([0.0, 2.0, 0.0, 1.0, 2.0], dtype=dtype)
    result = finite(Ordinal([-0.5, 0.5]), locations, values)
    expected = torch.tensor([0.0, -0.5 - 1e4, -0.5 - 1e4, 0.5 - 1e4, 0.0], dtype=dtype)
    expected[3] += math.log(-math.expm1(-1.0))
    torch.testing.assert_close(result, expected)
    cuts = torch.tensor([[-1e4, 1e4], [1e4, 1e4 + 1], [-1e4 - 1, -1e4]], dtype=dtype)
    for value in (0.0, 1.0, 2.0):
        finite(Ordinal(None, num_classes=3), cuts.clone(), torch.full((3,), value, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_poisson_counts_of_0_and_a_million(dtype):
    counts = torch.tensor([0.0, 0.0, 0.0, 1e6, 1e6, 1e6], dtype=dtype)
    rates = torch.tensor([1e-20, 1.0, 1e6, 1e-20, 1e6, 1.001e6], dtype=dtype)
    exact = torch.as_tensor(scipy.stats.poisson.logpmf(counts.double(), rates.double()))
    by_rate = finite(Poisson(log_rate=False), rates.clone(), counts)
    torch.testing.assert_close(by_rate.double(), exact, rtol=1e-6, atol=1e-4)
    log_rates = rates.log()
    by_log = finite(Poisson(), log_rates, counts)
    exact = scipy.stats.poisson.logpmf(counts.double(), log_rates.detach().double().exp())
    torch.testing.assert_close(by_log.double(), torch.as_tensor(exact), rtol=1e-6, atol=1e-4)


def test_a_million_counts_keep_their_digits_in_single_precision():
    """Terms of 1.4e7 cancel to −8: float32 would be a nat off."""
    rate = torch.tensor([1e6], requires_grad=True)
    pairwise = Poisson(log_rate=False)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = pairwise.pairwise_log_prob(pairwise.to_keep(rate[None]), rate.detach()[None], mask)
    assert result.item() == pytest.approx(-0.5 * math.log(2 * math.pi * 1e6), abs=1e-5)


def test_poisson_rates_beyond_floating_point_are_unlikely_but_not_nan():
    log_rate = torch.tensor([[1000.0, 0.0]], dtype=torch.double, requires_grad=True)
    values, mask = torch.zeros(1, 2, dtype=torch.double), torch.tensor([[False, True]])
    result = Poisson().masked_log_prob(log_rate, values, mask)
    assert result.item() == -1  # the unobserved one has no effect
    (gradient,) = torch.autograd.grad(result.sum(), log_rate)
    assert gradient.tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("total", [1e-3, 1.0, 1e6])
def test_negative_binomial_counts_of_0_and_a_million(total, dtype):
    logits = torch.tensor([-50.0, 0.0, 50.0, -50.0, 0.0, 14.0], dtype=dtype)
    counts = torch.tensor([0.0, 0.0, 0.0, 1e6, 1e6, 1e6], dtype=dtype)
    result = finite(NegativeBinomial(total), logits, counts)
    success = (-logits.detach().double()).sigmoid()
    exact = torch.as_tensor(scipy.stats.nbinom.logpmf(counts.double(), total, success))
    known = exact.isfinite()
    torch.testing.assert_close(result[known].double(), exact[known], rtol=1e-5, atol=1e-3)
    pairs = torch.stack([logits.detach(), torch.full_like(logits.detach(), total)], -1)
    decoded = finite(NegativeBinomial(None), pairs, counts)
    torch.testing.assert_close(decoded, result, rtol=1e-6, atol=1e-5)


def test_negative_binomial_with_a_large_total_is_a_poisson():
    total, mean = 1e9, torch.tensor([0.5, 3.0, 40.0])
    values = torch.tensor([0.0, 5.0, 33.0])
    result = NegativeBinomial(total).log_prob((mean / total).log(), values)
    torch.testing.assert_close(result, Poisson(log_rate=False).log_prob(mean, values))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("concentration", [1e-3, 1.0, 1e8])
def test_beta_binomial_of_a_million_trials(concentration, dtype):
    logits = torch.tensor([-1000.0, -3.0, 0.0, 3.0, 1000.0, -1000.0], dtype=dtype)
    counts = torch.tensor([0.0, 0.0, 5e5, 1e6, 1e6, 1e6], dtype=dtype)
    likelihood = BetaBinomial(10**6, concentration)
    result = finite(likelihood, logits, counts)
    c, share = concentration, logits.detach().double().sigmoid()
    exact = scipy.stats.betabinom.logpmf(counts.double(), 1e6, c * share, c * (1 - share))
    inside = torch.tensor([False, True, True, True, False, False])
    exact = torch.as_tensor(exact)[inside]
    torch.testing.assert_close(result[inside].double(), exact, rtol=1e-4, atol=1e-2)


def test_fisher_of_many_trials_is_near_the_sum_over_all_counts():
    """A midpoint rule of 52 points and the two ends, against 2,001 counts."""
    likelihood = BetaBinomial(2000)
    for logit, concentration in ((0, 20.0), (1.5, 2.5), (-2, 1e4), (0, 1.0), (3, 0.1)):
        params = torch.tensor([[logit, concentration]], dtype=torch.double)
        counts = torch.arange(2001, dtype=torch.double)
        each = params.expand(2001, 2).clone().requires_grad_()
        log_probs = likelihood.log_prob(each, counts)
        (scores,) = torch.autograd.grad(log_probs.sum(), each)
        expected = (log_probs.detach().exp()[:, None] * scores.square()).sum(0)
        torch.testing.assert_close(likelihood.fisher(params)[0], expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("bins", [256, 65536])
def test_fisher_of_many_bins_is_near_the_sum_over_all_of_them(bins):
    likelihood = DiscretizedLogistic(bins=bins)
    params = torch.tensor(
        [[0.5, 0.1], [0.01, 0.05], [-0.3, 0.1], [0.5, 2.0], [0.7, 1e-4]], dtype=torch.double
    )
    values = (torch.arange(bins, dtype=torch.double) / (bins - 1))[:, None]
    each = params.expand(bins, 5, 2).clone().requires_grad_()
    log_probs = likelihood.log_prob(each, values)
    (scores,) = torch.autograd.grad(log_probs.sum(), each)
    expected = (log_probs.detach().exp()[..., None] * scores.square()).sum(0)
    torch.testing.assert_close(likelihood.fisher(params), expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_intensities_at_the_ends_and_means_far_outside(low, high, scale, dtype):
    means = torch.tensor([low, low, high, high, -1e3, -1e3, 1e3, 1e3], dtype=dtype)
    values = torch.tensor([low, high] * 4, dtype=dtype)
    finite(DiscretizedLogistic(scale, low=low, high=high), means, values)
    pairs = torch.stack([means.detach(), torch.full((8,), scale, dtype=dtype)], -1)
    result = finite(DiscretizedLogistic(None, low=low, high=high), pairs, values)
    assert (result <= 0).all()
    if scale < 1:  # all of the mass is at the mean
        assert result[[0, 3, 4, 7]].abs().max() < 1 if scale == 1e-3 else 1e-6
