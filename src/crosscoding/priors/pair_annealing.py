"""Draws and log Z of a pair model with too many pairs for exact sums, by annealed particles.

    p_t(z) ∝ exp(Σ_i a_i z_i + t Σ_{i<j} w_ij z_i z_j),   t from 0, where log Z is known, to 1

At each temperature the particles are weighted, resampled within their group, and every variable is
drawn anew given all others. The spread of the groups' estimates gives the error.

Source: Neal (2001), and Salakhutdinov & Murray (2008), eq. 13–18. Differs in: particles are
resampled, and each temperature leaves nine tenths of them effective.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.random import uniform

_NUM_GROUPS = 8
_LEAST_ESS = 0.9  # share of the particles that stays effective from one temperature to the next
_MOST_TEMPERATURES = 1000
_NUM_PASSES = 2  # over all variables, at each temperature
_BISECTIONS = 20


@torch.no_grad()
def annealed(
    logits: Tensor, pairs: Tensor, num: int, *, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Approximate draws, and each group's estimate of log Z in nats.

    Args:
        logits: a, shape (D,).
        pairs: w, symmetric with a zero diagonal, shape (D, D).
        num: Number of draws.
        generator: For all random numbers.
    Returns:
        Draws (num, D), in random order, and log Z by group, (8,).
    """
    size = max(-(-num // _NUM_GROUPS), 2)
    shape = (_NUM_GROUPS, size)
    z = (uniform((*shape, len(logits)), generator=generator, like=logits) < logits.sigmoid()).to(
        logits
    )
    log_normaliser = F.softplus(logits).sum().expand(_NUM_GROUPS)
    now = 0.0
    for _ in range(_MOST_TEMPERATURES):
        energy = 0.5 * torch.linalg.vecdot(z @ pairs, z)
        then = _next(energy.flatten(), now)
        gain = (then - now) * energy
        log_normaliser = log_normaliser + gain.logsumexp(1) - math.log(size)
        chosen = _resampled(gain, generator)
        z = z.gather(1, chosen.unsqueeze(-1).expand_as(z))
        for _ in range(_NUM_PASSES):
            z = _pass(z, logits, then * pairs, generator)
        now = then
        if now >= 1.0:
            break
    else:
        raise ValueError(
            "expected pairs that annealing can reach from independent latents, but it did not "
            f"within {_MOST_TEMPERATURES} temperatures; the pairs are too strong, or given in "
            "units that are not nats"
        )
    order = torch.randperm(z.shape[0] * z.shape[1], generator=generator, device=generator.device)
    return z.flatten(0, 1)[order.to(z.device)][:num], log_normaliser


def _next(energy: Tensor, now: float) -> float:
    """The largest t ≤ 1 that leaves enough particles effective."""

    def enough(t: float) -> bool:
        weights = ((t - now) * (energy - energy.max())).exp()
        ess = weights.sum().square() / weights.square().sum()
        return bool(ess >= _LEAST_ESS * len(energy))

    if enough(1.0):
        return 1.0
    low, high = now, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low if low > now else high


def _resampled(log_weights: Tensor, generator: Generator) -> Tensor:
    """Indices drawn systematically by the weights of each group, (G, S)."""
    num_groups, size = log_weights.shape
    cumulative = log_weights.double().softmax(1).cumsum(1)
    offset = uniform((num_groups, 1), generator=generator, like=cumulative)
    points = (torch.arange(size, device=offset.device) + offset) / size * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).clamp_max(size - 1)


def _pass(z: Tensor, logits: Tensor, pairs: Tensor, generator: Generator) -> Tensor:
    """Draw every variable anew given all others, one after another."""
    chance = uniform((z.shape[-1], *z.shape[:-1]), generator=generator, like=z)
    field = logits + z @ pairs
    z = z.clone()
    for variable, own in enumerate(chance):
        new = (own < field[..., variable].sigmoid()).to(z)
        change = new - z[..., variable]
        field = field + change.unsqueeze(-1) * pairs[variable]
        z[..., variable] = new
    return z
