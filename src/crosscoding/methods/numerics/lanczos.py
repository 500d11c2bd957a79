"""The largest eigenvalues of a curvature from products with it, and the mean of the rest.

    Q = (v, H v, H² v, …) made orthonormal,   Qᵀ H Q = V Λ Vᵀ,   H ≈ Q V Λ (Q V)ᵀ + c (I − Q Qᵀ)

Source: Golub & Van Loan (2013), section 10.1, for Lanczos' method; Meyer et al. (2021) for the
trace of the rest. Differs in: every vector is orthogonalised twice against all before it; when a
chain of products ends, another begins.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.random import normal

# Random directions that estimate a mean eigenvalue: its standard error is √(2 / (8 (D + 2))) times
# the eigenvalues' standard deviation, 2 % of it above 512 dimensions.
NUM_PROBES = 8


def lanczos(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    rank: int,
    *,
    generator: Generator,
    stop: Callable[[], bool],
) -> tuple[Tensor, Tensor]:
    """Orthonormal Q (B, D, k), k ≤ rank, and Qᵀ H Q: chains of v, H v, H² v, … from random v.

    A chain ends when it spans the invariant subspace of H that contains v; the next one then starts
    orthogonal to it. If a chain ends after one vector, H is taken to be a multiple of the identity
    on the remaining space. Columns that a query does not need are 0.

    Args:
        product: H times a vector of each query, (B, D) -> (B, D), in double.
        like: A tensor of shape (B, D), of the dtype in which products are computed.
        rank: Most products.
        generator: For v.
        stop: Called before each product but the first; if it returns True, the rest is left out.
    """
    num, dim = like.shape
    basis = like.new_zeros(num, rank, dim, dtype=torch.double)
    bend = basis.new_zeros(num, rank, rank)
    vector, least = basis.new_zeros(num, dim), basis.new_zeros(num, 1)
    chain = torch.zeros_like(least)  # its number of vectors
    for k in range(rank):
        so_far = basis[:, :k]
        fresh = normal((1, dim), generator=generator, like=basis).expand(num, -1)
        ended = vector.norm(dim=-1, keepdim=True) <= least
        over = ended & (chain == 1)
        if over.all() or (k and stop()):
            return so_far.mT, bend[:, :k, :k]
        chain = torch.where(over, 1.0, torch.where(ended, 0.0, chain) + 1)
        if ended.any():
            for _ in range(2):
                fresh = fresh - (so_far.mT @ (so_far @ fresh[..., None]))[..., 0]
            vector = torch.where(ended, fresh, vector)
        basis[:, k] = torch.where(over, 0.0, vector / vector.norm(dim=-1, keepdim=True))
        vector, so_far = product(basis[:, k]), basis[:, : k + 1]
        for _ in range(2):
            shares = so_far @ vector[..., None]
            vector = vector - (so_far.mT @ shares)[..., 0]
            bend[:, : k + 1, k] += shares[..., 0]
        bend[:, k, :k] = bend[:, :k, k]
        largest = bend.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True)
        least = torch.finfo(like.dtype).eps ** 0.7 * largest  # well above rounding: 1e-5 or 1e-11
    return basis.mT, bend


def mean_of_rest(
    product: Callable[[Tensor], Tensor], directions: Tensor, num_probes: int, generator: Generator
) -> Tensor:
    """Mean eigenvalue of H orthogonal to the directions (B, D, k), estimated by probes, (B,)."""
    bent = torch.zeros_like(directions[:, 0, 0])
    for _ in range(num_probes):
        probe = normal((1, directions.shape[1], 1), generator=generator, like=directions)
        probe = (probe - directions @ (directions.mT @ probe))[..., 0]
        probe = probe / probe.norm(dim=-1, keepdim=True)
        bent = bent + (probe * product(probe)).sum(-1)
    return bent / num_probes
