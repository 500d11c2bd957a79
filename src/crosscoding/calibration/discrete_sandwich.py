"""The bounds of `sandwich` for discrete latents, with chains of informed moves.

Source: as in `sandwich`. Differs in: the moves are those of `numerics.informed_moves`; their cost
of change is chosen beforehand, like the step sizes of `sandwich`; all data of a block share their
random numbers.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.informed_moves import adapted, moved
from crosscoding.methods.numerics.resampling import log_mean_of_islands
from crosscoding.random import spawn
from crosscoding.target.discrete_target import DiscreteTarget

_NUM_CHAINS = 8
_NUM_TEMPERATURES = 120
_NUM_SPREAD = 64  # draws of the prior from which the spread of log p(x|z) is estimated
_FIRST_COST = 1.0


@torch.no_grad()
def discrete_bounds(
    target: DiscreteTarget, z: Tensor, *, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper bound, each with its standard error, in nats, (N,).

    Args:
        target: The target, flat, of N simulated data.
        z: The latent points that the data were made from, (N, D).
        generator: For all random numbers.
    """
    for_path, for_pilot, for_lower, for_upper = spawn(generator, 4)
    temperatures, num = _temperatures(target, for_path), target.num_queries
    starts = target.draw_prior(2 * _NUM_CHAINS, generator=for_path)[:, None].expand(-1, num, -1)
    pilot, start = starts.contiguous().chunk(2)
    costs, _ = _forward(target, temperatures, pilot, None, for_pilot)
    _, log_weights = _forward(target, temperatures, start, costs, for_lower)
    ends = z.expand(_NUM_CHAINS, -1, -1).contiguous()
    inverse = _backward(target, temperatures, ends, costs, for_upper)
    lower, lower_error = log_mean_of_islands(log_weights)
    upper, upper_error = log_mean_of_islands(inverse)
    return lower, lower_error, -upper, upper_error


def _temperatures(target: DiscreteTarget, generator: Generator) -> Tensor:
    """Temperatures from t_0 = 0 to t_K = 1, (K + 1, N)."""
    points = target.draw_prior(_NUM_SPREAD, generator=generator)
    log_likelihood = target.pairwise_log_likelihood(points)
    levels = torch.tensor([0.16, 0.84]).to(log_likelihood)
    low, high = log_likelihood.quantile(levels, dim=0)
    spread = (0.5 * (high - low)).nan_to_num(nan=1.0, posinf=1e30).clamp_min(1e-3)
    first = math.sqrt(target.latent_dim / 2) / spread
    steps = torch.linspace(0, 1, _NUM_TEMPERATURES + 1).to(spread)[:, None]
    temperatures = (first * ((1 / first).asinh() * steps).sinh()).clamp(0.0, 1.0)
    temperatures[-1] = 1.0
    return temperatures


def _forward(
    target: DiscreteTarget,
    temperatures: Tensor,
    z: Tensor,
    costs: Tensor | None,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Anneal prior draws (C, N, D) to p(z|x); returns the costs used, (K, N), and log w, (C, N)."""
    used, cost = [], torch.full_like(temperatures[0], _FIRST_COST)
    log_weights = z.new_zeros(z.shape[:2])
    for k in range(1, len(temperatures)):
        points = target.points(z, temperatures[k])
        step = temperatures[k] - temperatures[k - 1]
        log_weights = log_weights + step * points.log_ratio
        cost = cost if costs is None else costs[k - 1]
        used.append(cost)
        points, acceptance = moved(target, points, temperatures[k], cost, generator=generator)
        z = points.z
        if costs is None:
            cost = adapted(cost, acceptance)
    return torch.stack(used), log_weights


def _backward(
    target: DiscreteTarget, temperatures: Tensor, z: Tensor, costs: Tensor, generator: Generator
) -> Tensor:
    """−log w of the same chains run from points of p(z|x) to the prior, (C, N)."""
    log_weights = z.new_zeros(z.shape[:2])
    for k in reversed(range(1, len(temperatures))):
        points = target.points(z, temperatures[k])
        points, _ = moved(target, points, temperatures[k], costs[k - 1], generator=generator)
        z = points.z
        step = temperatures[k] - temperatures[k - 1]
        log_weights = log_weights - step * points.log_ratio
    return log_weights
