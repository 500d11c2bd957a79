"""Hamiltonian moves of many points at once, in coordinates in which p(z|x) is about round.

    H(z, r) = −log π(z) + ½ rᵀ r,   L leapfrog steps of size ε in v with z = F v,
    accept with min(1, e^{−ΔH})

Source: Neal (2011), section 5.2 and 5.4.2.2 on varying ε. Differs in: points share their momenta
and their variation of ε between queries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.errors import NonFiniteError, counted
from crosscoding.random import normal, uniform
from crosscoding.target.base import REACH, Target

_FAR = 1e3  # prior standard deviations from 0 at which a path has diverged

Density = Callable[[Tensor], Tensor]
"""log π(z) in nats, not normalised: z (C, B, latent) -> (C, B)."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points z (C, B, latent), log π there, (C, B), and its gradient, as z."""

    z: Tensor
    log_density: Tensor
    gradient: Tensor

    def select(self, which: Tensor) -> "Points":
        """The points of some queries."""
        return Points(self.z[:, which], self.log_density[:, which], self.gradient[:, which])

    def where(self, accepted: Tensor, other: "Points") -> "Points":
        """The other's points where accepted, (C, B), and these elsewhere."""
        return Points(
            torch.where(accepted[..., None], other.z, self.z),
            torch.where(accepted, other.log_density, self.log_density),
            torch.where(accepted[..., None], other.gradient, self.gradient),
        )


def evaluated(target: Target, density: Density, z: Tensor) -> Points:
    """log π and its gradient at z; −inf and 0 where a path has diverged.

    It has where z is far off. Farther out than prior draws are, a decoder may overflow on the way
    there; NaN where prior draws are is an error. A gradient alone that is NaN is taken for 0, but
    if all of a query's are.

    Raises:
        NonFiniteError: NaN within 5 prior standard deviations of 0.
    """
    diverged = ~(z.abs() < _FAR * target.prior_scale).all(-1)
    with torch.enable_grad():
        inside = torch.where(diverged[..., None], 0.0, z).requires_grad_()
        log_density = density(inside)
        target.clock.tick()  # as the gradient may take twice as long
        (gradient,) = torch.autograd.grad(log_density.sum(), inside)
    undefined = log_density.isnan()
    # An unobserved element that overflows has no gradient: any step is as good as another there.
    blind = gradient.isnan().any(-1) & ~undefined
    near = (inside.abs() < REACH * target.prior_scale).all(-1)
    wrong = near & (undefined | blind.all(0))
    if wrong.any():
        query = wrong.any(0).nonzero()[0, 0]
        point = inside.detach()[wrong[:, query].nonzero()[0, 0], query]
        raise NonFiniteError(
            "expected a finite log p(z, x) and gradient where prior draws are, got NaN at "
            f"{int(wrong.sum())} of {counted(wrong.numel(), 'point')}, the first of them for query "
            f"{target.name(query)}: {target.explain(query, point)}"
        )
    diverged = diverged | undefined
    return Points(
        z,
        torch.where(diverged, -math.inf, log_density.detach()),
        torch.where((diverged | blind)[..., None], 0.0, gradient),
    )


@dataclass(frozen=True, eq=False)
class Move:
    """One Hamiltonian proposal for every point, and the choice between it and staying.

    Args:
        target: Says how far off is diverged.
        density: log π.
        factor: F, shape (B, latent, latent); None: the identity.
        num_leapfrog: L, ≥ 1.
    """

    target: Target
    density: Density
    factor: Tensor | None
    num_leapfrog: int

    def __call__(
        self, points: Points, step_size: Tensor, jitter: float, *, generator: Generator
    ) -> tuple[Points, Tensor]:
        """Where the points are then, and their acceptance probabilities, (C, B).

        Args:
            points: Where they are now.
            step_size: ε of each query, shape (B,).
            jitter: Largest share by which ε is varied at random.
            generator: Of momenta, ε and acceptance.
        """
        num_points, _, dim = points.z.shape
        momentum = normal((num_points, 1, dim), generator=generator, like=points.z)
        start = momentum = momentum.expand_as(points.z)
        vary = uniform((1,), generator=generator, like=points.z)
        epsilon = step_size[:, None] * (1 + jitter * (2 * vary - 1))
        end = points
        for _ in range(self.num_leapfrog):
            momentum = momentum + 0.5 * epsilon * self._to_unit(end.gradient)
            z = end.z + epsilon * self._from_unit(momentum)
            end = evaluated(self.target, self.density, z)
            momentum = momentum + 0.5 * epsilon * self._to_unit(end.gradient)
        gain = end.log_density - points.log_density
        gain = gain - 0.5 * (momentum.square() - start.square()).sum(-1)
        acceptance = gain.nan_to_num(nan=-math.inf).clamp_max(0).exp()
        u = uniform((num_points, 1), generator=generator, like=points.z)
        return points.where(u < acceptance, end), acceptance

    def _to_unit(self, gradient: Tensor) -> Tensor:
        if self.factor is None:
            return gradient
        return (gradient.transpose(0, 1) @ self.factor).transpose(0, 1)

    def _from_unit(self, momentum: Tensor) -> Tensor:
        if self.factor is None:
            return momentum
        return (momentum.transpose(0, 1) @ self.factor.mT).transpose(0, 1)


def shrunk_covariance(draws: Tensor, floor: float) -> Tensor:
    """Covariance of draws (S, B, latent), a little shrunk to its diagonal: (B, latent, latent).

    Args:
        draws: Points of each query.
        floor: Least variance along an axis.
    """
    count, dim = draws.shape[0], draws.shape[-1]
    centred = (draws - draws.mean(0)).transpose(0, 1)
    full = centred.mT @ centred / count
    share = count / (count + 5.0 * dim)
    diagonal = full.diagonal(dim1=-2, dim2=-1).clamp_min(floor)
    return share * full + torch.diag_embed(diagonal - share * full.diagonal(dim1=-2, dim2=-1))
