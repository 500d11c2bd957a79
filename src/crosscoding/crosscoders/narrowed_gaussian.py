"""A Gaussian narrowed in some directions, as evidence narrows a prior, at a cost of dim · rank.

    z = b + d ∘ A ε,   A = I + W (s − 1) Wᵀ,   A⁻¹ = I + W (1/s − 1) Wᵀ,   det A = Π s,   Wᵀ W = I

Its precision is D⁻¹ (I + W (1/s² − 1) Wᵀ) D⁻¹ with D = diag d: a diagonal plus a low-rank part.
`Gaussian(rank=…)` adds a low-rank part to the covariance instead, which can only widen directions.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.base import Map, Params


@dataclass(frozen=True)
class Narrowed(Map):
    """q(z|x) = N(b, D A² D), whose width is multiplied by s along each of `rank` directions.

    Its parameters are `shift`, b; `log_diagonal`, log d; `directions`, W, (B, dim, rank); and
    `log_widths`, log s, (B, rank). The columns of W are orthonormal. A column may also be 0, with a
    log width of 0, and then has no effect.

    Args:
        rank: Number of columns of W, ≥ 1.
    """

    rank: int

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        directions = torch.eye(mean.shape[-1], self.rank, dtype=mean.dtype, device=mean.device)
        return {
            "shift": mean.clone(),
            "log_diagonal": scale.log(),
            "directions": directions.expand(len(mean), -1, -1).clone(),
            "log_widths": mean.new_zeros(len(mean), self.rank),
        }

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        stretched = _stretched(eps, params["directions"], params["log_widths"])
        z = params["shift"] + params["log_diagonal"].exp() * stretched
        return z, _ladj(params).expand(z.shape[:-1])

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        stretched = (z - params["shift"]) * (-params["log_diagonal"]).exp()
        eps = _stretched(stretched, params["directions"], -params["log_widths"])
        return eps, _ladj(params).expand(z.shape[:-1])


def _stretched(points: Tensor, directions: Tensor, log_widths: Tensor) -> Tensor:
    """Points (*sample, B, dim), stretched by s along directions (B, dim, rank)."""
    flat = points.reshape(points.shape[:-2].numel(), *points.shape[-2:]).transpose(0, 1)
    along = flat @ directions * log_widths.expm1().unsqueeze(1)
    return points + (along @ directions.mT).transpose(0, 1).reshape(points.shape)


def _ladj(params: Params) -> Tensor:
    return params["log_diagonal"].sum(-1) + params["log_widths"].sum(-1)
