"""Rules to sum or integrate over the values of a likelihood, given what its parameters are.

Import as `from integration_rules import …`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DOUBLE = torch.double

Rule = tuple[Tensor, Tensor]
"""Values (M, *shape) and weights; the densities of the values, so weighted, sum to 1."""


def counts(num: int) -> Callable[[Tensor], Rule]:
    """Every whole number below num."""

    def rule(like: Tensor) -> Rule:
        k = torch.arange(num, dtype=DOUBLE).reshape(-1, *[1] * like.ndim)
        return k.expand(num, *like.shape), torch.ones(num, *[1] * like.ndim, dtype=DOUBLE)

    return rule


def line(location: Tensor, scale: Tensor) -> Rule:
    """Trapezoids in u of t = location + scale · sinh u: for tails as heavy as 1 / t²."""
    u = torch.linspace(-22, 22, 8001, dtype=DOUBLE).reshape(-1, *[1] * location.ndim)
    return location + scale * u.sinh(), scale * u.cosh() * (44 / 8000)


def positive_line(location: Tensor, scale: Tensor) -> Rule:
    """Trapezoids in log t."""
    u = torch.linspace(-12, 12, 4001, dtype=DOUBLE).reshape(-1, *[1] * location.ndim)
    values = (location + scale * u).exp()
    return values, scale * values * (24 / 4000)


def sharp(location: Tensor, scale: Tensor) -> Rule:
    """Gauss–Legendre on each side of location: for a density with a kink there."""
    nodes, weights = np.polynomial.legendre.leggauss(120)
    y = torch.as_tensor(25 * (nodes + 1)).reshape(-1, *[1] * location.ndim)
    weights = torch.as_tensor(25 * weights).reshape(y.shape) * scale
    values = torch.cat([location + scale * y, location - scale * y])
    return values, torch.cat([weights, weights])


def unit(like: Tensor) -> Rule:
    """Trapezoids in u of t = σ(π sinh u), between 0 and 1: for densities with a pole at an end."""
    u = torch.linspace(-2.5, 2.5, 101, dtype=DOUBLE).reshape(-1, *[1] * like.ndim)
    t = (torch.pi * u.sinh()).sigmoid()
    weights = 0.05 * torch.pi * u.cosh() * t * (1 - t)
    return t.expand(-1, *like.shape), weights


def grid(bins: int, low: float, high: float) -> Callable[[Tensor], Rule]:
    def rule(like: Tensor) -> Rule:
        k, weights = counts(bins)(like)
        return low + k * ((high - low) / (bins - 1)), weights

    return rule
