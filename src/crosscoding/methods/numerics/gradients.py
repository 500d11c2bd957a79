"""A log-density and its gradient at many points, with guards for paths that diverge."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.errors import NonFiniteError, counted
from crosscoding.target.base import Target

# Prior standard deviations from 0, beyond which a path has diverged. Halving or doubling it changes
# nothing on mnist-20d, a table model or blocks.
_FAR = 1e3

Density = Callable[[Tensor], Tensor]
"""log π(z) in nats, not normalised: z (C, B, latent) -> (C, B)."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points z (C, B, latent) with log π, (C, B), and its gradient, shaped like z."""

    z: Tensor
    log_density: Tensor
    gradient: Tensor

    def select(self, which: Tensor) -> "Points":
        """The points of some queries."""
        return Points(self.z[:, which], self.log_density[:, which], self.gradient[:, which])

    def where(self, accepted: Tensor, other: "Points") -> "Points":
        """The other points where accepted, (C, B), and these elsewhere."""
        return Points(
            torch.where(accepted[..., None], other.z, self.z),
            torch.where(accepted, other.log_density, self.log_density),
            torch.where(accepted[..., None], other.gradient, self.gradient),
        )


def evaluated(target: Target, density: Density, z: Tensor) -> Points:
    """log π and its gradient at z, or −inf and 0 where a path has diverged.

    A path has diverged if z is far out, or if log π is NaN beyond the region of prior draws, where
    decoders may overflow. If only the gradient is NaN, it becomes 0, unless it is NaN at all points
    of a query.

    Raises:
        NonFiniteError: log π, or every gradient of a query, is NaN within 5 prior standard
            deviations of 0.
    """
    diverged = ~(z.abs() < _FAR * target.prior_scale).all(-1)
    with torch.enable_grad():
        inside = torch.where(diverged[..., None], 0.0, z).requires_grad_()
        log_density = density(inside)
        target.clock.tick()  # here too, as the gradient may take twice as long
        (gradient,) = torch.autograd.grad(log_density.sum(), inside)
    undefined = log_density.isnan()
    # Where an unobserved element overflows, its gradient is NaN and any step is as good as another.
    blind = gradient.isnan().any(-1) & ~undefined
    wrong = target.is_common(inside) & (undefined | blind.all(0))
    if wrong.any():
        query = wrong.any(0).nonzero()[0, 0]
        point = inside.detach()[wrong[:, query].nonzero()[0, 0], query]
        raise NonFiniteError(
            "expected a finite log p(z, x) and gradient in the region of prior draws, got NaN at "
            f"{int(wrong.sum())} of {counted(wrong.numel(), 'point')}, the first of them for query "
            f"{target.name(query)}: {target.explain(query, point)}"
        )
    diverged = diverged | undefined
    return Points(
        z,
        torch.where(diverged, -math.inf, log_density.detach()),
        torch.where((diverged | blind)[..., None], 0.0, gradient),
    )
