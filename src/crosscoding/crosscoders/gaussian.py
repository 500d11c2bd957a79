"""GVI, Gaussian variational inference: z = W ε + b with a full W (7)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.bijections import affine, affine_inverse
from crosscoding.crosscoders.base import Crosscoder, Fitted, Params


@dataclass(frozen=True)
class Gaussian(Crosscoder):
    """q(z|x) = N(b, L Lᵀ), full covariance.

    Source: the paper, eq. 7. Differs in: L is lower triangular with a positive diagonal where the
    paper has any square W; both reach every Gaussian, and L is always invertible.
    """

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        dim = mean.shape[-1]
        return {
            "shift": mean.clone(),
            "log_diagonal": scale.log(),
            "lower": mean.new_zeros(*mean.shape, dim),
        }

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        return affine(eps, params["shift"], params["log_diagonal"], params["lower"])

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        return affine_inverse(z, params["shift"], params["log_diagonal"], params["lower"])

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> Fitted:
        """The Gaussian of given mean, (*B, dim), and covariance, (*B, dim, dim)."""
        factor = torch.linalg.cholesky(covariance)
        dim = mean.shape[-1]
        params = {
            "shift": mean.reshape(-1, dim),
            "log_diagonal": factor.diagonal(dim1=-2, dim2=-1).log().reshape(-1, dim),
            "lower": factor.tril(-1).reshape(-1, dim, dim),
        }
        return Fitted(cls(), params, dim)
