"""Weighted points: choosing the next temperature, and resampling by weight."""

import math

import torch
from torch import Tensor

from crosscoding.diagnostics import mean_error

_BISECTIONS = 16  # of a temperature, to 1.5e-5 of the remaining interval
_LEAST_LOG = -1e30  # instead of −inf, as −inf − (−inf) is NaN
_LEAST_EXPONENT = -40.0  # e⁻⁴⁰ = 4e-18 of the largest weight is below rounding; denormals are slow
# Effective draws that a Gaussian is fitted to: so many per dimension, and some more; of few draws,
# one in so many. On mnist-20d, half of the first two costs 24 % more decodes, double of the third
# 25 %, and the opposite 2 % or nothing; log p(x) moves by at most 0.05 nats.
_FIT_PER_DIMENSION, _FIT_MORE, _FIT_ONE_IN = 6.0, 24, 3
_CACHE_BYTES = 2**20  # of weights processed at once


def next_temperature(log_ratio: Tensor, now: Tensor, least_ess: float) -> Tensor:
    """The largest t ≤ 1 at which weights r^{t − now} leave an ESS of `least_ess`, shape (B,).

    Args:
        log_ratio: log r at points of temperature `now`, shape (S, B); −inf allowed.
        now: Temperature of each query, shape (B,).
        least_ess: Effective sample size to keep, between 1 and S.
    """
    size = max(_CACHE_BYTES // (log_ratio.element_size() * max(len(log_ratio), 1)), 1)
    parts = zip(log_ratio.mT.split(size), now.split(size), strict=True)
    return torch.cat([_next_temperature(ratio, start, least_ess) for ratio, start in parts])


def _next_temperature(log_ratio: Tensor, now: Tensor, least_ess: float) -> Tensor:
    """`next_temperature` for queries that fit in cache, with log r of shape (B, S)."""
    log_ratio = bounded(log_ratio.contiguous())
    largest = log_ratio.amax(1, keepdim=True)
    log_ratio, possible = log_ratio - largest, largest[:, 0] > _LEAST_LOG

    def leaves_enough(temperature: Tensor) -> Tensor:
        exponents = ((temperature - now)[:, None] * log_ratio).clamp_min_(_LEAST_EXPONENT)
        weights = exponents.exp_()  # the largest is 1
        enough = weights.sum(1).square() >= least_ess * weights.square_().sum(1)
        return enough & possible

    low, high = now.clone(), torch.ones_like(now)
    whole = leaves_enough(high)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        fits = leaves_enough(middle)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(whole, 1.0, low)


def enough_to_fit(latent_dim: int, num: int) -> float:
    """Effective draws, of `num`, that a Gaussian is fitted to."""
    return min(_FIT_PER_DIMENSION * latent_dim + _FIT_MORE, num / _FIT_ONE_IN)


def bounded(log_weights: Tensor) -> Tensor:
    """Log-weights with −1e30 instead of −inf: still a weight of 0, but safe in arithmetic.

    0 · (−inf), at temperature 0, and −inf − (−inf), if all weights are 0, would be NaN.
    """
    return log_weights.clamp_min(_LEAST_LOG)


def flattened(log_weights: Tensor, temperature: Tensor) -> Tensor:
    """log w^t, (S, B), for each query's t, (B,); −inf is allowed, and NaN becomes 0."""
    return (temperature * bounded(log_weights)).nan_to_num(nan=0.0)


def systematic(
    log_weights: Tensor, offset: Tensor, num: int, temperature: Tensor | None = None
) -> Tensor:
    """Systematic resampling: indices drawn by log_weights (S, *B), in increasing order, (num, *B).

    Args:
        log_weights: Not normalised.
        offset: Uniform in [0, 1), broadcasts to (*B).
        num: Number of draws.
        temperature: t of each query, (*B), if they are drawn by w^t.
    """
    batch = log_weights.shape[1:]
    steps = torch.arange(num, dtype=torch.double, device=log_weights.device)
    points = (steps + offset.double().expand(batch).reshape(-1, 1)) / num
    index = torch.empty_like(points, dtype=torch.long)
    flat = log_weights.flatten(1)
    size = max(_CACHE_BYTES // (8 * max(len(log_weights), 1)), 1)
    for start in range(0, len(points), size):
        some = slice(start, start + size)
        own = flat[:, some]
        if temperature is not None:
            own = flattened(own, temperature.flatten()[some])
        # Sums along contiguous memory: along the first dimension they take four times as long.
        cumulative = own.mT.contiguous().softmax(-1).cumsum(-1, dtype=torch.double)
        index[some] = torch.searchsorted(cumulative, points[some] * cumulative[:, -1:], right=True)
    return index.clamp_max_(len(log_weights) - 1).mT.reshape(num, *batch)


def taken(values: Tensor, index: Tensor) -> Tensor:
    """values (S, *B, *event) at index (num, *B) along the first dimension: (num, *B, *event)."""
    event = values.shape[index.ndim :]
    index = index.reshape(*index.shape, *[1] * len(event))
    return values.gather(0, index.expand(*index.shape[: index.ndim - len(event)], *event))


def log_mean_of_islands(log_islands: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of Z over islands, (I, B) -> (B,), and its standard error from their spread.

    The spread of few islands is known only roughly, so the error is widened as Student's t requires
    for ± 1.96 errors to cover 95 %. With one island it is NaN.
    """
    count = len(log_islands)
    log_mean = log_islands.logsumexp(0) - math.log(count)
    relative = (log_islands - log_mean).double().exp()
    error = relative[0] * math.nan
    if count > 1:
        freedom = count - 1
        # Of Student's t at 97.5 %, accurate to 1 % from 4 degrees of freedom on.
        quantile = 1.96 + 2.37 / freedom + 2.82 / freedom**2
        error = mean_error(relative) * quantile / 1.96
    return log_mean, error.to(log_mean.dtype)
