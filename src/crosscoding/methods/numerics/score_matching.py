"""The Gaussian whose score matches that of p(z|x) best, from few points with gradients.

    Σ G Σ = C,   m = z̄ + Σ ḡ      z̄, C: mean and covariance of the points
                                   ḡ, G: mean and covariance of ∇ log p(z, x) there

This minimises E‖∇ log p(z, x) − ∇ log q(z)‖²_Σ over the points. If p(z|x) is Gaussian, it is
exact from latent + 1 points, however these are distributed, because a gradient has as many
numbers as z. A fit by moments needs hundreds of draws of p(z|x) for the same accuracy.

Source: Cai et al. (2024), batch and match, section 3, in the limit of a large batch and learning
rate. Differs in: points have weights; covariances are regularised in coordinates of an earlier fit.
"""

import torch
from torch import Tensor

# Added to both covariances: directions that no point informs keep the earlier fit. Half or double
# moves log p(x) on mnist-20d by at most 0.002 nats.
_FLOOR = 1e-4


def match_score(
    points: Tensor, gradients: Tensor, log_weights: Tensor, mean: Tensor, root: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to each query's points, in double.

    Args:
        points: z, shape (S, B, latent).
        gradients: ∇ log p(z, x) there, shape (S, B, latent).
        log_weights: Log-weights of the points, up to a constant, shape (S, B).
        mean, root: An earlier fit, z = mean + root ε, that is roughly right: shapes (B, latent) and
            (B, latent, latent), in double, root lower triangular.
    Returns:
        m, shape (B, latent), and the lower Cholesky factor of Σ, shape (B, latent, latent). Where
        numbers overflow they are those of the earlier fit.
    """
    centred = (points.double() - mean).transpose(0, 1)
    white = torch.linalg.solve_triangular(root, centred.mT, upper=False).mT
    slopes = gradients.double().transpose(0, 1) @ root
    weights = log_weights.double().softmax(0).mT[..., None]
    centre, slope = (weights * white).sum(1), (weights * slopes).sum(1)
    spread, bend = (
        _covariance(part - middle[:, None], weights)
        for part, middle in ((white, centre), (slopes, slope))
    )
    fine = bend.isfinite().all(-1).all(-1) & spread.isfinite().all(-1).all(-1)
    identity = torch.eye(points.shape[-1], dtype=root.dtype, device=root.device)
    spread, bend = (torch.where(fine[:, None, None], part, identity) for part in (spread, bend))
    half, inverse_half = _square_roots(bend)
    covariance = inverse_half @ _square_roots(half @ spread @ half)[0] @ inverse_half
    shift = centre + (covariance @ slope[..., None])[..., 0]
    factor, info = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    fine = fine & (info == 0) & shift.isfinite().all(-1)
    shift = torch.where(fine[:, None], shift, 0.0)
    factor = torch.where(fine[:, None, None], factor, identity)
    return mean + (root @ shift[..., None])[..., 0], root @ factor


def _covariance(centred: Tensor, weights: Tensor) -> Tensor:
    """Weighted covariance of (B, S, latent), plus `_FLOOR` on the diagonal."""
    scaled = centred * weights.sqrt()
    identity = torch.eye(centred.shape[-1], dtype=centred.dtype, device=centred.device)
    return scaled.mT @ scaled + _FLOOR * identity


def _square_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A^½ and A^−½ of symmetric positive definite matrices."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(_FLOOR**2).sqrt()[:, None]
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT
