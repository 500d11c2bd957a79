"""Gaussians and mixtures as their components: shares, means and Cholesky factors."""

import torch
from torch import Tensor

from crosscoding.bijections import scale_matrix
from crosscoding.crosscoders.base import Fitted
from crosscoding.crosscoders.mixture import Mixture


def gaussian_parts(fitted: Fitted) -> tuple[Tensor, Tensor, Tensor]:
    """The K components of a fitted `Gaussian` or `Mixture`, in double.

    Returns:
        Logs of their shares, (B, K); means, (B, K, dim); and lower Cholesky factors of their
        covariances, (B, K, dim, dim).
    """
    params = {name: tensor.double() for name, tensor in fitted.params.items()}
    if isinstance(fitted.crosscoder, Mixture):
        logits = params.pop("logits").log_softmax(-1)
    else:
        params = {name: tensor[:, None] for name, tensor in params.items()}
        logits = torch.zeros_like(params["shift"][..., 0])
    log_diagonal = params["log_diagonal"]
    if "factor" in params:  # diag(d) (I + V Vᵀ) diag(d)
        spread = params["factor"] @ params["factor"].mT
        inner = torch.linalg.cholesky(spread + torch.eye(fitted.dim).to(spread))
        return logits, params["shift"], log_diagonal.exp()[..., None] * inner
    nothing = log_diagonal.new_zeros(*log_diagonal.shape, fitted.dim)
    root = scale_matrix(log_diagonal, params.get("lower", nothing))
    return logits, params["shift"], root
