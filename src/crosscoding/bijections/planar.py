"""The planar map h ↦ h + u tanh(wᵀh + b) of a planar normalizing flow.

It is invertible if wᵀu ≥ −1. A free vector v is turned into such a u by moving it along w:

    u = v + (m(wᵀv) − wᵀv) w / ‖w‖²,   m(a) = −1 + softplus(a)

so that wᵀu = m(wᵀv) > −1.

Source: Rezende & Mohamed (2015), eq. 10–12 and appendix A.1. Differs in: m(a) is raised by 1e-4,
and wᵀu is clamped at −1 + ½ 1e-4, so that rounding does not cross the bound.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_BISECTIONS = 60  # to 2⁻⁶⁰ of the first interval, below rounding in double
_MARGIN = 1e-4  # by which wᵀu stays above −1, so that rounding does not cross the bound


def constrained(v: Tensor, w: Tensor) -> Tensor:
    """u with wᵀu > −1 from a free v; both (*B, dim)."""
    along = (w * v).sum(-1, keepdim=True)
    norm = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return v + (F.softplus(along) - 1 + _MARGIN - along) * w / norm


def planar(h: Tensor, u: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """h + u tanh(wᵀh + b) and log |1 + tanh'(wᵀh + b) wᵀu| (8, 9).

    Args:
        h: Points, shape (*sample, B, dim).
        u: Displacement, as returned by `constrained`, shape (B, dim).
        w: Direction, shape (B, dim).
        bias: b, shape (B,).
    Returns:
        The mapped points, shape (*sample, B, dim), and ladj, shape (*sample, B).
    """
    activation = (torch.linalg.vecdot(h, w) + bias).tanh()
    ladj = torch.log1p((1 - activation.square()) * _gain(w, u))
    return h + u * activation.unsqueeze(-1), ladj


def planar_inverse(z: Tensor, u: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The h that `planar` maps to z, and the forward map's ladj there; shapes as for `planar`.

    With s = wᵀh, the map along w is s + wᵀu tanh(s + b) = wᵀz. It increases in s, so bisection
    finds s in wᵀz ± |wᵀu|, and then h = z − u tanh(s + b). One Newton step after it carries the
    gradients, which bisection does not.
    """
    gain = _gain(w, u)
    height = torch.linalg.vecdot(z, w)
    s = _bisected(height.detach(), gain.detach(), bias.detach())
    activation = (s + bias).tanh()
    slope = 1 + gain * (1 - activation.square())
    s = s - (s + gain * activation - height) / slope.detach()
    activation = (s + bias).tanh()
    return z - u * activation.unsqueeze(-1), torch.log1p((1 - activation.square()) * gain)


def _bisected(height: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """s with s + gain tanh(s + bias) = height."""
    low, high = height - gain.abs(), height + gain.abs()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = middle + gain * (middle + bias).tanh() < height
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _gain(w: Tensor, u: Tensor) -> Tensor:
    """wᵀu for a constrained u, clamped where rounding took it below the bound."""
    return torch.linalg.vecdot(w, u).clamp_min(0.5 * _MARGIN - 1)
