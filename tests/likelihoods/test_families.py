"""Every family against a reference, and against sums over its values."""

import json
import math
from pathlib import Path

import pytest
import torch
from families import DOUBLE, FAMILIES, E, Family
from problems import seeded
from torch import Tensor

import crosscoding as cc
from crosscoding.likelihoods import Laplace, Likelihood

every_family = pytest.mark.parametrize("name", FAMILIES)


def expectation(family: Family, params: Tensor, function) -> Tensor:
    """E[function(t)] by the family's rule; function may append dimensions to the shape of t."""
    values, weights = family.rule(params)
    mass = family.likelihood.log_prob(params, values).exp() * weights
    # BetaBinomial: elements with fewer trials lack the larger values
    mass = torch.where(family.likelihood.in_support(values), mass, 0.0)
    result = function(values)
    return (mass.reshape(*mass.shape, *[1] * (result.ndim - mass.ndim)) * result).sum(0)


@every_family
def test_log_prob_is_that_of_the_reference(name):
    family = FAMILIES[name]
    params = family.decoded(40)
    values = family.values(params)
    expected = family.log_prob(params, values)
    torch.testing.assert_close(family.likelihood.log_prob(params, values), expected)
    assert family.likelihood.in_support(values).all()


@every_family
def test_probabilities_sum_to_one(name):
    family = FAMILIES[name]
    total = expectation(family, family.decoded(5), torch.ones_like)
    torch.testing.assert_close(total, torch.ones_like(total))


@every_family
def test_mean_and_variance_are_those_of_the_distribution(name):
    family = FAMILIES[name]
    params = family.decoded(5)
    mean = expectation(family, params, lambda t: t)
    torch.testing.assert_close(family.likelihood.mean(params), mean, rtol=1e-5, atol=1e-6)
    variance = expectation(family, params, lambda t: (t - mean).square())
    torch.testing.assert_close(family.likelihood.variance(params), variance, rtol=1e-5, atol=1e-6)


@every_family
def test_draws_have_the_mean_and_variance_of_the_distribution(name):
    family, num = FAMILIES[name], 20_000
    params = family.decoded()
    shape = (num, E)
    draws = family.likelihood.draw(
        params, family.likelihood.noise(shape, generator=seeded(0), like=params)
    )
    assert draws.shape == shape
    assert draws.dtype == params.dtype
    assert family.likelihood.in_support(draws).all()
    mean, variance = family.likelihood.mean(params), family.likelihood.variance(params)
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / num).sqrt()).all()
    # a sample variance has the standard error sqrt((m4 − v²) / N), m4 the fourth central moment
    fourth = expectation(family, params, lambda t: (t - mean).pow(4))
    error = ((fourth - variance.square()).clamp_min(0) / num).sqrt()
    assert ((draws.var(0) - variance).abs() < 6 * error + 1e-12).all()


@every_family
def test_fisher_is_the_expected_product_of_scores(name):
    family = FAMILIES[name]
    params = family.decoded(3)
    expected = expectation(family, params, lambda values: squared_scores(family, params, values))
    check_fisher(family.likelihood, params, expected, rtol=family.fisher_error)


def squared_scores(family: Family, params: Tensor, values: Tensor) -> Tensor:
    """s sᵀ of each value (M, *shape), s = ∇ log p in the parameters: (M, *shape, P, P)."""
    each = params.expand(len(values), *params.shape).clone().requires_grad_()
    total = family.likelihood.log_prob(each, values).nan_to_num(nan=0.0).sum()
    (score,) = torch.autograd.grad(total, each)
    score = score.reshape(*values.shape, -1)
    return score[..., :, None] * score[..., None, :]


def check_fisher(likelihood: Likelihood, params: Tensor, expected: Tensor, rtol: float) -> None:
    """fisher is the diagonal of expected, (*shape, E, P, P), fisher_product all of it, masked."""
    num, shape = expected.shape[-1], params.shape
    atol = rtol * expected.abs().max().item()
    diagonal = expected.diagonal(dim1=-2, dim2=-1).reshape(shape)
    torch.testing.assert_close(likelihood.fisher(params), diagonal, rtol=rtol, atol=atol)
    units = torch.eye(num, dtype=params.dtype).reshape(num, *[1] * (params.ndim - 1), num)
    units = units.expand(num, *expected.shape[:-2], num).reshape(num, *shape)
    mask = torch.rand(expected.shape[-3], generator=seeded(4)) < 0.6
    mask = mask.expand(expected.shape[-4:-2])
    product = likelihood.fisher_product(params, units, mask)
    product = product.reshape(num, *expected.shape[:-1]).movedim(0, -1)
    wanted = torch.where(mask[..., None, None], expected, 0.0)
    torch.testing.assert_close(product, wanted, rtol=rtol, atol=atol)


@every_family
def test_sums_over_elements_agree_in_every_form(name):
    family = FAMILIES[name]
    likelihood = family.likelihood.for_data((E,), torch.empty(0, dtype=DOUBLE))
    params, mask = family.decoded(9), torch.rand(4, E, generator=seeded(4)) < 0.5
    values = family.values(family.decoded(4, seed=2))
    mask[0], mask[1] = False, True
    values = torch.where(mask, values, 0.0)
    elements = likelihood.log_prob(params[:, None], values)
    expected = torch.where(mask, elements, 0.0).sum(-1)
    everywhere = params[:, None].expand(9, 4, *params.shape[1:])
    torch.testing.assert_close(likelihood.masked_log_prob(everywhere, values, mask), expected)
    kept = likelihood.to_keep(params)
    assert len(kept) == likelihood.num_kept
    assert all(len(part) == 9 for part in kept)
    pairwise = likelihood.pairwise_log_prob(kept, values, mask)
    torch.testing.assert_close(pairwise, expected)
    assert (pairwise[:, 0] == 0).all()  # nothing observed
    general = Likelihood.pairwise_log_prob(likelihood, (params,), values, mask)
    torch.testing.assert_close(general, expected)


@every_family
def test_of_elements_select_and_trimmed_follow_each_query(name):
    family = FAMILIES[name]
    likelihood = family.likelihood.for_data((E,), torch.empty(0, dtype=DOUBLE))
    params = family.decoded(3)
    values = family.values(params)
    elements = torch.tensor([[0, 4, 3], [5, 1, 1], [2, 2, 0]])
    index = elements.reshape(3, 3, *[1] * (params.ndim - 2)).expand(3, 3, *params.shape[2:])
    chosen, data = params.gather(1, index), values.gather(1, elements)
    expected = likelihood.log_prob(params, values).gather(1, elements)
    some = likelihood.of_elements(elements)
    torch.testing.assert_close(some.log_prob(chosen, data), expected)
    rows = torch.tensor([2, 0])
    picked = some.select(rows).trimmed(2).log_prob(chosen[rows, :2], data[rows, :2])
    torch.testing.assert_close(picked, expected[rows, :2])


@every_family
def test_gradients_are_those_of_finite_differences(name):
    family = FAMILIES[name]
    params = family.decoded(2)
    values = family.values(params)
    if name.startswith("Laplace"):  # not at its kink
        values = values + 0.01
    wanted = params.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: family.likelihood.log_prob(p, values), (wanted,))


@every_family
def test_a_saved_likelihood_is_the_same_when_loaded(name):
    family = FAMILIES[name]
    likelihood = family.likelihood
    tensors, description = likelihood.to_parts()
    again = Likelihood.from_parts((tensors, json.loads(json.dumps(description))))
    assert type(again) is type(likelihood)
    assert again.to_parts()[1] == json.loads(json.dumps(description)) == description
    assert (again.param_shape, again.support) == (likelihood.param_shape, likelihood.support)
    params = family.decoded(5)
    values = family.values(params)
    assert torch.equal(again.log_prob(params, values), likelihood.log_prob(params, values))


@every_family
def test_unobserved_elements_have_no_gradient(name):
    """NaN in y reaches neither log p(x|z) nor its gradient; 0 need not be in the support."""
    family = FAMILIES[name]
    likelihood = family.likelihood.for_data((E,), torch.empty(0, dtype=DOUBLE))
    params = family.decoded(7, 3)
    values = family.values(params[0])
    values[:, ::2] = torch.nan
    evidence = cc.Evidence.from_nan(values)
    params.requires_grad_()
    masked = likelihood.masked_log_prob(params, evidence.values, evidence.mask)
    assert masked.isfinite().all()
    (gradient,) = torch.autograd.grad(masked.sum(), params)
    assert gradient.isfinite().all()
    assert (gradient[:, :, ::2] == 0).all()
    assert (gradient[:, :, 1::2] != 0).any()


class Power(Laplace):
    """p(t|z) = a t^(a−1) for 0 < t ≤ 1, with a = eᵖ: at t = 0 log p is infinite or NaN."""

    placeholder = 0.5

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return params + params.expm1() * values.log()


def test_a_placeholder_stands_in_for_unobserved_values_outside_the_support():
    params = torch.linspace(-1, 1, 5).requires_grad_()
    values, mask = torch.tensor([0.2, 0.9, 0.0, 0.0, 0.0]), torch.arange(5) < 2
    likelihood = Power()
    result = likelihood.masked_log_prob(params[None], values[None], mask[None])
    torch.testing.assert_close(result[0], likelihood.log_prob(params, values)[:2].sum())
    (gradient,) = torch.autograd.grad(result.sum(), params)
    assert gradient.isfinite().all()
    assert torch.equal(gradient != 0, mask)
    bank = likelihood.pairwise_log_prob((params[None].detach(),), values[None], mask[None])
    torch.testing.assert_close(bank[0], result.detach())


@every_family
def test_single_precision_keeps_the_digits_of_double(name):
    family = FAMILIES[name]
    params = family.decoded(50)
    values = family.values(params).float()
    single = Likelihood.from_parts(
        ({k: v.float() for k, v in family.likelihood.to_parts()[0].items()},
         family.likelihood.to_parts()[1])
    )  # fmt: skip
    rounded = params.float()
    result = single.log_prob(rounded, values)
    assert result.dtype == torch.float32
    exact = family.likelihood.log_prob(rounded.double(), values.double())
    # log p is as accurate as float32 holds the residual of a value from its location
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)
    for moment in (single.mean, single.variance, single.fisher):
        assert moment(rounded).dtype == torch.float32
    noise = single.noise((50, E), generator=seeded(0), like=rounded)
    assert single.draw(rounded, noise).dtype == torch.float32


def test_every_exported_family_is_tested():
    exported = set(cc.likelihoods.__all__) - {"Likelihood", "Bernoulli", "Mixed"}
    assert {type(family.likelihood).__name__ for family in FAMILIES.values()} == exported


def rows_in_the_docs() -> dict[str, set[str]]:
    """What else than exact values each family takes, by the first table of the page."""
    page = Path(__file__).parents[2] / "docs" / "likelihoods.md"
    table = page.read_text().split("| name |")[1].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in table.splitlines()[2:]]
    return {row[1].split("(")[0]: set(row[4].split(", ")) for row in rows[::-1]}


def test_every_exported_family_has_a_row_in_the_docs():
    assert rows_in_the_docs().keys() == set(cc.likelihoods.__all__) - {"Likelihood"}


@every_family
def test_the_docs_say_what_a_family_takes(name):
    likelihood = FAMILIES[name].likelihood
    listed = rows_in_the_docs()[type(likelihood).__name__] - {"", "sums"}
    assert listed in ({"as the other"}, set(likelihood.uncertain))


def test_draws_of_one_query_do_not_depend_on_those_beside_it():
    for family in FAMILIES.values():
        params = family.decoded(4)
        noise = family.likelihood.noise((10, 1, E), generator=seeded(0), like=params)
        together = family.likelihood.draw(params, noise)
        assert together.shape == (10, 4, E)
        for query in range(4):
            alone = family.likelihood.draw(params[[query]], noise)
            assert torch.equal(together[:, [query]], alone)


def test_noise_is_one_number_per_element_and_the_same_for_the_same_seed():
    like = torch.empty(0)
    for family in FAMILIES.values():
        a, b = (family.likelihood.noise((3, E), generator=seeded(5), like=like) for _ in range(2))
        assert a.shape == (3, E)
        assert torch.equal(a, b)
        assert not math.isnan(a.sum())
