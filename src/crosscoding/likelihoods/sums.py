"""Fisher matrices of laws on 0, 1, …, last: sums over all counts, or over some where many.

F = Σ_k p(k) s(k) s(k)ᵀ,   s = ∇ log p(k) by the parameters
"""

from collections.abc import Callable

import torch
from torch import Tensor

_NODES = 64


def expected_products(
    log_prob: Callable[[Tensor], Tensor],
    scores: Callable[[Tensor], tuple[Tensor, Tensor]],
    last: Tensor,
    centre: Tensor,
    reach: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """E[s₁ s₁], E[s₁ s₂] and E[s₂ s₂] of the two scores, under the law itself.

    The two ends count as they are, and of what lies between only centre ± reach. Where these are
    more than 64 counts, a midpoint rule of 64 points in x, k = low + (high − low) x² (3 − 2 x),
    takes the place of their sum: it is finest at the ends, where a law may rise without bound.

    Args:
        log_prob: log p(k), for k of the shape that follows; smooth in k between the ends.
        scores: s(k), two of that shape.
        last: Largest count, shape (*sample, E) or broadcast with the others.
        centre, reach: Where nearly all counts lie, or the ends do.
    """
    low = (centre - reach).floor().clamp_min(1)
    num = ((centre + reach).ceil().minimum(last - 1) - low + 1).clamp_min(0)
    many = num > _NODES
    total, sums = torch.zeros_like(centre), [torch.zeros_like(centre) for _ in range(3)]

    def add(k: Tensor, weight: Tensor | float) -> None:
        nonlocal total
        mass = log_prob(k).exp() * weight
        first, second = scores(k)
        total = total + mass
        for index, product in enumerate((first * first, first * second, second * second)):
            sums[index] = sums[index] + mass * product

    add(torch.zeros_like(centre), 1.0)
    add(last.expand_as(centre), 1.0)
    for node in range(_NODES):
        inside = node < num
        if not inside.any():
            break
        x = (node + 0.5) / _NODES
        between = (low - 0.5 + num * x**2 * (3 - 2 * x)).maximum(low)
        weight = torch.where(many, num * (6 * x * (1 - x) / _NODES), inside.to(num))
        add(torch.where(inside, torch.where(many, between, low + node), 0.0), weight)
    first, mixed, second = (product / total for product in sums)
    return first, mixed, second
