"""z = L ε + b with L lower triangular with positive diagonal: invertible by construction (7)."""

import torch
from torch import Tensor


def scale_matrix(log_diagonal: Tensor, lower: Tensor) -> Tensor:
    """L from the logarithm of its diagonal, (B, dim), and its strict lower part, (B, dim, dim)."""
    return lower.tril(-1) + torch.diag_embed(log_diagonal.exp())


def affine(
    eps: Tensor, shift: Tensor, log_diagonal: Tensor, lower: Tensor
) -> tuple[Tensor, Tensor]:
    """z = L ε + b and log |det L|.

    Args:
        eps: Points, shape (*sample, B, dim).
        shift: b, shape (B, dim).
        log_diagonal: Logarithm of L's diagonal, shape (B, dim).
        lower: L's strict lower triangle, shape (B, dim, dim); other entries are ignored.
    Returns:
        z, shape (*sample, B, dim), and ladj, shape (*sample, B).
    """
    matrix = scale_matrix(log_diagonal, lower)
    z = torch.einsum("...bj,bij->...bi", eps, matrix) + shift
    return z, log_diagonal.sum(-1).expand(z.shape[:-1])


def affine_inverse(
    z: Tensor, shift: Tensor, log_diagonal: Tensor, lower: Tensor
) -> tuple[Tensor, Tensor]:
    """ε = L⁻¹ (z − b) and log |det L| of the forward map; shapes as for `affine`."""
    matrix = scale_matrix(log_diagonal, lower)
    # All points of a query are columns of one right-hand side; otherwise L is copied per point.
    centred = z - shift
    shape = centred.shape
    columns = centred.reshape(shape[:-2].numel(), *shape[-2:]).permute(1, 2, 0)
    eps = torch.linalg.solve_triangular(matrix, columns, upper=False).permute(2, 0, 1)
    return eps.reshape(shape), log_diagonal.sum(-1).expand(shape[:-1])
