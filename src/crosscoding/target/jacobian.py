"""A decoder's output and its Jacobian at many z, by forward mode, one tangent per direction.

If the decoder has an operation without a forward-mode rule, such as fused attention, central
differences replace it: they need nothing but decoding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from crosscoding.isolation import FORWARD_MODE

_TANGENT_BYTES = 2 * 2**20
_MANY = 32  # points above which dual numbers beat vmap

Decode = Callable[[Tensor], Tensor]


@torch.no_grad()
def with_jacobian(decode: Decode, z: Tensor) -> tuple[Tensor, Tensor]:
    """decode(z) at z (S, B, latent), (S, B, *out), and its derivatives, (latent, S, B, *out).

    A pass takes only as many latent directions as fit in the processor's cache.
    """
    params = decode(z)
    directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    pieces = directions.split(max(_TANGENT_BYTES // max(params.nbytes, 1), 1))
    # vmap decodes z only once but is slow to start: not worth it for small work
    small = len(pieces) == 1 and z[..., 0].numel() >= _MANY
    forward = _as_duals if small else _pushed
    try:
        return params, torch.cat([forward(decode, z, piece) for piece in pieces])
    except RuntimeError:  # an operation has no forward mode
        along = [_differences(decode, z, piece[:, None, None]) for piece in pieces]
        return params, torch.cat(along)


@torch.no_grad()
def derivative(decode: Decode, z: Tensor, directions: Tensor, *, exact: bool) -> Tensor:
    """The derivative of decode(z) along one direction at each z (S, B, latent): (S, B, *out).

    Args:
        decode: A decoder.
        z: Points.
        directions: Of about length 1, shape of z.
        exact: Whether to use forward mode, which costs as much as three to six decodes of a large
            decoder; differences cost two.
    """
    if exact:
        try:
            with FORWARD_MODE:
                return torch.func.jvp(decode, (z,), (directions,))[1]
        except RuntimeError:  # an operation has no forward mode
            pass
    return _differences(decode, z, directions[None])[0]


def _pushed(decode: Decode, z: Tensor, directions: Tensor) -> Tensor:
    """Derivatives of decode(z) along directions (N, latent), (N, S, B, *out)."""

    return pushed_forward(decode, z, directions[:, None, None].expand(-1, *z.shape))


def pushed_forward(function: Decode, points: Tensor, tangents: Tensor) -> Tensor:
    """Derivatives of function(points) along tangents (N, *points.shape), by forward mode."""

    def along(tangent: Tensor) -> Tensor:
        return torch.func.jvp(function, (points,), (tangent,))[1]

    with FORWARD_MODE:
        return torch.func.vmap(along)(tangents)


def _as_duals(decode: Decode, z: Tensor, directions: Tensor) -> Tensor:
    """The same as `_pushed` with dual numbers, which decode z once for each direction."""
    shape = (len(directions), *z.shape)
    tangents = directions[:, None, None].expand(shape).contiguous()
    with FORWARD_MODE, forward_ad.dual_level():
        points = z.expand(shape).contiguous()  # dual tensors must own their memory
        duals = forward_ad.make_dual(points.flatten(0, 1), tangents.flatten(0, 1))
        tangent = forward_ad.unpack_dual(decode(duals)).tangent
    if tangent is None:
        raise ValueError("expected a decoder that torch can differentiate in forward mode")
    return tangent.unflatten(0, shape[:2])


def _differences(decode: Decode, z: Tensor, directions: Tensor) -> Tensor:
    """The same by central differences, with errors of about 1e-5 of the output in float32.

    directions (N, …, latent) broadcast with z.
    """
    step = torch.finfo(z.dtype).eps ** (1 / 3)
    shift = step * directions
    both = decode(torch.stack([z + shift, z - shift]).flatten(0, 2))
    ahead, behind = both.unflatten(0, (2, len(directions), len(z)))
    return (ahead - behind) / (2 * step)
