"""Bare densities with exact log Z that a standard normal prior does not cover."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class Density(NamedTuple):
    """A log-density, the size of z, and the exact logarithm of its integral."""

    log_density: Callable[[Tensor], Tensor]
    dim: int
    log_integral: float


def student_t(dim: int, df: float, shift: float = 0.0) -> Density:
    log_integral = math.lgamma(0.5 * df) - math.lgamma(0.5 * (df + dim))
    log_integral += 0.5 * dim * math.log(df * math.pi)

    def log_density(z: Tensor) -> Tensor:
        return -0.5 * (df + dim) * ((z - shift).square().sum(-1) / df).log1p()

    return Density(log_density, dim, log_integral)


def product_of_student_t(dim: int, df: float) -> Density:
    one = student_t(1, df)
    return Density(lambda z: one.log_density(z.unsqueeze(-1)).sum(-1), dim, dim * one.log_integral)


def normal(dim: int, scale: float, shift: float = 0.0) -> Density:
    return Density(
        lambda z: -0.5 * ((z - shift) / scale).square().sum(-1),
        dim,
        dim * (math.log(scale) + 0.5 * LOG_2PI),
    )


def banana(dim: int, scale: float, bend: float) -> Density:
    """z₁ ~ N(0, s²), z₂ ~ N(b (z₁² − s²), 1), the others standard normal."""

    def log_density(z: Tensor) -> Tensor:
        first, rest = z[..., 0], z[..., 2:]
        second = z[..., 1] - bend * (first.square() - scale**2)
        return -0.5 * ((first / scale).square() + second.square() + rest.square().sum(-1))

    return Density(log_density, dim, math.log(scale) + 0.5 * dim * LOG_2PI)


def funnel(dim: int, scale: float) -> Density:
    """Neal's funnel: v ~ N(0, s²), the others N(0, eᵛ)."""

    def log_density(z: Tensor) -> Tensor:
        v, rest = z[..., 0], z[..., 1:]
        squares = rest.square().sum(-1) * (-v).exp()
        return -0.5 * ((v / scale).square() + squares + (dim - 1) * v)

    return Density(log_density, dim, math.log(scale) + 0.5 * dim * LOG_2PI)


def ring(dim: int, radius: float, width: float) -> Density:
    r = torch.linspace(0, radius + 12 * width, 100_001, dtype=torch.double)
    along = r.pow(dim - 1) * (-0.5 * ((r - radius) / width).square()).exp()
    surface = math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)
    log_integral = surface + torch.trapezoid(along, r).log().item()
    return Density(lambda z: -0.5 * ((z.norm(dim=-1) - radius) / width).square(), dim, log_integral)


def mixture(
    means: list[list[float]], scales: list[float], shares: list[float] | None = None
) -> Density:
    """A mixture of isotropic normals, of equal weights by default."""
    dim = len(means[0])

    def log_density(z: Tensor) -> Tensor:
        own = torch.tensor(scales).to(z)
        weights = torch.ones_like(own) if shares is None else own.new_tensor(shares)
        gaps = (z.unsqueeze(-2) - torch.tensor(means).to(z)) / own[:, None]
        each = -0.5 * gaps.square().sum(-1) - dim * own.log() + weights.log()
        return each.logsumexp(-1) - 0.5 * dim * LOG_2PI - weights.sum().log()

    return Density(log_density, dim, 0.0)


def corners(num: int, dim: int, distance: float, scale: float) -> Density:
    """Equal modes at the same distance from 0, each on one half of an axis."""
    means = [[0.0] * dim for _ in range(num)]
    for mode in range(num):
        means[mode][mode % dim] = distance if mode < dim else -distance
    return mixture(means, [scale] * num)


def laplace(dim: int, scale: float) -> Density:
    return Density(lambda z: -z.abs().sum(-1) / scale, dim, dim * math.log(2 * scale))


MODES = {
    "three of unequal widths": mixture(
        [[-6.0, 0, 0], [6, 3, 0], [0, 0, 10]], [1.0, 0.5, 2.0], [0.3, 0.3, 0.4]
    ),
    "two, one ten times as wide": mixture([[0.0, 0], [30, 0]], [3.0, 0.3]),
    "three in 5-d, one three times as wide": mixture(
        [[0.0] * 5, [14.0] + [0.0] * 4, [0.0, 9, 9, 0, 0]], [1.8, 0.6, 0.6], [0.6, 0.3, 0.1]
    ),
    "five in 8-d": corners(5, 8, 12.0, 1.0),
    "five in 1-d": mixture([[-40.0], [-10], [0], [9], [30]], [1.0, 0.5, 0.2, 2.0, 1.0]),
}
"""Densities with several modes, far apart."""

WIDE = {
    "Cauchy": student_t(2, 1),
    "Cauchy in 3-d": student_t(3, 1),
    "t with 3 degrees of freedom": student_t(5, 3),
    "shifted t": student_t(2, 3, shift=3.0),
    "wide normal": normal(3, 2.5),
    "wide normal in 10-d": normal(10, 2.0),
    "shifted normal": normal(4, 1.0, shift=3.0),
    "product of Cauchy": product_of_student_t(4, 1),
    "Laplace": laplace(3, 2.0),
    "banana": banana(2, 3.0, 0.3),
    "banana in 5-d": banana(5, 3.0, 0.3),
    "funnel": funnel(2, 3.0),
    "funnel in 4-d": funnel(4, 1.5),
    "ring": ring(2, 6.0, 0.3),
    "ring in 3-d": ring(3, 4.0, 0.5),
}
"""Densities with mass outside N(0, I)."""
