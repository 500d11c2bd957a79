"""Estimates of covariances from weighted draws, well conditioned even for few draws.

Points are standardised: mean 0 and variance 1 in every element, shape (B, S, dim); weights (B, S)
sum to 1 over S.
"""

import torch
from torch import Tensor

FLOOR = 1e-6  # smallest variance relative to the draws' own: 8 eps, what float32 tells from 0
_INTENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
_FACTOR_ROUNDS = 30


def weighted_covariance(points: Tensor, weights: Tensor) -> Tensor:
    """Σ_s w_s x_s x_sᵀ, (B, dim, dim)."""
    rooted = points * weights.sqrt().unsqueeze(-1)
    return rooted.mT @ rooted


def towards_diagonal(covariance: Tensor, intensity: Tensor) -> Tensor:
    """(1 − λ) Σ + λ diag Σ, for Σ (*shape, dim, dim) and λ (*shape).

    The diagonal is at least `FLOOR`. For λ > 0 the result is positive definite, even with fewer
    draws than dimensions.
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(FLOOR)
    kept = (1 - intensity)[..., None, None] * covariance
    return kept - torch.diag_embed(kept.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(diagonal)


def leave_one_out_covariance(points: Tensor, weights: Tensor) -> Tensor:
    """`towards_diagonal` with the λ that maximises the leave-one-out likelihood of the draws.

    Uncertain correlations shrink and strong ones stay. Leaving out draw s subtracts one term,
    w_s x xᵀ, from Σ, so the loss of each λ costs no more than one likelihood, and eigenvectors of
    the correlations serve all λ:

        Σ_s w_s (log |G| + log(1 − β_s r_s) + r_s / (1 − β_s r_s)),   r_s = x_sᵀ G⁻¹ x_s

    where G is the estimate from all draws and β_s = (1 − λ) w_s.

    Source: Hoffbeck & Landgrebe (1996). Differs in: weights; λ is one of `_INTENSITIES`.
    """
    covariance = weighted_covariance(points, weights)
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(FLOOR).sqrt()
    correlation = covariance / scale[:, :, None] / scale[:, None, :]
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    values, vectors = torch.linalg.eigh(correlation)
    along = ((points / scale.unsqueeze(-2)) @ vectors).square()
    intensities = points.new_tensor(_INTENSITIES)
    spectra = (1 - intensities) * values.clamp_min(0).unsqueeze(-1) + intensities  # (B, dim, λ)
    squares = along @ spectra.reciprocal()  # (B, S, λ); |G| is the same for all λ up to a factor
    left = 1 - (1 - intensities) * weights.unsqueeze(-1) * squares
    left = left.clamp_min(FLOOR)  # at least 0 up to rounding
    losses = weights.unsqueeze(-1) * (left.log() + squares / left)
    best = (spectra.log().sum(-2) + losses.sum(-2)).argmin(-1)
    return towards_diagonal(covariance, intensities[best])


def factor_analysis(
    points: Tensor, weights: Tensor, rank: int, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood d² and U of a covariance diag(d²) + U Uᵀ, (B, dim) and (B, dim, rank).

    Principal components first, then `_FACTOR_ROUNDS` rounds of EM. d² stays above 1 / (n + 1) of an
    element's variance, which n draws cannot tell from 0.

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
    """The first principal components, each times √(eigenvalue − noise), (B, dim, num)."""
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
