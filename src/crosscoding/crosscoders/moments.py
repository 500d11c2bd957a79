"""Gaussians of weighted draws in closed form, with covariances that few draws leave well conditioned.

Points are standardised: mean 0 and variance 1 in every element, shape (B, S, dim); weights (B, S)
sum to 1 over S.
"""

import torch
from torch import Tensor

FLOOR = 1e-6  # least variance, of that of the draws: what float32 tells from 0
_FACTOR_ROUNDS = 30


def weighted_covariance(points: Tensor, weights: Tensor) -> Tensor:
    """Σ_s w_s x_s x_sᵀ, (B, dim, dim)."""
    rooted = points * weights.sqrt().unsqueeze(-1)
    return rooted.mT @ rooted


def shrunk(covariance: Tensor, count: Tensor) -> Tensor:
    """(1 − λ) Σ + λ diag Σ with the λ that expected squared error is least for.

        λ = Σ_{i≠j} var(r_ij) / Σ_{i≠j} r_ij²,   var(r) ≈ (1 − r²)² / (n − 1)

    Correlations that n draws cannot tell from 0 go; strong ones stay. As λ > 0 and diag Σ > 0, the
    result is positive definite even where there are fewer draws than dimensions.

    Args:
        covariance: Of draws, shape (*shape, dim, dim).
        count: Effective number n of the draws, shape (*shape).
    Source: Schäfer & Strimmer (2005), target D. Differs in: the variance of r is that of normal
    draws, and λ is at least 1 / (n + 1).
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(FLOOR)
    scale = diagonal.sqrt()
    squares = (covariance / (scale.unsqueeze(-1) * scale.unsqueeze(-2))).square().clamp_max(1)
    squares = squares - torch.diag_embed(squares.diagonal(dim1=-2, dim2=-1))
    dim = covariance.shape[-1]
    errors = ((1 - squares).square().sum((-2, -1)) - dim) / (count - 1).clamp_min(1)
    intensity = errors / squares.sum((-2, -1)).clamp_min(torch.finfo(errors.dtype).tiny)
    intensity = torch.minimum(intensity, torch.ones_like(count)).maximum(1 / (count + 1))
    kept = (1 - intensity)[..., None, None] * covariance
    kept.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return kept


def factors(points: Tensor, weights: Tensor, rank: int, count: Tensor) -> tuple[Tensor, Tensor]:
    """d² and U of the likeliest covariance diag(d²) + U Uᵀ, (B, dim) and (B, dim, rank).

    Principal components, then `_FACTOR_ROUNDS` of EM. d² stays above 1 / (n + 1): as much of an
    element's variance as n draws cannot tell from none.

    Source: Tipping & Bishop (1999) for the start, Rubin & Thayer (1982) for EM. Differs in: the
    bound on d².
    """
    num_factors = min(rank, points.shape[-1] - 1, points.shape[-2] - 1)
    least = (1 / (count + 1)).unsqueeze(-1)
    loadings = _principal_factors(points, weights, num_factors)
    variance = weights.unsqueeze(-2) @ points.square()
    variance = variance.squeeze(-2).clamp_min(FLOOR)
    noise = (variance - loadings.square().sum(-1)).maximum(least * variance)
    identity = torch.eye(num_factors, dtype=points.dtype, device=points.device)
    for _ in range(_FACTOR_ROUNDS if num_factors else 0):
        scaled = loadings.mT / noise.unsqueeze(-2)
        regression = torch.linalg.solve(identity + scaled @ loadings, scaled)
        hidden = points @ regression.mT
        cross = (points * weights.unsqueeze(-1)).mT @ hidden
        second = identity - regression @ loadings
        second = second + (hidden * weights.unsqueeze(-1)).mT @ hidden
        loadings = torch.linalg.solve(second, cross.mT).mT
        noise = (variance - (loadings * cross).sum(-1)).maximum(least * variance)
    empty = points.new_zeros(*loadings.shape[:-1], rank - num_factors)
    return noise, torch.cat([loadings, empty], dim=-1)


def _principal_factors(points: Tensor, weights: Tensor, num: int) -> Tensor:
    """The first principal components times √(eigenvalue − noise), (B, dim, num)."""
    dim = points.shape[-1]
    rooted = points * weights.sqrt().unsqueeze(-1)
    if dim <= points.shape[-2]:
        values, vectors = torch.linalg.eigh(rooted.mT @ rooted)
    else:  # fewer draws than dimensions: the same eigenvalues in a smaller matrix
        values, vectors = torch.linalg.eigh(rooted @ rooted.mT)
        vectors = rooted.mT @ (vectors / values.clamp_min(FLOOR).sqrt().unsqueeze(-2))
    first, rest = values[..., len(values.mT) - num :], values[..., : len(values.mT) - num]
    noise = rest.sum(-1, keepdim=True) / (dim - num)
    vectors = vectors[..., vectors.shape[-1] - num :]
    return vectors * (first - noise).clamp_min(0).sqrt().unsqueeze(-2)
