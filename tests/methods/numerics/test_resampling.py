"""Weighted points: counts in systematic resampling, and temperatures that keep an ESS."""

import math

import pytest
import torch
from problems import seeded

from crosscoding.diagnostics import importance_ess
from crosscoding.methods.numerics.resampling import (
    bounded,
    flattened,
    log_mean_of_islands,
    next_temperature,
    systematic,
    taken,
)


def ratios(num: int = 200, batch: int = 4, spread: float = 5.0) -> torch.Tensor:
    return spread * torch.randn(num, batch, generator=seeded(0), dtype=torch.double)


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("num", [1, 7, 1000])
def test_counts_are_within_one_of_what_is_expected(num, offset):
    log_weights = ratios(spread=1.0)
    index = systematic(log_weights, torch.tensor(offset), num)
    assert index.shape == (num, 4)
    assert (index.diff(dim=0) >= 0).all()
    for query in range(4):
        counts = torch.bincount(index[:, query], minlength=200)
        expected = num * log_weights[:, query].softmax(0)
        assert ((counts - expected).abs() < 1 + 1e-9).all()


def test_counts_are_unbiased_over_offsets():
    log_weights = ratios(20, 1, spread=2.0)
    offsets = (torch.arange(500) + 0.5) / 500
    index = systematic(log_weights.expand(20, 500), offsets, 10)
    shares = torch.bincount(index.flatten(), minlength=20) / index.numel()
    # Offsets on a grid of 500: each weight's share of 10 draws is off by a step of it at most.
    torch.testing.assert_close(shares.double(), log_weights[:, 0].softmax(0), rtol=0, atol=1e-3)


def test_a_draw_of_weight_0_is_never_chosen():
    log_weights = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -math.inf])[:, None]
    for offset in (0.0, 0.5, 0.999_999):
        index = systematic(log_weights, torch.tensor(offset), 50)
        assert set(index.flatten().tolist()) == {1, 3}


def test_each_entry_of_a_batch_of_any_shape_is_resampled_by_itself():
    log_weights = ratios(50, 6).reshape(50, 2, 3)
    offset = torch.rand(2, 3, generator=seeded(1))
    index = systematic(log_weights, offset, 9)
    assert index.shape == (9, 2, 3)
    for i in range(2):
        for j in range(3):
            alone = systematic(log_weights[:, i, j, None], offset[i, j], 9)
            assert torch.equal(index[:, i, j], alone[:, 0])


def test_taken_selects_by_index():
    values = torch.randn(50, 2, 3, 4, generator=seeded(2))
    index = torch.randint(50, (7, 2, 3), generator=seeded(3))
    result = taken(values, index)
    assert result.shape == (7, 2, 3, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(result[:, i, j], values[index[:, i, j], i, j])
    assert torch.equal(taken(values[..., 0], index), result[..., 0])


@pytest.mark.parametrize("least_ess", [2.0, 50.0, 100.0, 190.0])
@pytest.mark.parametrize("start", [0.0, 0.02])
def test_the_next_temperature_leaves_that_ess(start, least_ess):
    log_ratio, now = ratios(), torch.full((4,), start, dtype=torch.double)
    sharper = next_temperature(log_ratio, now, least_ess)
    ess = importance_ess((sharper - now) * log_ratio)
    assert (sharper >= now).all()
    assert (sharper <= 1).all()
    short = sharper < 1
    assert (ess >= least_ess - 1e-3).all()
    # 16 bisections leave 1.5e-5 of the temperature, and the ESS falls by 200 over 0.1 of it.
    torch.testing.assert_close(
        ess[short], torch.full_like(ess[short], least_ess), rtol=0, atol=0.05
    )


def test_the_last_temperature_is_one_exactly():
    now = torch.tensor([0.0, 0.4, 0.999], dtype=torch.double)
    flat = 1e-3 * ratios(batch=3)
    assert next_temperature(flat, now, 100.0).tolist() == [1.0, 1.0, 1.0]


def test_impossible_points_do_not_stop_the_temperature():
    log_ratio = ratios()
    log_ratio[::2] = -math.inf
    sharper = next_temperature(log_ratio, torch.zeros(4, dtype=torch.double), 50.0)
    assert sharper.isfinite().all()
    assert (sharper > 0).all()
    kept = log_ratio[1::2]
    without = next_temperature(kept, torch.zeros(4, dtype=torch.double), 50.0)
    torch.testing.assert_close(sharper, without)


def test_islands_give_the_mean_and_the_error_of_it():
    islands = torch.tensor([[0.0, -700.0], [1.0, -699.0], [0.5, -699.5]], dtype=torch.double)
    log_mean, error = log_mean_of_islands(islands)
    z = islands[:, 0].exp()
    wanted = z.mean().log()
    torch.testing.assert_close(log_mean, torch.stack([wanted, wanted - 700]))
    # widened by the 97.5 % quantile of t with 2 degrees of freedom, 4.30 (here 3.85)
    plain = z.std() / z.mean() / math.sqrt(3)
    torch.testing.assert_close(
        error / plain, torch.full((2,), 3.85 / 1.96).double(), rtol=0.01, atol=0
    )


def test_one_island_has_no_error():
    log_mean, error = log_mean_of_islands(torch.tensor([[2.0]]))
    assert log_mean.tolist() == [2.0]
    assert error.isnan().all()


def test_weights_of_0_stay_0_and_do_not_become_nan():
    log_weights = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]])
    assert bounded(log_weights).isfinite().all()
    assert bounded(log_weights).softmax(0)[:, 0].tolist() == [0, 1]
    assert bounded(log_weights).softmax(0)[:, 1].tolist() == [0.5, 0.5]
    cold = flattened(log_weights, torch.zeros(2))
    assert cold.tolist() == [[0, 0], [0, 0]]
    assert flattened(log_weights, torch.tensor(0.5))[:, 0].softmax(0).tolist() == [0, 1]
    assert flattened(torch.tensor([[math.inf]]), torch.zeros(1)).tolist() == [[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperatures_found_piece_by_piece_are_those_found_at_once(dtype, monkeypatch):
    log_ratio = -100 * ratios(500, 9).square().to(dtype)  # most are too small for a float
    log_ratio[::3, 1] = -math.inf
    log_ratio[:, 2] = -math.inf  # no temperature leaves any
    log_ratio[:, 3] = 7.0  # all are the same
    now = torch.linspace(0.0, 0.5, 9, dtype=dtype)
    whole = next_temperature(log_ratio, now, 40.0)
    monkeypatch.setattr("crosscoding.methods.numerics.resampling._CACHE_BYTES", 500 * 8 * 2)
    assert torch.equal(next_temperature(log_ratio, now, 40.0), whole)
    assert whole[2:4].tolist() == [now[2], 1.0]
    rest = [0, 1, *range(4, 9)]
    gain, some = (whole - now)[rest], bounded(log_ratio[:, rest])
    assert (importance_ess(gain * some) >= 40 * (1 - 1e-3)).all()
    finest = 2.0**-16  # of bisection
    assert ((importance_ess((gain + finest) * some) < 40) | (whole[rest] == 1)).all()
    assert (whole[rest] < 1).sum() > 3
