"""Fisher matrices of distributions on 0, 1, …, last, by sums over counts.

F = Σ_k p(k) s(k) s(k)ᵀ,   s(k) = ∇ log p(k), the gradient in the parameters
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_ENDS, _NODES = 8, 52


def expected_products(
    log_prob: Callable[[Tensor], Tensor],
    scores: Callable[[Tensor], tuple[Tensor, Tensor]],
    last: Tensor,
    centre: Tensor,
    reach: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """E[s₁ s₁], E[s₁ s₂] and E[s₂ s₂] for the two scores s, under p.

    The sum takes the 8 counts at each end, and between them those in centre ± reach. If these are
    more than 52, a midpoint rule of 52 points in x, k = low + (high − low) x² (3 − 2 x), replaces
    their sum. It is finest at both ends, where p may be unbounded, and within 1 % of the sum.

    Args:
        log_prob: log p(k) up to a constant in k, for k of shape (*sample, E); smooth in k between
            the ends.
        scores: The two entries of s(k), each of that shape.
        last: Largest count; broadcasts to (*sample, E).
        centre, reach: centre ± reach holds nearly all of p outside the ends, shape (*sample, E).
    """
    total, sums = torch.zeros_like(centre), [torch.zeros_like(centre) for _ in range(3)]
    for k, weight in count_nodes(last, centre, reach):
        mass = log_prob(k).exp() * weight
        first, second = scores(k)
        total = total + mass
        for index, product in enumerate((first * first, first * second, second * second)):
            sums[index] = sums[index] + mass * product
    first, mixed, second = (product / total for product in sums)
    return first, mixed, second


def count_nodes(last: Tensor, centre: Tensor, reach: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The counts that `expected_products` takes, and their weights, each of shape (*sample, E)."""
    low = (centre - reach).floor().clamp_min(_ENDS)
    num = ((centre + reach).ceil().minimum(last - _ENDS) - low + 1).clamp_min(0)
    many = num > _NODES
    last = last.expand_as(centre)
    half = (last / 2).floor()
    for step in range(_ENDS):
        k = torch.full_like(centre, float(step)).minimum(last)
        yield k, (step <= half).to(k)
        yield last - k, (last - step > half).to(k)
    for node in range(_NODES):
        inside = node < num
        if not inside.any():
            break
        x = (node + 0.5) / _NODES
        between = (low - 0.5 + num * x**2 * (3 - 2 * x)).maximum(low)
        weight = torch.where(many, num * (6 * x * (1 - x) / _NODES), inside.to(num))
        yield torch.where(inside, torch.where(many, between, low + node), 0.0), weight
