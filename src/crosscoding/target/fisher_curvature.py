"""The curvature Jᵀ F J of log p(x|z).

J is the Jacobian of the decoder's output for the observed elements, and F their Fisher matrix or
the likelihood's substitute for it (`Likelihood.curvature_product`).
"""

import torch
from torch import Tensor

from crosscoding.target.guarded_gradient import gradient
from crosscoding.target.jacobian import derivative
from crosscoding.target.observed_likelihood import Observed


def fisher_at(part: Observed, z: Tensor) -> Tensor:
    """Jᵀ F J of the observed elements: z (S, B, latent) -> (S, B, latent, latent), in double."""
    if not z.numel():
        return z.new_zeros(*z.shape, z.shape[-1], dtype=torch.double)
    params, jacobian = part.with_jacobian(z)
    jacobian = jacobian.double()
    bend = _bend(part, params, jacobian)
    if bend.isnan().any():  # perhaps 0 · inf, from the logit of an impossible class
        bend = _bend(part, params, torch.where(params.isinf(), 0.0, jacobian))
    return bend


def _bend(part: Observed, params: Tensor, jacobian: Tensor) -> Tensor:
    weighted = part.curvature_product(params, jacobian)
    weighted, jacobian = (tensor.flatten(3).movedim(0, 2) for tensor in (weighted, jacobian))
    return weighted @ jacobian.mT  # (S, B, latent, outputs) @ (S, B, outputs, latent)


def fisher_by_columns(part: Observed, z: Tensor) -> Tensor:
    """The same, one direction at a time, for a Jacobian that is too large for memory."""
    columns = []
    for direction in torch.eye(z.shape[-1]).to(z):
        both = torch.cat([z, direction.expand_as(z)], -1)
        columns.append(fisher_along(part, both, exact=False).double())
    bend = torch.stack(columns, -1)
    return 0.5 * (bend + bend.mT)


def fisher_along(part: Observed, both: Tensor, exact: bool) -> Tensor:
    """Jᵀ F J v of the observed elements: z and v side by side, (S, B, 2 latent), shape of z."""
    z, directions = both.tensor_split(2, -1)
    if not z.numel():
        return z
    tangents = derivative(part.params, z, directions, exact=exact)

    def weighted(params: Tensor) -> Tensor:
        own = torch.where(params.isinf(), 0.0, tangents)  # 0 · inf, from an impossible class
        return part.curvature_product(params, own)

    along = gradient(part.params, z, weighted)[1]
    if along.isnan().any():  # the backward pass may overflow where the forward pass does not
        bend = part.in_pieces(z, fisher_at, decodes_of_one=z.shape[-1])
        along = (bend @ directions.double()[..., None])[..., 0].to(along)
    return along
