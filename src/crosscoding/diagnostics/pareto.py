"""Pareto-smoothed importance sampling (PSIS): how far importance weights can be trusted.

A generalized Pareto distribution is fitted to the largest weights. Its shape k says how many
moments the weights have: about 1/k. Its quantiles replace these weights, as they are less noisy.

Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling; the fit
is that of Zhang & Stephens (2009), A new and efficient estimation method for the generalized Pareto
distribution. Differs in: nothing but rounding; both follow `psislw` of ArviZ 0.x. If the tail has
fewer than 5 weights, nothing can be fitted: k is infinite and the weights stay as they are.
"""

import math

import torch
from torch import Tensor

_TINY = math.log(torch.finfo(torch.double).tiny)
_EPS = torch.finfo(torch.double).eps
_PRIOR_K, _PRIOR_DRAWS = 0.5, 10  # the prior of ArviZ: worth 10 draws with k = 0.5


@torch.no_grad()
def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log-weights, normalised over the first dimension, and the Pareto k of the tail.

    The tail is the M = min(S/5, 3 √S) largest weights, M rounded up, without those equal to the
    next smaller weight. The i-th smallest of its n weights becomes the ((i − ½)/n)-quantile of the
    fit, but no more than the largest raw weight. Equal weights keep the order of the draws.

    Args:
        log_weights: Unnormalised log-weights in nats, shape (S, *batch), S ≥ 1; −inf is a weight of
            0. Each batch entry is computed separately, in double precision.
    Returns:
        The smoothed log-weights, shape (S, *batch), and k, shape (*batch,), in the dtype of
        log_weights. k is infinite if the tail has fewer than 5 weights, as always for S ≤ 20. Both
        are NaN for an entry with a NaN or a +inf, or with −inf only.
    Raises:
        ValueError: log_weights has no draws or is not of a floating-point dtype.
    """
    if log_weights.ndim < 1 or len(log_weights) < 1 or not log_weights.is_floating_point():
        raise ValueError(
            "expected floating-point log-weights of shape (S, *batch), S >= 1, "
            f"got {log_weights.dtype} of shape {tuple(log_weights.shape)}"
        )
    num_draws, batch_shape = len(log_weights), log_weights.shape[1:]
    raw = log_weights.double().reshape(num_draws, batch_shape.numel()).mT.contiguous()
    raw = raw - raw.amax(1, keepdim=True)
    tail, draw, log_cutoff = _tail(raw)
    k, smoothed = _smoothed(tail, log_cutoff)
    result = raw.scatter(1, draw, smoothed)
    result = result - result.logsumexp(1, keepdim=True)
    k = torch.where(result[:, 0].isnan(), math.nan, k)
    result, k = result.mT.reshape(log_weights.shape), k.reshape(batch_shape)
    return result.to(log_weights.dtype), k.to(log_weights.dtype)


def pareto_k_limit(num_draws: int) -> float:
    """min(1 − 1/log₁₀ S, 0.7): the largest Pareto k with which S draws give reliable averages.

    It is negative below 10 draws, which are never enough.

    Source: Vehtari et al. (2024). Differs in: nothing.
    """
    if num_draws < 2:
        raise ValueError(f"expected num_draws >= 2, got {num_draws}")
    return min(1 - 1 / math.log10(num_draws), 0.7)


def _tail(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M largest of each row of raw (B, S), ascending; their indices; the next smaller one.

    Shapes (B, M), (B, M) and (B, 1). M is 0 for a single draw.
    """
    num_draws = raw.shape[1]
    size = math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))
    draw = raw.topk(min(size + 1, num_draws), dim=1, sorted=False).indices.sort(1).values
    values, order = raw.gather(1, draw).sort(dim=1, stable=True)
    return values[:, 1:], draw.gather(1, order)[:, 1:], values[:, :1].clamp_min(_TINY)


def _smoothed(tail: Tensor, log_cutoff: Tensor) -> tuple[Tensor, Tensor]:
    """k of each row, (B,), and the logarithms of the fit's quantiles in place of tail, (B, M)."""
    num_rows, width = tail.shape
    if width < 5:
        return tail.new_full((num_rows,), math.inf), tail
    inside = tail > log_cutoff
    size = inside.sum(1, keepdim=True).to(tail.dtype)  # int64 would become float32 below
    # exp(tail) − exp(cutoff), without losing digits if the weights are nearly equal
    excess = torch.where(inside, log_cutoff.exp() * torch.expm1(tail - log_cutoff), 0.0)
    k, scale = _fit(excess, size)
    rank = torch.arange(width, dtype=tail.dtype, device=tail.device) - (width - size)
    log_survival = torch.log1p(-(rank + 0.5).clamp_min(0.5) / size)
    quantile = torch.where(k.abs() < _EPS, -log_survival, torch.expm1(-k * log_survival) / k)
    smoothed = (scale * quantile + log_cutoff.exp()).log().clamp_max(0.0)
    fitted = (size > 4) & k.isfinite() & scale.isfinite()
    k = torch.where(fitted, k, math.inf)[:, 0]
    return k, torch.where(fitted & inside, smoothed, tail)


def _fit(excess: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """k and σ of the generalized Pareto distribution of each row, both (B, 1).

        p(x) = (1/σ) (1 + k x/σ)^(−1/k − 1),   θ = −k/σ,   k(θ) = (1/n) Σ_i log(1 − θ x_i)

    θ is the mean of a grid of values weighted by their profile likelihood. k has a prior at ½ that
    counts as 10 draws (Vehtari et al.); σ is computed from k before the prior, as in ArviZ.

    Args:
        excess: Tails, ascending, shape (B, M); the first M − n of each row are 0 and ignored.
        size: n, shape (B, 1). Below 5 the result is meaningless.
    Source: Zhang & Stephens (2009). Differs in: k has the opposite sign, and the prior.
    """
    width = excess.shape[1]
    num_points = 30 + size.sqrt().floor()
    most = 30 + math.isqrt(width)
    points = torch.arange(most, dtype=excess.dtype, device=excess.device) + 0.5
    first_quartile = width - size + (size / 4 + 0.5).floor() - 1
    quartile = excess.gather(1, first_quartile.long().clamp(0, width - 1))
    theta = (1 - (num_points / points).sqrt()) / (3 * quartile) + 1 / excess[:, -1:]
    k = torch.stack([_shape(column, excess, size) for column in theta.unsqueeze(-1).unbind(1)], 1)
    k = k.squeeze(-1)
    profile = size * ((-theta / k).log() - k - 1)
    profile = torch.where((points < num_points) & (theta != 0), profile, -math.inf)
    weights = profile.softmax(1)
    weights = torch.where(weights < 10 * _EPS, 0.0, weights)
    theta = torch.where(weights > 0, weights * theta, 0.0).sum(1, keepdim=True)
    theta = theta / weights.sum(1, keepdim=True)
    k = _shape(theta, excess, size)
    return (size * k + _PRIOR_DRAWS * _PRIOR_K) / (size + _PRIOR_DRAWS), -k / theta


def _shape(theta: Tensor, excess: Tensor, size: Tensor) -> Tensor:
    """k(θ) for one θ per row, (B, 1)."""
    return torch.log1p(-theta * excess).sum(1, keepdim=True) / size
