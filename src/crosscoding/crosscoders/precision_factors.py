"""Cholesky factors of precision matrices P, however ill-conditioned: P = C Cᵀ and P⁻¹ = L Lᵀ.

P⁻¹ is never formed: rounding would cost it digits that P's factor still has, and it might not be
positive definite. With J the exchange matrix, which reverses the order of the elements,

    J P J = K Kᵀ,   P = (J K J) (J K J)ᵀ,   L = (J K J)⁻ᵀ

and J K J is upper triangular, so that L is lower triangular with positive diagonal.

Source: Golub & Van Loan (2013), section 4.2. Differs in: if rounding made P indefinite, a share of
its diagonal is added, the smallest that suffices among machine epsilon times powers of ten.
"""

import torch
from torch import Tensor

_MOST_RIDGES = 20  # the last one adds 2,000 times the diagonal in double


def precision_root(precision: Tensor) -> Tensor:
    """C, lower triangular with C Cᵀ = P, (*shape, dim, dim); each matrix is treated separately.

    Raises:
        ValueError: A matrix is indefinite by far more than rounding.
    """
    root, info = torch.linalg.cholesky_ex(precision)
    share = torch.finfo(precision.dtype).eps
    for _ in range(_MOST_RIDGES):
        failed = info > 0
        if not failed.any():
            return root
        ridge = share * torch.diag_embed(precision[failed].diagonal(dim1=-2, dim2=-1))
        again = torch.linalg.cholesky_ex(precision[failed] + ridge)
        root, info = root.clone(), info.clone()
        root[failed], info[failed] = again.L, again.info
        share *= 10
    raise ValueError(
        f"expected positive definite precisions, got {int((info > 0).sum())} that are not"
    )


def covariance_root(precision: Tensor) -> Tensor:
    """L, lower triangular with positive diagonal and L Lᵀ = P⁻¹; shapes and errors as above."""
    turned = precision_root(precision.flip(-2, -1)).flip(-2, -1)
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    inverse = torch.linalg.solve_triangular(turned, identity.expand_as(turned), upper=True)
    return inverse.mT
