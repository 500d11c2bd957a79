"""Exact sums over binary variables with a pair model, by eliminating one variable after another.

    p(z) ∝ exp(Σ_i a_i z_i + Σ_{i<j} w_ij z_i z_j)

To eliminate a variable, its terms are collected into a table over its remaining neighbours, and the
variable is summed out. The largest table, of 2^width numbers, depends on which pairs are not 0 and
on the order; the variable with the fewest neighbours goes first. In reverse order, each table gives
the variable's probability given those after it, hence exact draws.

Source: Koller & Friedman (2009), algorithms 9.1 and 9.3, with the min-neighbours order of their
section 9.4.3. Differs in: nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.random import uniform

MAX_WIDTH = 20  # neighbours of a variable when it is eliminated: tables of 2^20 numbers


@dataclass(frozen=True)
class Step:
    """A variable and its neighbours when it is eliminated."""

    variable: int
    neighbours: tuple[int, ...]


def elimination_order(linked: Tensor) -> list[Step] | None:
    """The variables in the order in which to eliminate them, or None if a table would be too large.

    Args:
        linked: Which pairs are not 0, boolean, symmetric, (D, D).
    """
    rows = linked.tolist()
    around = [{j for j, own in enumerate(row) if own and j != i} for i, row in enumerate(rows)]
    left, steps = set(range(len(rows))), []
    while left:
        variable = min(left, key=lambda i: (len(around[i]), i))
        neighbours = around[variable]
        if len(neighbours) > MAX_WIDTH:
            return None
        steps.append(Step(variable, tuple(sorted(neighbours))))
        for i in neighbours:
            around[i] = (around[i] | neighbours) - {i, variable}
        left.remove(variable)
    return steps


@dataclass(frozen=True, eq=False)
class Eliminated:
    """What eliminating all variables gives.

    Attributes:
        log_normaliser: log of the sum over all z, a scalar.
        log_odds: For each step, log p(z_v = 1 | neighbours) / p(z_v = 0 | neighbours), a table with
            a dimension of size 2 for each neighbour.
        steps: The order.
    """

    log_normaliser: Tensor
    log_odds: Sequence[Tensor]
    steps: Sequence[Step]

    def sample(self, num: int, *, generator: Generator, like: Tensor) -> Tensor:
        """Exact draws of z, shape (num, D)."""
        z = torch.zeros(num, len(self.steps), dtype=torch.long, device=like.device)
        chance = uniform((num, len(self.steps)), generator=generator, like=like)
        for step, log_odds in zip(reversed(self.steps), reversed(self.log_odds), strict=True):
            own = log_odds[tuple(z[:, i] for i in step.neighbours)]
            z[:, step.variable] = chance[:, step.variable] < own.sigmoid()
        return z.to(like)


def eliminate(logits: Tensor, pairs: Tensor, steps: Sequence[Step]) -> Eliminated:
    """Sum out all variables; differentiable in logits (D,) and pairs (D, D), symmetric."""
    tables: list[tuple[tuple[int, ...], Tensor]] = []
    total, log_odds = logits.new_zeros(()), []
    for step in steps:
        scope = step.neighbours
        own = [table for table in tables if step.variable in table[0]]
        tables = [table for table in tables if step.variable not in table[0]]
        off, on = logits.new_zeros((2,) * len(scope)), logits[step.variable]
        for place, neighbour in enumerate(scope):
            shape = [2 if i == place else 1 for i in range(len(scope))]
            weight = pairs[step.variable, neighbour]
            on = on + torch.stack([weight.new_zeros(()), weight]).reshape(shape)
        for variables, table in own:
            where = variables.index(step.variable)
            shape = [2 if i in variables else 1 for i in scope]
            off = off + table.select(where, 0).reshape(shape)
            on = on + table.select(where, 1).reshape(shape)
        log_odds.append((on - off).expand((2,) * len(scope)))
        summed = torch.logaddexp(off, on)
        if scope:
            tables.append((scope, summed))
        else:
            total = total + summed
    return Eliminated(total, log_odds, steps)
