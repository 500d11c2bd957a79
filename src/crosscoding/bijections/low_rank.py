"""z = d ∘ A ε + b with A Aᵀ = I + V Vᵀ: covariance diag(d²) + U Uᵀ, U = d ∘ V, at a cost of D r.

    A = I + V (I + C)⁻¹ Vᵀ,   C Cᵀ = I + Vᵀ V,   C lower triangular

A is square, of size D, and one-to-one for every V: det A = det C > 0. The inverse has the same
form, A⁻¹ = I − V (I + Cᵀ)⁻¹ C⁻¹ Vᵀ, and no matrix larger than D × r is ever formed.

Source: the Woodbury identity; X = (I + C)⁻¹ solves X + Xᵀ + X Vᵀ V Xᵀ = I, which is A Aᵀ = I + V Vᵀ
for A = I + V X Vᵀ. Differs in: C is a Cholesky factor; the more common symmetric root of I + Vᵀ V
has no gradient at equal eigenvalues.
"""

import torch
from torch import Tensor


def low_rank(
    eps: Tensor, shift: Tensor, log_diagonal: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """z = d ∘ A ε + b and log |det|.

    Args:
        eps: Points, shape (*sample, B, dim).
        shift: b, shape (B, dim).
        log_diagonal: log d, shape (B, dim).
        factor: V, shape (B, dim, rank).
    Returns:
        z, shape (*sample, B, dim), and ladj, shape (*sample, B).
    """
    root, identity = _root(factor)
    middle = torch.linalg.solve_triangular(identity + root, factor.mT, upper=False)
    stretched = eps + _along(eps, middle, factor)
    z = log_diagonal.exp() * stretched + shift
    return z, _ladj(log_diagonal, root).expand(z.shape[:-1])


def low_rank_inverse(
    z: Tensor, shift: Tensor, log_diagonal: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """ε = A⁻¹ ((z − b) / d) and log |det| of the forward map; shapes as for `low_rank`."""
    root, identity = _root(factor)
    middle = torch.linalg.solve_triangular(root, factor.mT, upper=False)
    middle = torch.linalg.solve_triangular(identity + root.mT, middle, upper=True)
    stretched = (z - shift) * (-log_diagonal).exp()
    return stretched - _along(stretched, middle, factor), _ladj(log_diagonal, root).expand(
        z.shape[:-1]
    )


def _root(factor: Tensor) -> tuple[Tensor, Tensor]:
    """C and the identity, (B, rank, rank) and (rank, rank)."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.cholesky(identity + factor.mT @ factor), identity


def _along(points: Tensor, middle: Tensor, factor: Tensor) -> Tensor:
    """V (middle · point) for each point: middle (B, rank, dim), factor (B, dim, rank)."""
    inner = torch.einsum("...bd,brd->...br", points, middle)
    return torch.einsum("...br,bdr->...bd", inner, factor)


def _ladj(log_diagonal: Tensor, root: Tensor) -> Tensor:
    return log_diagonal.sum(-1) + root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
