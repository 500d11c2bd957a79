"""A mixture whose components may have heavy tails: a proposal for any density.

    z = m + L ε,   ε ~ N(0, I), or multivariate t_ν, or independent Cauchy elements

Importance weights stay bounded far out unless the density has heavier tails than its proposal. Few
densities have heavier tails than a t_1, a t distribution with one degree of freedom. It covers
tails where all of z is far out; Cauchy elements cover those where one element is, as in a product
of heavy-tailed densities.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.base import Params, base_log_prob
from crosscoding.crosscoders.mixture import Mixture
from crosscoding.random import normal

NORMAL, EACH_CAUCHY = 0, -1
"""Kinds of components; a number ν > 0 means a multivariate t_ν."""


@dataclass(frozen=True)
class TailedMixture(Mixture):
    """q(z|x) = Σ_k π_k |L_k|⁻¹ k_k(L_k⁻¹ (z − m_k)), a proposal; it is not fitted.

    Args:
        components: Number of components, ≥ 1.
        kinds: The kind of each component: `NORMAL`, ν > 0 or `EACH_CAUCHY`.
    """

    kinds: tuple[int, ...] = (NORMAL,) * 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.kinds) != self.components:
            raise ValueError(
                f"expected a kind for each of {self.components} components, got {self.kinds}"
            )

    def weighted_draws(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Not available: heavy tails need more noise than ε.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("expected a cross-coder made from ε alone, got TailedMixture")

    def draws(self, params: Params, eps: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor]:
        num = max(*self.kinds, eps.shape[-1])
        more = normal((len(eps), 1, num), generator=generator, like=eps)
        noise = [tailed(eps, more, kind) for kind in self.kinds]
        return self._systematic(params, noise, generator=generator)

    def _log_kernel(self, component: int, eps: Tensor) -> Tensor:
        return log_kernel(eps, self.kinds[component])


def tailed(eps: Tensor, more: Tensor, kind: int) -> Tensor:
    """Noise of a kind, (*sample, dim), like eps.

    Args:
        eps: Normal noise, shape (*sample, dim).
        more: More normal noise, at least ν and at least dim numbers in its last dimension.
        kind: As in `TailedMixture`.
    """
    if kind == NORMAL:
        return eps
    if kind == EACH_CAUCHY:
        return eps / _off_zero(more[..., : eps.shape[-1]].abs())
    mean_square = more[..., :kind].square().mean(-1, keepdim=True)
    return eps / _off_zero(mean_square).sqrt()


def log_kernel(eps: Tensor, kind: int) -> Tensor:
    """log density of such noise in nats: eps (*sample, dim) -> (*sample,)."""
    if kind == NORMAL:
        return base_log_prob(eps)
    if kind == EACH_CAUCHY:
        return -(eps.square().log1p() + math.log(math.pi)).sum(-1)
    dim = eps.shape[-1]
    constant = math.lgamma(0.5 * (kind + dim)) - math.lgamma(0.5 * kind)
    constant -= 0.5 * dim * math.log(kind * math.pi)
    return constant - 0.5 * (kind + dim) * (eps.square().sum(-1) / kind).log1p()


def _off_zero(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)
