"""Pareto smoothing: ArviZ's figures, the k of known tails, and independence of queries."""

import math

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.diagnostics import log_mean_exp, pareto_k_limit, pareto_smooth


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.double)


def pareto(k: float, *shape: int, seed: int = 0) -> Tensor:
    """Logarithms of draws of the generalized Pareto distribution with σ = 1."""
    survival = torch.rand(*shape, generator=seeded(seed), dtype=torch.double)
    return (torch.expm1(-k * survival.log()) / k).log()


def spread_out(num_draws: int, k: float) -> Tensor:
    """Weights with a tail of about this k that need no generator: figures kept here stay right."""
    index = torch.arange(1, num_draws + 1, dtype=torch.double)
    return -k * (index * (math.sqrt(5) - 1) / 2).frac().log() + 0.1 * index.cos()


def with_no_weight(log_weights: Tensor, num: int) -> Tensor:
    return torch.cat([log_weights.new_full((num,), -math.inf), log_weights[num:]])


def tied(log_weights: Tensor) -> Tensor:
    """Rounded, so that many are equal, at the cutoff and elsewhere."""
    return (log_weights * 4).round() / 4


CASES = {
    "4 draws": spread_out(4, 1.0),
    "20 draws, one too few": spread_out(20, 0.6),
    "21 draws, just enough": spread_out(21, 0.6),
    "24 draws": spread_out(24, 1.0),
    "225 draws": spread_out(225, 0.5),
    "226 draws": spread_out(226, 0.5),
    "light": spread_out(1000, 0.2),
    "heavy": spread_out(1000, 1.2),
    "heavier": spread_out(1000, 10.0),
    "beyond a double": spread_out(300, 200.0),
    "equal": torch.full((100,), -3.0, dtype=torch.double),
    "some weights of 0": with_no_weight(spread_out(300, 0.8), 100),
    "a tail of weights of 0": with_no_weight(spread_out(300, 0.8), 270),
    "three weights that are not 0": with_no_weight(spread_out(300, 0.8), 297),
    "tied": tied(spread_out(400, 0.8)),
    "far from 0": spread_out(300, 0.8) - 1e5,
    "Pareto, k = 0.7": pareto(0.7, 500),
    "Pareto, k = 3": pareto(3.0, 500),
    "Pareto, k = −½": pareto(-0.5, 500),
}

# k, and the largest two and the sum of squares of the smoothed weights: arviz.psislw of 0.23.4
BY_ARVIZ = {
    "4 draws": (math.inf, 0.460925642096, 0.225053887611, 0.315102598316),
    "20 draws, one too few": (math.inf, 0.192829419369, 0.101694509152, 0.0795923361433),
    "21 draws, just enough": (0.586184092234, 0.175496262728, 0.0954578622929, 0.0713416169682),
    "24 draws": (0.730537070044, 0.234374778724, 0.11029677574, 0.093825745512),
    "225 draws": (0.365566950783, 0.0344655602426, 0.0244356005357, 0.00730760612087),
    "226 draws": (0.326781860684, 0.0342862318344, 0.0241892949542, 0.00729476471203),
    "light": (0.228230666554, 0.00368592762404, 0.00302593469872, 0.00106922061007),
    "heavy": (1.28572117743, 0.312997621836, 0.120492136175, 0.121212735754),
    "heavier": (7.50421274609, 0.999731067243, 0.000262702246808, 0.999462275856),
    "beyond a double": (94.0588593582, 1, 1.32592514134e-45, 1),
    "equal": (math.inf, 0.01, 0.01, 0.01),
    "some weights of 0": (0.700484318074, 0.124403706723, 0.0572310055561, 0.0269379014921),
    "a tail of weights of 0": (0.0590920518287, 0.122276854976, 0.107450612683, 0.0626533051101),
    "three weights that are not 0": (math.inf, 0.540809989088, 0.297487599033, 0.407121985883),
    "tied": (0.531258244631, 0.0790724198382, 0.0424283916798, 0.0141341892635),
    "far from 0": (0.707916889627, 0.111679329487, 0.0510384461547, 0.0216658256717),
}

# ArviZ takes the difference of two exponentials, with an error of 2e-16 of the largest weight, for
# the excess over the cutoff, which is itself small where the weights are nearly equal.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("name", BY_ARVIZ)
def test_arvizs_recorded_figures_are_reproduced(name):
    smoothed, k = pareto_smooth(CASES[name])
    weights = smoothed.exp()
    figures = [k, *weights.sort(descending=True).values[:2], weights.square().sum()]
    wanted = torch.tensor(BY_ARVIZ[name], dtype=torch.double)
    torch.testing.assert_close(torch.stack(figures), wanted, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_k_are_those_of_arviz(name):
    arviz = pytest.importorskip("arviz", reason="arviz is not installed")
    if not hasattr(arviz, "psislw"):
        pytest.skip("arviz 1.x has no psislw of this form")
    wanted, wanted_k = arviz.psislw(CASES[name].numpy().copy())
    smoothed, k = pareto_smooth(CASES[name])
    torch.testing.assert_close(k.item(), float(wanted_k), **CLOSE)
    wanted = torch.from_numpy(wanted)
    if name == "tied":  # which of two equal weights becomes the larger one is left open
        smoothed, wanted = smoothed.sort().values, wanted.sort().values
    torch.testing.assert_close(smoothed, wanted, **CLOSE)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 1.0, 2.0])
def test_the_k_of_a_pareto_distribution_is_recovered(k):
    """What lies above a cutoff of a Pareto distribution is Pareto with the same k.

    The estimate has a standard error of (1 + k) / √M, M = 3 √S (Zhang & Stephens, for maximum
    likelihood), and the prior at ½ draws it there by 10 / (M + 10).
    """
    num_draws, num_sets = 10_000, 50
    size = 3 * math.sqrt(num_draws)
    estimates = pareto_smooth(pareto(k, num_draws, num_sets))[1]
    expected = (size * k + 5) / (size + 10)
    # 5 standard errors of the mean of the sets, and twice 1 / M for the estimate's own bias
    allowed = 5 * (1 + k) / math.sqrt(size * num_sets) + 2 / size
    assert abs(estimates.mean().item() - expected) < allowed
    assert estimates.std().item() == pytest.approx((1 + k) / math.sqrt(size), rel=0.4)


def test_k_of_a_gaussian_proposal_that_is_too_narrow_is_its_closed_form():
    """p = N(0, 1), q = N(0, s²): P(w > t) falls like t^(−1/k) with k = 1 − s²."""
    for scale, k in ((0.8, 0.36), (0.5, 0.75)):
        z = scale * normal(100_000, 8)
        estimates = pareto_smooth(z.square() / 2 * (1 / scale**2 - 1))[1]
        # a logarithm in the tail delays the limit: the estimates are some 0.1 below it
        assert estimates.mean().item() == pytest.approx(k, abs=0.15)


def test_smoothing_brings_the_mean_weight_closer_to_its_value():
    """Pareto weights with k = 0.6 have the mean 1 / (1 − k); PSIS averages vary less than raw."""
    log_weights = pareto(0.6, 1000, 400)
    smoothed, _ = pareto_smooth(log_weights)
    raw = log_mean_exp(log_weights)[0]
    # back from normalised weights by the smallest one, which smoothing leaves as it is
    lowest = log_weights.argmin(0, keepdim=True)
    offset = (log_weights - smoothed).gather(0, lowest)
    mean = log_mean_exp(smoothed + offset)[0].exp()
    truth = 1 / (1 - 0.6)
    assert (mean - truth).square().mean() < 0.8 * (raw.exp() - truth).square().mean()


def test_only_the_tail_is_smoothed_and_in_the_order_of_the_raw_weights():
    log_weights = normal(1000, 5)
    smoothed, _ = pareto_smooth(log_weights)
    size = math.ceil(3 * math.sqrt(1000))
    order = log_weights.argsort(0)
    shift = (smoothed - log_weights).gather(0, order)
    body, tail = shift[:-size], shift[-size:]
    torch.testing.assert_close(body, body[:1].expand_as(body))
    assert ((tail - body[:1])[:-1].abs() > 1e-6).all()  # the largest stays if the fit is above it
    assert (smoothed.gather(0, order).diff(dim=0) >= 0).all()
    largest = smoothed.amax(0) - body[0]
    assert (largest <= log_weights.amax(0) + 1e-12).all()


@pytest.mark.parametrize("num_draws", [1, 2, 10, 21, 500])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3), (2, 0)])
def test_smoothed_weights_sum_to_one_for_any_batch(num_draws, batch):
    smoothed, k = pareto_smooth(2 * normal(num_draws, *batch))
    assert (smoothed.shape, k.shape) == ((num_draws, *batch), batch)
    torch.testing.assert_close(smoothed.logsumexp(0), torch.zeros(batch).double())
    assert (k.isfinite() if num_draws > 20 else k.isinf()).all()


def test_a_batch_is_what_its_entries_are_alone():
    """Tails of every length in one batch, some that cannot be fitted, some that are not weights."""
    columns = [c for c in CASES.values() if len(c) == 300]
    columns += [2 * normal(300), tied(normal(300)), torch.zeros(300).double()]
    columns += [torch.full((300,), -math.inf).double(), torch.full((300,), math.nan).double()]
    together, k = pareto_smooth(torch.stack(columns, 1))
    for index, column in enumerate(columns):
        alone, k_alone = pareto_smooth(column)
        # sums of rows of another length in memory may round otherwise
        torch.testing.assert_close(together[:, index], alone, rtol=0, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(k[index], k_alone, rtol=0, atol=1e-12, equal_nan=True)


def test_another_entry_changes_nothing():
    first, second = 2 * normal(300, 6), 2 * normal(300, 6)
    second[:, 3] = math.nan
    others = [0, 1, 2, 4, 5]
    for one, other in zip(pareto_smooth(first), pareto_smooth(second), strict=True):
        assert torch.equal(one[..., others], other[..., others])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nan_and_plus_infinity_affect_only_their_entry(wrong):
    log_weights = normal(200, 2)
    log_weights[17, 1] = wrong
    smoothed, k = pareto_smooth(log_weights)
    assert smoothed[:, 0].isfinite().all()
    assert k[0].isfinite()
    assert smoothed[:, 1].isnan().all()
    assert k[1].isnan()


@pytest.mark.parametrize("num_draws", [1, 10, 200])
def test_an_entry_of_weights_that_are_all_0_has_no_k(num_draws):
    smoothed, k = pareto_smooth(torch.full((num_draws,), -math.inf))
    assert smoothed.isnan().all()
    assert k.isnan()


def test_weights_of_0_stay_0():
    log_weights = with_no_weight(normal(300), 100)
    smoothed, _ = pareto_smooth(log_weights)
    assert torch.equal(smoothed.isinf(), log_weights.isinf())


def test_equal_weights_stay_equal_and_have_no_tail():
    smoothed, k = pareto_smooth(torch.full((100, 2), 5.0).double())
    torch.testing.assert_close(smoothed, torch.full((100, 2), -math.log(100)).double())
    assert k.isinf().all()


@pytest.mark.parametrize("spread", [1e-6, 1e-12, 1e-20])
def test_nearly_equal_weights_have_the_k_of_their_spread(spread):
    """exp(log w) is linear on this scale, so that k is that of uniform weights, near −1."""
    level = torch.rand(1000, 20, generator=seeded(0), dtype=torch.double)
    smoothed, k = pareto_smooth(spread * level)
    assert smoothed.isfinite().all()
    # the prior brings −1 to (−95 + 5) / 105 = −0.86
    assert k.mean().item() == pytest.approx(-0.86, abs=0.1)


def test_equal_weights_in_the_tail_keep_the_order_of_the_draws():
    log_weights = torch.zeros(200).double()
    log_weights[50:80] = 2.0
    log_weights[100:103] = torch.tensor([3.0, 4.0, 5.0])
    smoothed, k = pareto_smooth(log_weights)
    assert k.isfinite()
    assert (smoothed[50:80].diff() > 0).all()


def test_single_precision_is_computed_in_double():
    log_weights = (2 * normal(1000, 3)).float()
    smoothed, k = pareto_smooth(log_weights)
    assert smoothed.dtype == k.dtype == torch.float32
    in_double, k_in_double = pareto_smooth(log_weights.double())
    assert torch.equal(smoothed, in_double.float())
    assert torch.equal(k, k_in_double.float())


def test_the_given_weights_are_not_changed():
    log_weights = normal(100)
    before = log_weights.clone()
    pareto_smooth(log_weights)
    assert torch.equal(log_weights, before)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(()), torch.zeros(0), torch.zeros(0, 3), torch.zeros(5, dtype=torch.int64)]
)
def test_invalid_log_weights_are_refused(wrong):
    with pytest.raises(ValueError, match=r"floating-point log-weights of shape \(S, \*batch\)"):
        pareto_smooth(wrong)


@pytest.mark.parametrize(
    ("num_draws", "limit"), [(10, 0.0), (100, 0.5), (1000, 2 / 3), (2155, 0.7)]
)
def test_the_largest_k_to_trust_grows_with_the_draws_up_to_a_limit(num_draws, limit):
    assert pareto_k_limit(num_draws) == pytest.approx(limit)
    assert pareto_k_limit(1_000_000) == 0.7


@pytest.mark.parametrize("num_draws", [1, 0, -5])
def test_a_limit_for_fewer_than_two_draws_is_refused(num_draws):
    with pytest.raises(ValueError, match=f"expected num_draws >= 2, got {num_draws}"):
        pareto_k_limit(num_draws)
