"""GVI, Gaussian variational inference: z = W ε + b, W full (7), diagonal or low-rank."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.bijections import affine, affine_inverse, low_rank, low_rank_inverse
from crosscoding.crosscoders.base import (
    Fitted,
    Map,
    Params,
    WarmStart,
    root_params,
    small_normal,
    unstandardised,
)
from crosscoding.crosscoders.covariance_estimates import factor_analysis, leave_one_out_covariance
from crosscoding.crosscoders.precision_factors import covariance_root
from crosscoding.crosscoders.weighted_draws import WeightedDraws


@dataclass(frozen=True)
class Gaussian(Map):
    """q(z|x) = N(b, Σ) with Σ full, L Lᵀ; or diag(d²); or diag(d²) + U Uᵀ with `rank` columns in U.

    Args:
        rank: Number of columns of U, ≥ 1; a draw takes memory and time of order dim · rank. None: a
            full Σ.
        diagonal: Whether Σ is diagonal, so that the elements of z are independent.

    Source: the paper, eq. 7. Differs in: L is lower triangular with a positive diagonal where the
    paper has any square W; both reach every Gaussian, and L is always invertible.
    """

    usual_num_draws = 32
    usual_learning_rate = 0.03
    warm_start = WarmStart.MOMENTS

    rank: int | None = None
    diagonal: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.diagonal:
            raise ValueError(
                f"expected rank or diagonal, not both, got rank={self.rank} and diagonal=True; "
                "a low-rank covariance has a diagonal part anyway"
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"expected rank >= 1 or None, got {self.rank}")

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        dim = mean.shape[-1]
        params = {"shift": mean.clone(), "log_diagonal": scale.log()}
        if self.rank is not None:  # 0 is a saddle point: z depends on V through its square
            gain = 0.3 * dim**-0.5
            params["factor"] = small_normal(
                dim, self.rank, scale=gain, generator=generator, like=mean
            )
        elif not self.diagonal:
            params["lower"] = mean.new_zeros(*mean.shape, dim)
        return params

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_diagonal = params["shift"], params["log_diagonal"]
        if self.rank is not None:
            return low_rank(eps, shift, log_diagonal, params["factor"])
        if self.diagonal:
            z = log_diagonal.exp() * eps + shift
            return z, log_diagonal.sum(-1).expand(z.shape[:-1])
        return affine(eps, shift, log_diagonal, params["lower"])

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_diagonal = params["shift"], params["log_diagonal"]
        if self.rank is not None:
            return low_rank_inverse(z, shift, log_diagonal, params["factor"])
        if self.diagonal:
            eps = (z - shift) * (-log_diagonal).exp()
            return eps, log_diagonal.sum(-1).expand(eps.shape[:-1])
        return affine_inverse(z, shift, log_diagonal, params["lower"])

    def fit_to(
        self, draws: WeightedDraws, *, generator: Generator, tick: Callable[[], None]
    ) -> Params:
        points, weights = draws.standard, draws.weights
        params = {"shift": torch.zeros_like(points[:, 0])}
        if self.rank is not None:
            noise, loadings = factor_analysis(
                points, weights, self.rank, 1 / weights.square().sum(-1)
            )
            params["log_diagonal"] = 0.5 * noise.log()
            params["factor"] = loadings / noise.sqrt().unsqueeze(-1)
        elif self.diagonal:
            params["log_diagonal"] = torch.zeros_like(params["shift"])
        else:
            params |= root_params(torch.linalg.cholesky(leave_one_out_covariance(points, weights)))
        return unstandardised(params, draws.mean, draws.scale)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> Fitted:
        """The Gaussian of given mean, (*B, dim), and covariance, (*B, dim, dim)."""
        return cls._of_root(mean, torch.linalg.cholesky(covariance))

    @classmethod
    def from_precision(cls, mean: Tensor, precision: Tensor) -> Fitted:
        """The Gaussian of given mean, (*B, dim), and inverse covariance, (*B, dim, dim).

        It has the mean's dtype; the precision may have another. An ill-conditioned precision that
        rounding made indefinite is regularised, see `crosscoders.precision_factors`.
        """
        return cls._of_root(mean, covariance_root(precision))

    @classmethod
    def _of_root(cls, mean: Tensor, factor: Tensor) -> Fitted:
        """N(mean, L Lᵀ), of the mean's dtype, for a lower triangular L with positive diagonal."""
        dim = mean.shape[-1]
        params = {
            "shift": mean.reshape(-1, dim),
            "log_diagonal": factor.diagonal(dim1=-2, dim2=-1).log().to(mean).reshape(-1, dim),
            "lower": factor.tril(-1).to(mean).reshape(-1, dim, dim),
        }
        return Fitted(cls(), params, dim)
