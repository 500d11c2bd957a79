"""NF, a planar normalizing flow: k planar maps, then an affine map (8, 9)."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from crosscoding.bijections import affine, affine_inverse, constrained, planar, planar_inverse
from crosscoding.crosscoders.base import Map, Params, affine_start, small_normal


@dataclass(frozen=True)
class Planar(Map):
    """z = L f_k(… f_1(ε)) + b, each f_i(h) = h + u_i tanh(w_iᵀ h + b_i).

    Args:
        layers: Number k of planar maps, ≥ 1.
        affine: Whether an affine map follows. Without it the flow is the paper's, which has no
            direct way to move or scale all of z.

    Source: the paper, eq. 8, after Rezende & Mohamed (2015). Differs in: the affine map.
    """

    layers: int = 16
    affine: bool = True

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"expected layers >= 1, got {self.layers}")

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        dim = mean.shape[-1]
        shape = (self.layers, dim)
        params = {
            "v": small_normal(*shape, scale=0.1, generator=generator, like=mean),
            "w": small_normal(*shape, scale=1.0, generator=generator, like=mean),
            "bias": small_normal(self.layers, scale=1.0, generator=generator, like=mean),
        }
        # At wᵀv = log(e − 1), softplus is 1 and wᵀu = 0: each map starts near the identity.
        along = (params["w"] * params["v"]).sum(-1, keepdim=True)
        norm = params["w"].square().sum(-1, keepdim=True).clamp_min(1e-6)
        params["v"] = params["v"] + (math.log(math.e - 1) - along) * params["w"] / norm
        if self.affine:
            params |= affine_start(mean, scale)
        return params

    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = eps, eps.new_zeros(eps.shape[:-1])
        for layer in _by_layer(params):
            h, step = planar(h, *layer)
            ladj = ladj + step
        if self.affine:
            h, step = affine(h, params["shift"], params["log_diagonal"], params["lower"])
            ladj = ladj + step
        return h, ladj

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        h, ladj = z, z.new_zeros(z.shape[:-1])
        if self.affine:
            h, ladj = affine_inverse(z, params["shift"], params["log_diagonal"], params["lower"])
        for layer in reversed(_by_layer(params)):
            h, step = planar_inverse(h, *layer)
            ladj = ladj + step
        return h, ladj


def _by_layer(params: Params) -> list[tuple[Tensor, ...]]:
    """(u, w, b) of each layer."""
    u = constrained(params["v"], params["w"])
    return list(zip(u.unbind(1), params["w"].unbind(1), params["bias"].unbind(1), strict=True))
