"""A mixture of Gaussians with full covariance: several modes, each with its own weight.

Its C-ELBO is a weighted sum over components, each with the same number of draws. So the gradient of
the weights needs no score function, and no component is left without draws.

    C-ELBO = Σ_k π_k E_{q_k}[ log p(z, x) − log q(z|x) ],   q = Σ_k π_k q_k
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.bijections import affine, scale_matrix
from crosscoding.crosscoders.base import (
    Crosscoder,
    Fitted,
    Params,
    base_log_prob,
    root_params,
    small_normal,
    unstandardised,
)
from crosscoding.crosscoders.mixture_em import fit_mixture
from crosscoding.crosscoders.precision_factors import covariance_root
from crosscoding.crosscoders.weighted_draws import WeightedDraws
from crosscoding.random import uniform


@dataclass(frozen=True)
class Mixture(Crosscoder):
    """q(z|x) = Σ_k π_k N(z; m_k, L_k L_kᵀ).

    Args:
        components: Number of Gaussians, ≥ 1.

    Source: Roeder et al. (2017) and Morningstar et al. (2021) for the stratified bound.
    Differs in: draws of equal weight are systematic, in proportion to the components' weights.
    """

    components: int = 4

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"expected components >= 1, got {self.components}")

    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        shape = (self.components, mean.shape[-1])
        offset = small_normal(*shape, scale=0.5, generator=generator, like=mean)
        offset = offset - offset.mean(1, keepdim=True)
        return {
            "logits": mean.new_zeros(len(mean), self.components),
            "shift": mean.unsqueeze(1) + scale.unsqueeze(1) * offset,
            "log_diagonal": scale.log().unsqueeze(1).repeat(1, self.components, 1),
            "lower": mean.new_zeros(len(mean), *shape, mean.shape[-1]),
        }

    def weighted_draws(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class; the first draws come from the first component, and so on.

        Raises:
            ValueError: There are fewer draws than components.
        """
        if len(eps) < self.components:
            raise ValueError(
                f"expected at least one draw for each of {self.components} components, "
                f"got {len(eps)}"
            )
        log_weights = params["logits"].log_softmax(-1).unbind(1)
        parts = zip(
            eps.tensor_split(self.components), self._parts(params), log_weights, strict=True
        )
        z, shares = [], []
        for noise, part, log_weight in parts:
            z.append(affine(noise, *part)[0])
            shares.append((log_weight - math.log(len(noise))).expand(len(noise), -1))
        together = torch.cat(z)
        return together, self.log_prob(params, together), torch.cat(shares)

    def draws(self, params: Params, eps: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """Systematic draws: each component gets its share of them, rounded up or down."""
        return self._systematic(params, [eps] * self.components, generator=generator)

    def _systematic(
        self, params: Params, noise: list[Tensor], *, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """`draws` from the noise of each component, all of shape (S, B, dim)."""
        eps = noise[0]
        num = len(eps)
        order = torch.randperm(num, generator=generator, device=generator.device)
        first = uniform((1,), generator=generator, like=eps)
        levels = (order.to(eps.device) + first) / max(num, 1)
        cumulative = params["logits"].softmax(-1).cumsum(-1)[:, :-1]
        component = (levels[:, None, None] >= cumulative).sum(-1)
        z = torch.zeros_like(eps)
        for index, part in enumerate(self._parts(params)):
            chosen = (component == index).unsqueeze(-1)
            z = torch.where(chosen, affine(noise[index], *part)[0], z)
        return z, self.log_prob(params, z)

    def log_prob(self, params: Params, z: Tensor) -> Tensor:
        return self.joint_log_prob(params, z).logsumexp(-1)

    def joint_log_prob(self, params: Params, z: Tensor) -> Tensor:
        """log π_k + log N(z; m_k, L_k L_kᵀ) in nats: z (*sample, B, dim) -> (*sample, B, K)."""
        dim = z.shape[-1]
        points = z.reshape(z.shape[:-2].numel(), *z.shape[-2:]).transpose(0, 1)
        log_probs = []
        for index, (shift, log_diagonal, lower) in enumerate(self._parts(params)):
            root = scale_matrix(log_diagonal, lower)
            identity = torch.eye(dim, dtype=z.dtype, device=z.device).expand_as(root)
            inverse = torch.linalg.solve_triangular(root, identity, upper=False)
            # A product with the inverse: solving for every point takes several times as long.
            eps = (points - shift[:, None]) @ inverse.mT
            log_probs.append(self._log_kernel(index, eps) - log_diagonal.sum(-1)[:, None])
        joint = torch.stack(log_probs, dim=-1).transpose(0, 1) + params["logits"].log_softmax(-1)
        return joint.reshape(*z.shape[:-1], self.components)

    def _log_kernel(self, component: int, eps: Tensor) -> Tensor:
        """log density of a component with L = I and m = 0 at ε, (*sample, dim)."""
        return base_log_prob(eps)

    def _parts(self, params: Params) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(m, log of L's diagonal, L's lower part) of each component."""
        names = ("shift", "log_diagonal", "lower")
        return list(zip(*(params[name].unbind(1) for name in names), strict=True))

    def fit_to(
        self, draws: WeightedDraws, *, generator: Generator, tick: Callable[[], None]
    ) -> Params:
        logits, means, roots = fit_mixture(
            draws.standard, draws.weights, self.components, generator=generator, tick=tick
        )
        params = {"logits": logits, "shift": means} | root_params(roots)
        return unstandardised(params, draws.mean.unsqueeze(1), draws.scale.unsqueeze(1))

    @classmethod
    def from_components(cls, log_weights: Tensor, means: Tensor, precisions: Tensor) -> Fitted:
        """The mixture of given components, of the means' dtype.

        Args:
            log_weights: log π_k, up to a constant, shape (B, K).
            means: m_k, shape (B, K, dim).
            precisions: Inverse covariances, shape (B, K, dim, dim), of any dtype. Those that
                rounding made indefinite are regularised, see `crosscoders.precision_factors`.
        """
        factor = covariance_root(precisions)
        params = {
            "logits": log_weights.log_softmax(-1),
            "shift": means,
            "log_diagonal": factor.diagonal(dim1=-2, dim2=-1).log().to(means),
            "lower": factor.tril(-1).to(means),
        }
        return Fitted(cls(log_weights.shape[-1]), params, means.shape[-1])
