"""Quantiles, probabilities and likeliest values of single elements, against exact answers."""

import math

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import Tensor, nn
from torch.distributions import Normal

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    LogNormal,
    Mixed,
    Ordinal,
    Poisson,
)
from crosscoding.result.marginals import _in_order

PARTS = [Gaussian(0.3), Poisson(), Bernoulli(), Categorical(3), Ordinal([-1.0, 1.0])]
PARTS += [(Categorical(2, one_hot=True), 2)]
NAN = math.nan


def table_vae() -> cc.VAE:
    """Of one latent dimension: a number, a count, a bit, a class, an ordinal and a one-hot pair."""
    torch.manual_seed(1)
    decoder = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 9)).double()
    return cc.VAE(decoder, 1, Mixed(PARTS))


def row(**known: float) -> cc.Evidence:
    names = ("number", "count", "bit", "class", "ordinal")
    values = torch.tensor([known.get(name, NAN) for name in names] + [NAN] * 2)
    return cc.Evidence.from_nan(values.double())


def on_grid(vae: cc.VAE, evidence: cc.Evidence) -> tuple[Tensor, Tensor]:
    """The decoder's output on a grid of z, and p(z|x) there, for exact values alone."""
    z = torch.linspace(-7, 7, 4001, dtype=torch.double)[:, None]
    target = cc.VAETarget(vae, evidence)
    return vae.decode_flat(z), target.log_joint(z).softmax(0)


def test_quantiles_of_a_linear_gaussian_model_are_those_of_its_normals():
    problem = linear_gaussian_problem()
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    mean, variance = problem.exact_prediction()
    for q in (0.05, 0.5, 0.9):
        found = posterior.quantile(q, num=4000, seed=1)
        level = Normal(mean, variance.sqrt().clamp_min(1e-9)).cdf(found)
        query = ~problem.evidence.mask
        # draws are shared by queries: 6 standard errors of a level
        assert (level[query] - q).abs().max() < 6 * math.sqrt(q * (1 - q) / 4000)
        assert torch.equal(found[~query], problem.evidence.values[~query])
    low, high = posterior.interval(0.8, num=500, seed=2)
    both = posterior.quantile([0.1, 0.9], num=500, seed=2)
    assert torch.equal(torch.stack([low, high]), both)


def test_a_quantile_is_the_smallest_value_with_that_share_of_draws_below():
    vae = table_vae()
    posterior = cc.condition(vae, row(), seed=0)
    draws = posterior.predict(200, seed=3)[:, 1].sort().values
    for q, place in ((0.0, 0), (0.05, 9), (0.5, 99), (0.501, 100), (1.0, 199)):
        assert posterior.quantile(q, num=200, seed=3)[1] == draws[place]
    assert posterior.quantile(0.5)[3].isnan()  # classes have no order
    assert not posterior.quantile(0.5)[4].isnan()  # ordinals have
    observed = cc.condition(vae, row(**{"class": 2.0}), seed=0)
    assert observed.quantile(0.5)[3] == 2.0


def test_probabilities_are_those_of_a_grid():
    vae, evidence = table_vae(), row(number=0.2, count=2.0)
    found = cc.condition(vae, evidence, seed=0).probabilities()
    output, weights = on_grid(vae, evidence)
    bit = (weights * output[:, 2].sigmoid()).sum()
    classes = (weights[:, None] * output[:, 3:6].softmax(-1)).sum(0)
    cumulative = (torch.tensor([-1.0, 1.0]).double() - output[:, 6:7]).sigmoid()
    ordinal = torch.nn.functional.pad(cumulative, (1, 0)).diff(dim=-1)
    ordinal = torch.cat([ordinal, 1 - cumulative[:, 1:]], -1)
    ordinal = (weights[:, None] * ordinal).sum(0)
    hot = (weights[:, None] * output[:, 7:9].softmax(-1)).sum(0)
    tolerance = {"atol": 2e-3, "rtol": 0.0}  # the grid of Auto
    torch.testing.assert_close(found[2], torch.stack([1 - bit, bit, 0 * bit]), **tolerance)
    torch.testing.assert_close(found[3], classes, **tolerance)
    torch.testing.assert_close(found[4], ordinal, **tolerance)
    torch.testing.assert_close(found[5:, 1], hot, **tolerance)
    assert found[:2].isnan().all()


def test_an_observed_class_has_probability_1():
    found = cc.condition(table_vae(), row(**{"class": 2.0, "bit": 1.0}), seed=0).probabilities()
    assert found[3].tolist() == [0.0, 0.0, 1.0]
    assert found[2].tolist() == [0.0, 1.0, 0.0]


def test_probabilities_given_a_set_are_those_of_a_grid():
    vae = table_vae()
    allowed = torch.ones(7, 3, dtype=torch.bool)
    allowed[3, 0] = allowed[4, 1] = False
    evidence = row(number=0.2) & cc.Evidence.one_of(allowed).in_dtype(torch.double)
    found = cc.condition(vae, evidence, seed=0).probabilities()
    output, weights = on_grid(vae, row(number=0.2))
    of_class = output[:, 3:6].softmax(-1)
    cumulative = (torch.tensor([-1.0, 1.0]).double() - output[:, 6:7]).sigmoid()
    outer = torch.cat([cumulative[:, :1], 1 - cumulative[:, 1:]], -1)
    joint = weights * of_class[:, 1:].sum(-1) * outer.sum(-1)
    joint = joint / joint.sum()
    wanted = (joint[:, None] * of_class[:, 1:] / of_class[:, 1:].sum(-1, keepdim=True)).sum(0)
    torch.testing.assert_close(found[3, 1:], wanted, atol=2e-3, rtol=0.0)
    assert found[3, 0] == 0
    wanted = (joint[:, None] * outer / outer.sum(-1, keepdim=True)).sum(0)
    torch.testing.assert_close(found[4, [0, 2]], wanted, atol=2e-3, rtol=0.0)


def test_the_mode_of_normals_is_their_mean_and_of_classes_the_likeliest():
    problem = linear_gaussian_problem()
    posterior = cc.condition(problem.vae, problem.evidence, seed=0)
    mean, variance = problem.exact_prediction()
    gap = (posterior.mode(seed=0) - mean) / variance.sqrt().clamp_min(1e-9)
    # candidates are 0.02 deviations apart, and 1,000 draws of z tilt the density a little
    assert gap[~problem.evidence.mask].abs().max() < 0.35
    assert torch.equal(
        posterior.mode()[problem.evidence.mask], problem.evidence.values[problem.evidence.mask]
    )
    posterior = cc.condition(table_vae(), row(number=0.2), seed=0)
    mode, probabilities = posterior.mode(seed=0), posterior.probabilities()
    assert mode[2:5].tolist() == probabilities[2:5].argmax(-1).tolist()
    assert mode[5:].tolist() == (probabilities[5:, 1] > 0.5).double().tolist()
    output, weights = on_grid(table_vae(), row(number=0.2))
    rates = torch.arange(30.0)[:, None].double()
    counts = torch.distributions.Poisson(output[:, 1].exp()).log_prob(rates).exp() @ weights
    assert mode[1] == counts.argmax()


def test_the_mode_is_the_higher_of_two_peaks_and_not_between_them():
    """t = ±3 with weights 0.3 and 0.7: the mean lies where there is nothing."""
    decoder = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    with torch.no_grad():
        decoder[0].weight.fill_(200.0)
        decoder[0].bias.fill_(200 * 0.5244)  # Φ(0.5244) = 0.7
        decoder[2].weight.fill_(3.0)
        decoder[2].bias.zero_()
    vae = cc.VAE(decoder, 1, Gaussian(0.2))
    posterior = cc.condition(vae, cc.Evidence.from_nan(torch.tensor([NAN])), seed=0)
    assert abs(float(posterior.mode(seed=0)) - 3.0) < 0.1
    assert abs(float(posterior.mean()) - 1.2) < 0.15


def test_the_mode_of_a_log_normal_and_within_an_interval():
    vae = cc.VAE(nn.Linear(1, 1), 1, LogNormal(0.8))
    with torch.no_grad():
        vae.decoder.weight.zero_()
        vae.decoder.bias.fill_(1.0)
    nothing = cc.Evidence.from_nan(torch.tensor([NAN]))
    mode = float(cc.condition(vae, nothing, seed=0).mode(seed=0))
    assert mode == pytest.approx(math.exp(1.0 - 0.64), rel=0.05)
    within = cc.Evidence.interval(torch.tensor([2.0]), torch.tensor([9.0]))
    posterior = cc.condition(vae, within, seed=0)
    assert 2.0 <= float(posterior.mode(seed=0)) < 2.1  # the density falls from the bound on
    low, high = posterior.interval(1.0, seed=0)
    assert 2.0 <= float(low) < 2.1
    assert 8.5 < float(high) <= 9.0


def test_the_mode_given_a_sum_satisfies_it_in_a_linear_model():
    vae = cc.VAE(nn.Linear(1, 2), 1, Gaussian(0.5))
    total = cc.Evidence.linear(torch.ones(1, 2), torch.tensor([2.0]))
    posterior = cc.condition(vae, total, seed=0)
    gap = (posterior.mode(seed=0) - posterior.mean()) / posterior.std()
    assert gap.abs().max() < 0.3


def test_rows_drawn_for_frames_are_independent_of_each_other():
    vae = cc.VAE(nn.Linear(3, 4), 3, Gaussian(0.5))
    alike = cc.Evidence.from_nan(torch.tensor([0.3, NAN, NAN, NAN]).expand(900, 4))
    posterior = cc.condition(vae, alike, seed=0)
    assert posterior.predict(1, seed=0)[0, :, 1:].std(0).max() == 0  # these share their noise
    draws = posterior._independent(4, 0)
    assert (draws[..., 0] == 0.3).all()
    spread = draws[..., 1:].std(1) / posterior.std()[0, 1:]
    assert (spread - 1).abs().max() < 0.15  # 6 standard errors of 900 draws
    apart = (draws[0, :, 1:] - draws[1, :, 1:]).std(0) / posterior.std()[0, 1:]
    assert (apart - math.sqrt(2)).abs().max() < 0.3
    few = (draws.mean(1) - posterior.mean()[0])[:, 1:] / posterior.std()[0, 1:]
    assert few.abs().max() < 5 / 30
    assert torch.equal(draws, posterior._independent(4, 0))


@pytest.mark.parametrize("q", [-0.1, 1.1, [0.5, 2.0], [[0.5]], NAN])
def test_levels_must_be_shares(q):
    posterior = cc.condition(table_vae(), row(), seed=0)
    with pytest.raises(ValueError, match="quantile levels from 0 to 1"):
        posterior.quantile(q)


def test_bad_numbers_of_draws_and_levels_of_intervals():
    posterior = cc.condition(table_vae(), row(), seed=0)
    with pytest.raises(ValueError, match="draws >= 1, got 0"):
        posterior.quantile(0.5, num=0)
    with pytest.raises(ValueError, match="0 to 1, got 90"):
        posterior.interval(90)


def test_the_same_seed_gives_the_same_bits():
    posterior = cc.condition(table_vae(), row(), seed=0)
    for method in (lambda: posterior.quantile(0.5, seed=seeded(4)), lambda: posterior.mode(seed=4)):
        torch.testing.assert_close(method(), method(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draws_are_put_in_order_for_each_element(dtype):
    draws = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    draws[4, 1, 0] = torch.nan
    before = draws.clone()
    for own in (draws, draws[:, :1, :1]):  # of one column, whose copy has the same layout
        found = _in_order(own)
        torch.testing.assert_close(found, own.sort(0).values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(draws, before, rtol=0, atol=0, equal_nan=True)
