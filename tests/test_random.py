"""Randomness: quasi-random normal points are distributed as normal draws, with their own seed."""

import math

import pytest
import torch
from problems import seeded

from crosscoding.random import quasi_normal

DOUBLE = torch.empty(0, dtype=torch.double)


@pytest.mark.parametrize("dim", [1, 2, 20, 128])
def test_moments_are_those_of_the_standard_normal(dim):
    num = 1024
    z = quasi_normal(num, dim, generator=seeded(0), like=DOUBLE)
    assert z.shape == (num, dim)
    # Each axis of a Sobol sequence is evenly spread: its mean and variance are closer by far than
    # those of independent draws (1/32 and 1/23), of which one standard error is granted here.
    assert (z.mean(0).abs() < 0.1 / math.sqrt(num)).all()
    assert ((z.var(0) - 1).abs() < math.sqrt(2 / num)).all()
    if 1 < dim <= 20:  # between axes: 5 standard errors of independent draws
        correlation = torch.corrcoef(z.mT) - torch.eye(dim, dtype=z.dtype)
        assert correlation.abs().max() < 5 / math.sqrt(num)


def test_means_over_different_seeds_are_unbiased():
    """Scrambled: E over seeds of a tail probability is the normal's, none of it left out."""
    shares = [
        (quasi_normal(64, 2, generator=seeded(seed), like=DOUBLE) > 1).double().mean(0)
        for seed in range(100)
    ]
    shares = torch.stack(shares)
    exact = 0.5 * math.erfc(1 / math.sqrt(2))
    error = shares.std(0) / math.sqrt(100)
    assert ((shares.mean(0) - exact).abs() < 5 * error).all()


def test_points_are_spread_more_evenly_than_draws():
    """The mean of a smooth function has a smaller error than that of independent draws."""

    def error(points):
        return (points.cos().prod(-1).mean() - math.exp(-0.5 * 2)).item()

    quasi = [error(quasi_normal(256, 2, generator=seeded(s), like=DOUBLE)) for s in range(20)]
    plain = [error(torch.randn(256, 2, generator=seeded(s), dtype=torch.double)) for s in range(20)]
    # A third at most: measured a twentieth.
    assert torch.tensor(quasi).square().mean() < torch.tensor(plain).square().mean() / 9


def test_the_seed_determines_the_points():
    first, second, other = (
        quasi_normal(32, 5, generator=seeded(s), like=torch.empty(0)) for s in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_generator_moves_on():
    generator = seeded(1)
    first = quasi_normal(32, 5, generator=generator, like=torch.empty(0))
    assert not torch.equal(first, quasi_normal(32, 5, generator=generator, like=torch.empty(0)))


def test_points_are_finite_and_of_the_dtype_asked_for():
    for like in (torch.empty(0), DOUBLE):
        z = quasi_normal(4096, 3, generator=seeded(0), like=like)
        assert z.dtype == like.dtype
        assert z.isfinite().all()


def test_torchs_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    quasi_normal(32, 5, generator=seeded(0), like=torch.empty(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_later_points_are_those_of_the_whole_sequence(start):
    whole = quasi_normal(1200, 3, generator=seeded(2), like=DOUBLE)
    some = quasi_normal(100, 3, generator=seeded(2), like=DOUBLE, start=start)
    assert torch.equal(some, whole[start : start + 100])
