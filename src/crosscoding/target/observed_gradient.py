"""log p(x|z) of observed elements and its gradient, computed in pieces without keeping a graph."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosscoding.target.guarded_gradient import gradient
from crosscoding.target.jacobian import derivative

if TYPE_CHECKING:
    from crosscoding.target.observed_likelihood import Observed


class WithGradient(torch.autograd.Function):
    """log p(x|z); its gradient is computed in the same pass, so that no graph need be kept.

    A gradient of the gradient (create_graph=True) builds the graph when it is asked for.
    """

    @staticmethod
    def forward(ctx, z: Tensor, observed: "Observed") -> Tensor:
        both = observed.in_pieces(z, _value_and_gradient)
        ctx.observed = observed
        ctx.save_for_backward(z, both[..., 1:])
        return both[..., 0].clone()

    @staticmethod
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            value = ctx.observed.at(z.reshape(z.shape[:-2].numel(), *z.shape[-2:]))
            total = (upstream[0] * value.reshape(z.shape[:-1])).sum()
            return torch.autograd.grad(total, z, create_graph=True)[0], None
        return upstream[0].unsqueeze(-1) * slope, None


def _value_and_gradient(part: "Observed", points: Tensor) -> Tensor:
    """log p(x|z) and its gradient side by side, (S, B, 1 + latent)."""
    if not points.numel():
        return points.new_zeros(*points.shape[:-1], 1 + points.shape[-1])
    value, slope = gradient(part.at, points)
    unclear = slope.isnan().any(-1) & ~value.isnan()
    if unclear.any():
        samples, queries = unclear.any(1), unclear.any(0).nonzero()[:, 0]
        among = points[samples][:, queries]
        again = part.select(queries).in_pieces(among, _gradient_by_element, decodes_of_one=2)
        slope[samples.nonzero(), queries] = torch.where(
            unclear[samples][:, queries, None], again, slope[samples][:, queries]
        )
    return torch.cat([value.unsqueeze(-1), slope], -1)


def _gradient_by_element(part: "Observed", z: Tensor) -> Tensor:
    """∇ log p(x|z) as a sum of each element's derivative, at z (S, B, latent), shape of z.

    Forward mode is used, since the backward pass may overflow where the forward pass does not, as
    in 1 / p for a p that has almost underflowed.
    """
    if not z.numel():
        return z
    params = part.params(z.detach()).detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(part.log_prob(params).sum(), params)
    result = torch.empty_like(z)
    for index, direction in enumerate(torch.eye(z.shape[-1]).to(z)):
        change = derivative(part.params, z, direction.expand_as(z), exact=True)
        result[..., index] = torch.where(slope == 0, 0.0, slope * change).flatten(2).sum(-1)
    return result
