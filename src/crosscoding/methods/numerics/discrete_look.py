"""Independent chains from the prior that look for modes which an answer lacks.

    w = Π_k p(x|z_{k−1})^{t_k − t_{k−1}},   E[w 1{z_K ∈ A}] = p(x) P(A|x)

Every chain goes from a draw of the prior to p(z|x) by informed moves. Unlike particles that are
resampled, none of them dies out, whatever its weight: a mode that looks poor at low temperatures
keeps its chains. A chain's end lies outside an answer where its importance weight, with respect to
the density that the answer was drawn from, exceeds all weights of the answer.

Source: Neal (2001), Annealed importance sampling, eq. 11–13. Differs in: the chains estimate only
the share of p(z|x) that lies outside.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.informed_moves import adapted, moved
from crosscoding.random import spawn
from crosscoding.target.discrete_target import DiscreteTarget

NUM_CHAINS, _NUM_MOVES = 64, 48
_FIRST = 0.02  # the lowest temperature; they rise by equal factors
_FIRST_COST = 1.0


@torch.no_grad()
def looked(target: DiscreteTarget, *, generator: Generator) -> tuple[Tensor, Tensor, float]:
    """Ends of the chains (C, B, D), their log-weights (C, B), and the decodes of each query."""
    for_prior, for_moves = spawn(generator, 2)
    num = target.num_queries
    z = target.draw_prior(NUM_CHAINS, generator=for_prior)[:, None].expand(-1, num, -1)
    steps = torch.linspace(math.log(_FIRST), 0.0, _NUM_MOVES).exp().tolist()
    now = z.new_zeros(num)
    cost = now + _FIRST_COST
    log_weights = z.new_zeros(NUM_CHAINS, num)
    points = target.points(z.contiguous(), now)
    for step in steps:
        then = torch.full_like(now, step)
        log_weights = log_weights + (then - now) * points.log_ratio
        points = target.points(points.z, then)
        points, acceptance = moved(target, points, then, cost, generator=for_moves)
        cost, now = adapted(cost, acceptance), then
    return points.z, log_weights, float(NUM_CHAINS * (2 * len(steps) + 1))
