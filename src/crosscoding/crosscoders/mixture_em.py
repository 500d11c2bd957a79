"""EM for mixtures of Gaussians, for all queries at once, with covariances that few draws support.

K dim² / 2 parameters overfit a few hundred draws. So each component's covariance is shrunk towards
the mean covariance within components, which all draws inform,

    Σ_k = (n_k S_k + ν T) / (n_k + ν),   S = Σ_j π_j S_j,   T = (n S + ν diag S) / (n + ν),

with ν = dim + 1, according to the component's effective number of draws n_k: with many more than
dim draws it keeps its own, with few it gets T.

Points are standardised as in `covariance_estimates`: (B, S, dim), with weights (B, S) that sum to 1
over S.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.covariance_estimates import (
    FLOOR,
    towards_diagonal,
    weighted_covariance,
)
from crosscoding.crosscoders.precision_factors import precision_root
from crosscoding.random import uniform

# With half or twice any of these, `Auto` trusts 11 or 12 of 12 answers on mnist-20d, as with these
# values, and the ESS changes by at most 3 %.
_ROUNDS = 15
_RESTARTS, _CLUSTER_ROUNDS = 4, 5


def fit_mixture(
    points: Tensor,
    weights: Tensor,
    num: int,
    *,
    generator: Generator,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture of `num` Gaussians fitted by EM, which starts from clusters of the points.

    Args:
        points: Standardised draws, shape (B, S, dim).
        weights: Their weights, shape (B, S).
        num: Number K of components.
        generator: For the first centres; the same for the whole batch.
        tick: Called before every round.
    Returns:
        log π, (B, K); means, (B, K, dim); Cholesky factors of the covariances, (B, K, dim, dim).

    Source: Dempster, Laird & Rubin (1977); the covariances as the posterior mode under an inverse
    Wishart prior, Fraley & Raftery (2007). Differs in: T is estimated in each round.
    """
    responsibilities = _clusters(points, weights, num, generator=generator)
    parts = _maximise(points, weights, responsibilities)
    for _ in range(_ROUNDS):
        tick()
        parts = _maximise(points, weights, _expect(points, *parts))
    return parts


def _expect(points: Tensor, log_weights: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    """Responsibilities p(k|x_s), (B, K, S)."""
    identity = torch.eye(points.shape[-1], dtype=points.dtype, device=points.device)
    inverses = torch.linalg.solve_triangular(roots, identity.expand_as(roots), upper=False)
    offsets = (inverses @ means.unsqueeze(-1)).squeeze(-1)
    squares = torch.stack(
        [
            torch.baddbmm(offset.unsqueeze(1), points, inverse.mT, beta=-1).square().sum(-1)
            for inverse, offset in zip(inverses.unbind(1), offsets.unbind(1), strict=True)
        ],
        dim=1,
    )
    log_scale = log_weights - roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (log_scale.unsqueeze(-1) - 0.5 * squares).softmax(1)


def _maximise(
    points: Tensor, weights: Tensor, responsibilities: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log π, means and Cholesky factors from responsibilities (B, K, S)."""
    dim, num = points.shape[-1], responsibilities.shape[1]
    prior = dim + 1
    tiny = torch.finfo(points.dtype).tiny
    joint = responsibilities * weights.unsqueeze(1)
    share = joint.sum(-1).clamp_min(tiny)
    within = joint / share.unsqueeze(-1)
    means = within @ points
    scatter = torch.stack(
        [
            weighted_covariance(points - mean.unsqueeze(1), weight)
            for mean, weight in zip(means.unbind(1), within.unbind(1), strict=True)
        ],
        dim=1,
    )
    total = 1 / weights.square().sum(-1)
    pooled = (share[..., None, None] * scatter).sum(1)
    pooled = towards_diagonal(pooled, prior / (total + prior))
    count = (share.square() / joint.square().sum(-1).clamp_min(tiny))[..., None, None]
    covariance = (count * scatter + prior * pooled.unsqueeze(1)) / (count + prior)
    floor = FLOOR * torch.eye(dim, dtype=points.dtype, device=points.device)
    # one draw's weight is spread evenly, so that every component keeps some
    smoothed = (share * total.unsqueeze(-1) + 1 / num) / (total.unsqueeze(-1) + 1)
    return smoothed.log(), means, precision_root(covariance + floor)


def _clusters(points: Tensor, weights: Tensor, num: int, *, generator: Generator) -> Tensor:
    """Each point's cluster as responsibilities of 0 and 1, (B, K, S), from the best restart.

    Source: Arthur & Vassilvitskii (2007), k-means++, then Lloyd's rounds. Differs in: weights.
    """
    centres = _seeds(points, weights, num, generator=generator)
    squares = points.square().sum(-1)
    for _ in range(_CLUSTER_ROUNDS):
        joint = _nearest(points, centres)[0] * weights[:, None, None]
        share = joint.sum(-1, keepdim=True)
        sums = (joint.flatten(1, 2) @ points).unflatten(1, (_RESTARTS, num))
        centres = torch.where(share > 0, sums / share.clamp_min(1e-30), centres)
    mine, closeness = _nearest(points, centres)
    spread = (weights.unsqueeze(1) * (squares.unsqueeze(1) - 2 * closeness)).sum(-1)
    return mine[torch.arange(len(points), device=points.device), spread.argmin(1)]


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the centres (B, R, K, dim) to each point, and how near it is.

    Returns:
        1 for the nearest centre and 0 for the others, (B, R, K, S); and the largest cᵀx − |c|² / 2,
        which is (|x|² − distance²) / 2, (B, R, S).
    """
    products = (centres.flatten(1, 2) @ points.mT).unflatten(1, centres.shape[1:3])
    closeness = products - 0.5 * centres.square().sum(-1, keepdim=True)
    best, index = closeness.max(2)
    each = torch.arange(centres.shape[2], device=points.device)[:, None]
    return (index.unsqueeze(2) == each).to(points.dtype), best


def _seeds(points: Tensor, weights: Tensor, num: int, *, generator: Generator) -> Tensor:
    """First centres, (B, R, K, dim): random points, likelier the further from earlier centres."""
    levels = uniform((num, 1, _RESTARTS, 1), generator=generator, like=points)
    rows = torch.arange(len(points), device=points.device).unsqueeze(1)
    squares = points.square().sum(-1).unsqueeze(1)
    distance, centres = torch.ones_like(squares).expand(-1, _RESTARTS, -1), []
    for level in levels:
        cumulative = (weights.unsqueeze(1) * distance).cumsum(-1)
        goal = (level * cumulative[..., -1:]).contiguous()
        index = torch.searchsorted(cumulative, goal, right=True).squeeze(-1)
        centre = points[rows, index.clamp_max(points.shape[1] - 1)]
        closeness = centre @ points.mT - 0.5 * centre.square().sum(-1, keepdim=True)
        to_it = (squares - 2 * closeness).clamp_min(0)
        distance = to_it if not centres else torch.minimum(distance, to_it)
        centres.append(centre)
    return torch.stack(centres, dim=2)
