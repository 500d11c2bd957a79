"""The samplers against SciPy's distributions, over their whole ranges."""

from itertools import pairwise

import pytest
import scipy.stats
import torch
from problems import seeded

from crosscoding.likelihoods.samplers import (
    binomial,
    log_gamma,
    poisson,
    seeds,
    substream,
    uniforms,
)

NUM = 40_000
LEAST = 1e-4  # smallest accepted p-value; other seeds may fail by chance


def noise(seed: int = 0, num: int = NUM) -> torch.Tensor:
    return seeds((num,), generator=seeded(seed), like=torch.empty(0))


def check_counts(draws: torch.Tensor, distribution) -> None:
    """Chi-square over about 30 bins of equal mass."""
    edges = sorted({distribution.ppf(q / 30) for q in range(1, 30)})
    masses = [distribution.cdf(edges[0])]
    masses += [distribution.cdf(b) - distribution.cdf(a) for a, b in pairwise(edges)]
    masses.append(distribution.sf(edges[-1]))
    bins = torch.bucketize(draws, torch.tensor(edges, dtype=torch.double))
    observed = torch.bincount(bins, minlength=len(edges) + 1).double()
    expected = torch.tensor(masses, dtype=torch.double) * len(draws)
    used = expected > 5
    observed = torch.cat([observed[used], observed[~used].sum()[None]])
    expected = torch.cat([expected[used], expected[~used].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected).square() / expected).sum()
    if len(expected) > 1:
        assert scipy.stats.chi2.sf(statistic, len(expected) - 1) > LEAST


@pytest.mark.parametrize("shape", [1e-3, 0.05, 0.7, 1.0, 1.5, 8.0, 300.0, 1e6])
def test_gamma_draws_have_the_right_distribution(shape):
    draws = log_gamma(torch.tensor(shape), noise()).exp()
    draws = draws[draws > 0]  # for a shape of 1e-3, draws underflow but their logarithms do not
    if shape >= 0.05:
        assert len(draws) == NUM
        assert scipy.stats.kstest(draws, scipy.stats.gamma(shape).cdf).pvalue > LEAST


def test_gamma_of_a_shape_near_0_is_exact_in_logarithms():
    """P(G < x) = x^a / Γ(a + 1) for small x: −a log G is nearly exponential."""
    draws = -1e-3 * log_gamma(torch.tensor(1e-3), noise())
    assert draws.isfinite().all()
    assert scipy.stats.kstest(draws.clamp_min(0), scipy.stats.expon.cdf).pvalue > LEAST


@pytest.mark.parametrize("rate", [1e-8, 0.1, 3.0, 9.99, 10.0, 25.0, 1e3, 1e6])
def test_poisson_draws_have_the_right_distribution(rate):
    draws = poisson(torch.tensor(rate, dtype=torch.double), noise())
    assert (draws == draws.floor()).all()
    check_counts(draws, scipy.stats.poisson(rate))


def test_poisson_of_a_large_mean_is_nearly_normal():
    draws = poisson(torch.tensor(1e12, dtype=torch.double), noise())
    assert scipy.stats.kstest((draws - 1e12) / 1e6, scipy.stats.norm.cdf).pvalue > LEAST


@pytest.mark.parametrize(
    ("total", "probability"),
    [(1, 0.3), (12, 0.5), (12, 0.97), (255, 0.02), (255, 0.5), (255, 0.9), (10**6, 1e-6),
     (10**6, 0.3), (10**6, 1 - 1e-5), (10**9, 0.5)],
)  # fmt: skip
def test_binomial_draws_have_the_right_distribution(total, probability):
    p = torch.tensor(probability, dtype=torch.double)
    draws = binomial(torch.tensor(float(total)), p, noise())
    assert ((draws >= 0) & (draws <= total) & (draws == draws.floor())).all()
    check_counts(draws, scipy.stats.binom(total, probability))


def test_certain_binomials_and_empty_poissons_are_certain():
    p = torch.tensor([0.0, 1.0, 0.0, 1.0])
    total = torch.tensor([5.0, 5.0, 1e6, 1e6])
    assert torch.equal(binomial(total, p, noise(num=4)), (total * p).double())
    assert torch.equal(poisson(torch.zeros(4), noise(num=4)), torch.zeros(4, dtype=torch.double))


def test_nan_rates_terminate():
    assert poisson(torch.tensor([torch.nan, torch.inf]), noise(num=2)).shape == (2,)


def test_streams_are_uniform_and_do_not_depend_on_each_other():
    base = noise()
    streams = [uniforms(base, 0), uniforms(base, 1), uniforms(base, 100), substream(base, 0)]
    streams += [substream(base, 1), uniforms(substream(base, 0), 0), base]
    for stream in streams:
        assert stream.dtype == torch.double
        assert ((stream >= 0) & (stream < 1)).all()
        assert scipy.stats.kstest(stream, scipy.stats.uniform.cdf).pvalue > LEAST
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / NUM**0.5


def test_neighbouring_seeds_have_independent_streams():
    base = torch.arange(NUM, dtype=torch.double) * 2**-53
    stream = uniforms(base, 0)
    assert scipy.stats.kstest(stream, scipy.stats.uniform.cdf).pvalue > LEAST
    assert torch.corrcoef(torch.stack([stream[1:], stream[:-1]]))[0, 1].abs() < 5 / NUM**0.5
