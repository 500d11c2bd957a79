"""Likelihoods against torch.distributions, element by element and summed in every form."""

import math

import pytest
import torch
from problems import seeded
from torch import distributions, nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian, Likelihood

E = 6
SCALES = torch.linspace(0.2, 1.5, E, dtype=torch.double)


def decoded(case, *shape):
    """Parameters a decoder could output for this case, shape (*shape, E, *param_shape)."""
    params = torch.randn(*shape, E, generator=seeded(1), dtype=torch.double)
    if case == "probabilities":
        return params.sigmoid()
    if case == "decoded scale":
        scale = torch.rand(*shape, E, generator=seeded(2), dtype=torch.double) + 0.1
        return torch.stack([params, scale], -1)
    return params


def observed(case, *shape):
    values = torch.randn(*shape, E, generator=seeded(3), dtype=torch.double)
    return (values > 0).double() if case in ("logits", "probabilities") else values


LIKELIHOODS = {
    "logits": Bernoulli(),
    "probabilities": Bernoulli(logits=False),
    "number": Gaussian(0.3),
    "integer": Gaussian(2),
    "tensor scale": Gaussian(SCALES),
    "decoded scale": Gaussian(None),
}
REFERENCES = {
    "logits": lambda p: distributions.Bernoulli(logits=p),
    "probabilities": lambda p: distributions.Bernoulli(probs=p),
    "number": lambda p: distributions.Normal(p, 0.3),
    "integer": lambda p: distributions.Normal(p, 2.0),
    "tensor scale": lambda p: distributions.Normal(p, SCALES),
    "decoded scale": lambda p: distributions.Normal(p[..., 0], p[..., 1]),
}
every_case = pytest.mark.parametrize("case", LIKELIHOODS)


@every_case
def test_log_prob_is_that_of_torch_distributions(case):
    params, values = decoded(case, 5), observed(case, 5)
    expected = REFERENCES[case](params).log_prob(values)
    torch.testing.assert_close(LIKELIHOODS[case].log_prob(params, values), expected)


@every_case
def test_mean_and_variance_are_those_of_torch_distributions(case):
    params = decoded(case, 5)
    reference = REFERENCES[case](params)
    torch.testing.assert_close(LIKELIHOODS[case].mean(params), reference.mean)
    torch.testing.assert_close(LIKELIHOODS[case].variance(params), reference.variance)


@every_case
def test_draws_have_the_moments_of_torch_distributions(case):
    likelihood, params, num = LIKELIHOODS[case], decoded(case), 20_000
    noise = likelihood.noise((num, E), generator=seeded(0), like=params)
    draws = likelihood.draw(params, noise)
    reference = REFERENCES[case](params)
    error = (draws.mean(0) - reference.mean).abs() / reference.stddev
    assert (error < 5 / math.sqrt(num)).all()  # five standard errors
    # a sample variance of N draws has a relative standard error of sqrt((kurtosis - 1) / N); the
    # kurtosis is 3 for a normal and below 10 for the Bernoulli probabilities here
    assert ((draws.var(0) / reference.variance - 1).abs() < 5 * math.sqrt(9 / num)).all()
    assert likelihood.in_support(draws).all()


@every_case
def test_masked_log_prob_is_the_sum_over_masked_elements(case):
    params, values = decoded(case, 7, 4), observed(case, 4)
    mask = torch.rand(4, E, generator=seeded(4)) < 0.5
    mask[0], mask[1] = False, True
    elements = REFERENCES[case](params).log_prob(values)
    expected = (elements * mask).sum(-1)
    result = LIKELIHOODS[case].masked_log_prob(params, values, mask)
    torch.testing.assert_close(result, expected)
    assert torch.equal(result[:, 0], torch.zeros(7, dtype=torch.double))  # nothing observed


@every_case
def test_masked_log_prob_agrees_with_the_general_form(case):
    params, values = decoded(case, 7, 4), observed(case, 4)
    mask = torch.rand(4, E, generator=seeded(4)) < 0.5
    likelihood = LIKELIHOODS[case]
    general = Likelihood.masked_log_prob(likelihood, params, values, mask)
    torch.testing.assert_close(likelihood.masked_log_prob(params, values, mask), general)


@every_case
def test_pairwise_log_prob_is_every_query_under_every_parameter_set(case):
    params, values = decoded(case, 9), observed(case, 4)
    mask = torch.rand(4, E, generator=seeded(4)) < 0.5
    likelihood = LIKELIHOODS[case]
    expected = torch.stack(
        [
            torch.stack([likelihood.masked_log_prob(p, values[i], mask[i]) for i in range(4)])
            for p in params
        ]
    )
    result = likelihood.pairwise_log_prob(likelihood.to_keep(params), values, mask)
    assert result.shape == (9, 4)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        Likelihood.pairwise_log_prob(likelihood, (params,), values, mask), expected
    )


def test_pairwise_gaussian_keeps_its_digits_where_data_and_mean_nearly_agree():
    """Its three products of about 2e6 cancel to about 6: in float32 no digit would be left."""
    mean = 1 + 1e-3 * torch.randn(5, 200, generator=seeded(0))
    values, mask = mean[:3].clone() + 1e-3, torch.ones(3, 200, dtype=torch.bool)
    likelihood = Gaussian(1e-2)
    pairwise = likelihood.pairwise_log_prob(likelihood.to_keep(mean), values, mask)
    assert pairwise.dtype == torch.float32
    exact = likelihood.masked_log_prob(mean[:, None].double(), values.double(), mask)
    # float32 holds the sum, about 700 nats, to 4e-5; σ's own rounding to float32 adds a little
    torch.testing.assert_close(pairwise.double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairwise_gaussian_is_right_where_a_few_means_are_enormous(dtype):
    """Minus the mean of all means, which is enormous too, the others would have no digit left."""
    mean = torch.randn(6, 4, generator=seeded(0)).to(dtype)
    mean[4:, 3] = torch.tensor([1e19, 3e38])
    values, mask = mean[:3].clone() + 0.1, torch.ones(3, 4, dtype=torch.bool)
    likelihood = Gaussian(0.5)
    pairwise = likelihood.pairwise_log_prob(likelihood.to_keep(mean), values, mask)
    expected = likelihood.masked_log_prob(mean[:, None], values, mask)
    torch.testing.assert_close(pairwise, expected)


def test_gaussian_divides_by_two_variances_and_keeps_its_normaliser():
    """Trap 2: not 4 σ², and with −log σ − ½ log 2π. At t = μ + 2 σ: −2 and the normaliser."""
    log_prob = Gaussian(0.5).log_prob(torch.tensor([1.0]), torch.tensor([2.0]))
    expected = -2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob, torch.tensor([expected]))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_gaussian_density_integrates_to_one(scale):
    t = torch.linspace(-40, 40, 20_001, dtype=torch.double)
    density = Gaussian(scale).log_prob(torch.zeros((), dtype=torch.double), t).exp()
    total = torch.trapezoid(density, t).item()
    assert total == pytest.approx(1, abs=1e-9)  # the trapezoid rule is exact to rounding here


@pytest.mark.parametrize("case", ["logits", "probabilities"])
def test_bernoulli_probabilities_of_zero_and_one_sum_to_one(case):
    params = decoded(case, 5)
    total = sum(LIKELIHOODS[case].log_prob(params, torch.full((), v)).exp() for v in (0.0, 1.0))
    torch.testing.assert_close(total, torch.ones(5, E, dtype=torch.double))


def test_bernoulli_of_grey_values_is_the_cross_entropy():
    params, values = decoded("logits", 5), torch.rand(5, E, generator=seeded(0)).double()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(params, values, reduction="none")
    torch.testing.assert_close(Bernoulli().log_prob(params, values), -cross_entropy)
    torch.testing.assert_close(
        Bernoulli(logits=False).log_prob(params.sigmoid(), values), -cross_entropy
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_probabilities_make_no_observation_impossible(dtype):
    params = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype, requires_grad=True)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype)
    mask = torch.ones(4, dtype=torch.bool)
    likelihood = Bernoulli(logits=False)
    elements = likelihood.log_prob(params, values)
    assert elements.isfinite().all()
    # right ones cost only rounding; wrong ones cost log(1 − p) at the last float below 1
    assert (elements[[0, 3]].abs() < 1e-6).all()
    assert (elements[[1, 2]] < -15).all()
    for total in (
        likelihood.masked_log_prob(params, values, mask),
        likelihood.pairwise_log_prob(
            likelihood.to_keep(params[None]), values[None], mask[None]
        ).sum(),
    ):
        torch.testing.assert_close(total, elements.sum())
        (gradient,) = torch.autograd.grad(total, params, retain_graph=True)
        assert gradient.isfinite().all()


def test_saturated_logits_keep_value_and_gradient():
    params = torch.tensor([-1000.0, -1000.0, 1000.0, 1000.0], requires_grad=True)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0])
    elements = Bernoulli().log_prob(params, values)
    assert torch.equal(elements, torch.tensor([0.0, -1000.0, -1000.0, 0.0]))
    (gradient,) = torch.autograd.grad(elements.sum(), params)
    assert torch.equal(gradient, torch.tensor([0.0, 1.0, -1.0, 0.0]))


@every_case
def test_gradients_are_finite_where_unobserved_values_were_nan(case):
    """NaN in y must reach neither log p(x|z) nor its gradient: 0 · NaN would be NaN."""
    likelihood = LIKELIHOODS[case]
    values = observed(case, 3)
    values[:, ::2] = torch.nan
    evidence = cc.Evidence.from_nan(values)
    params = decoded(case, 7, 3).requires_grad_()
    masked = likelihood.masked_log_prob(params, evidence.values, evidence.mask)
    pairwise = likelihood.pairwise_log_prob(
        likelihood.to_keep(params[:, 0]), evidence.values, evidence.mask
    )
    assert masked.isfinite().all()
    assert pairwise.isfinite().all()
    (gradient,) = torch.autograd.grad(masked.sum() + pairwise.sum(), params)
    assert gradient.isfinite().all()
    assert (gradient[:, :, 1::2] != 0).any()
    assert (gradient[:, :, ::2] == 0).all()  # and y has no gradient on its own outputs


# ---- settings ----------------------------------------------------------------------------------


def test_for_data_flattens_a_tensor_scale():
    like = torch.empty(0)
    flat = Gaussian(torch.tensor([0.1, 0.2, 0.3])).for_data((2, 3), like)
    assert torch.equal(flat.scale, torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
    column = Gaussian(torch.tensor([[0.1], [0.2]])).for_data((2, 3), like)
    assert torch.equal(column.scale, torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2, 0.2]))


@pytest.mark.parametrize("case", ["logits", "number", "decoded scale"])
def test_for_data_leaves_other_likelihoods_as_they_are(case):
    assert LIKELIHOODS[case].for_data((2, 3), torch.empty(0)) is LIKELIHOODS[case]


def test_a_tensor_scale_belongs_to_the_likelihood():
    scale = torch.tensor([0.1, 0.2], requires_grad=True)
    likelihood = Gaussian(scale)
    with torch.no_grad():
        scale.fill_(5.0)
    assert torch.equal(likelihood.scale, torch.tensor([0.1, 0.2]))
    assert not likelihood.scale.requires_grad


@every_case
def test_parts_describe_the_likelihood(case):
    likelihood, params, values = LIKELIHOODS[case], decoded(case, 5), observed(case, 5)
    again = Likelihood.from_parts(likelihood.to_parts())
    assert type(again) is type(likelihood)
    assert again.param_shape == likelihood.param_shape
    assert torch.equal(again.log_prob(params, values), likelihood.log_prob(params, values))


@pytest.mark.parametrize(
    "description",
    [
        {"name": "Cauchy", "settings": {}},
        {"name": "Gaussian", "settings": {"width": 1}},
        {"name": "Gaussian", "settings": {"scale": -1}},
        {"name": ["Gaussian"], "settings": {}},
        {"name": "Gaussian"},
        {},
        None,
        "Gaussian",
    ],
    ids=str,
)
def test_parts_of_an_unknown_likelihood_are_refused(description):
    with pytest.raises(cc.ModelFormatError, match="expected a known likelihood"):
        Likelihood.from_parts(({}, description))


# ---- Fisher information, some elements ---------------------------------------------------------


@every_case
def test_fisher_is_the_expected_curvature_of_log_prob(case):
    """−E[∂² log p(t|z)], by autograd at the points of an exact rule for the expectation."""
    likelihood, params = LIKELIHOODS[case], decoded(case, 4)
    mean, deviation = likelihood.mean(params), likelihood.variance(params).sqrt()
    if case in ("logits", "probabilities"):
        rule = [(1 - mean, torch.zeros_like(mean)), (mean, torch.ones_like(mean))]
    else:  # three Gauss-Hermite points are exact for the squares in second derivatives
        offsets = ((1 / 6, -math.sqrt(3)), (2 / 3, 0.0), (1 / 6, math.sqrt(3)))
        rule = [(torch.full_like(mean, w), mean + x * deviation) for w, x in offsets]
    expected = torch.zeros_like(params)
    for weight, values in rule:
        at = params.clone().requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(at, values).sum(), at, create_graph=True)
        for index in range(max(sum(likelihood.param_shape), 1)):
            part = slope[..., index] if likelihood.param_shape else slope
            (bend,) = torch.autograd.grad(part.sum(), at, retain_graph=True)
            bend = bend[..., index] if likelihood.param_shape else bend
            target = expected[..., index] if likelihood.param_shape else expected
            target -= weight * bend
    assert likelihood.fisher(params).shape == params.shape
    torch.testing.assert_close(likelihood.fisher(params), expected)


def test_fisher_of_saturated_elements_is_finite():
    saturated = torch.tensor([-800.0, 0.0, 800.0])
    assert torch.equal(Bernoulli().fisher(saturated), torch.tensor([0.0, 0.25, 0.0]))
    assert Bernoulli(logits=False).fisher(torch.tensor([0.0, 0.5, 1.0])).isfinite().all()


@every_case
def test_of_elements_and_select_follow_each_query(case):
    likelihood, params, values = LIKELIHOODS[case], decoded(case, 3), observed(case, 3)
    elements = torch.tensor([[0, 4], [5, 1], [2, 2]])
    some = likelihood.of_elements(elements)
    index = elements[..., None].expand(3, 2, 2) if likelihood.param_shape else elements
    chosen, data = params.gather(1, index), values.gather(1, elements)
    expected = likelihood.log_prob(params, values).gather(1, elements)
    torch.testing.assert_close(some.log_prob(chosen, data), expected)
    queries = torch.tensor([2, 0])
    torch.testing.assert_close(
        some.select(queries).log_prob(chosen[queries], data[queries]), expected[queries]
    )


@every_case
def test_kept_values_give_every_query_under_every_parameter_set(case):
    likelihood, params, values = LIKELIHOODS[case], decoded(case, 7), observed(case, 3)
    mask = torch.rand(3, E, generator=seeded(4)) < 0.5
    kept = likelihood.to_keep(params)
    assert all(part.shape[0] == 7 for part in kept)
    expected = likelihood.masked_log_prob(params.unsqueeze(1), values, mask)
    torch.testing.assert_close(likelihood.pairwise_log_prob(kept, values, mask), expected)


def test_pairwise_gaussian_keeps_its_digits_far_from_zero():
    """Temperatures in kelvin, or years: x², xμ and μ² are large, but their difference is not."""
    mean = 1e8 + torch.randn(5, 7, generator=seeded(0), dtype=torch.double)
    values = 1e8 + torch.randn(3, 7, generator=seeded(1), dtype=torch.double)
    mask = torch.ones(3, 7, dtype=torch.bool)
    likelihood = Gaussian(scale=0.1)
    found = likelihood.pairwise_log_prob(likelihood.to_keep(mean), values, mask)
    exact = torch.distributions.Normal(mean[:, None], 0.1).log_prob(values).sum(-1)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-6)
