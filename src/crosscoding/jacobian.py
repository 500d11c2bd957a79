"""A decoder's output and its Jacobian at many z, by forward mode: a tangent for each direction."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TANGENT_BYTES = 2 * 2**20
_MANY = 32  # points, from which on


@torch.no_grad()
def with_jacobian(decode: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """decode(z) of z (S, B, latent), (S, B, *out), and its derivatives, (latent, S, B, *out).

    By forward mode, with a tangent for each latent direction; some at a time, as what a pass works
    on should stay in the processor's cache.
    """
    params = decode(z)
    dim = z.shape[-1]
    directions = torch.eye(dim, dtype=z.dtype, device=z.device)
    size = max(_TANGENT_BYTES // max(params.nbytes, 1), 1)
    pieces = directions.split(size)
    if len(z) * z.shape[1] >= _MANY:  # vmap decodes z once, and takes its time to start
        return params, torch.cat([_pushed_as_duals(decode, z, piece) for piece in pieces])
    try:
        return params, torch.cat([_pushed(decode, z, piece) for piece in pieces])
    except RuntimeError:  # what vmap has no rule for, duals may have
        return params, torch.cat([_pushed_as_duals(decode, z, piece) for piece in pieces])


def _pushed(decode: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> Tensor:
    """Derivatives of decode(z) along directions (N, latent), (N, S, B, *out)."""

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(decode, (z,), (direction.expand_as(z),))[1]

    return torch.func.vmap(along)(directions)


def _pushed_as_duals(decode: Callable[[Tensor], Tensor], z: Tensor, directions: Tensor) -> Tensor:
    """The same, at the price of decoding z once for each direction."""
    shape = (len(directions), *z.shape)
    tangents = directions[:, None, None].expand(shape).contiguous()
    with forward_ad.dual_level():
        points = z.expand(shape).contiguous()  # duals need memory of their own
        duals = forward_ad.make_dual(points.flatten(0, 1), tangents.flatten(0, 1))
        tangent = forward_ad.unpack_dual(decode(duals)).tangent
    if tangent is None:
        raise ValueError("expected a decoder that torch can differentiate in forward mode")
    return tangent.unflatten(0, shape[:2])
