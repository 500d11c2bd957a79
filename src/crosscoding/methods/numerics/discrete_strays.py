"""A search for groups of discrete states that annealed particles never entered.

Particles that rise through temperatures lose a mode that is worth entering only once the
temperature is high: while it is low, nothing keeps them there. This search needs no temperatures:

    jump      from many starts, every place takes the value that the gradient at t = 1 prefers
    choose    the ends that are likeliest, compared with the density q fitted to the particles
    stay      chains of informed moves at t = 1 show whether there is more than a single state

Starts are draws of the prior, half of them the likeliest, and draws of the particles' opposite, in
which each value is as improbable as the particles make it probable. Where chains stay among states
that q makes too rare by more than chance explains, the particles lack a mode.

Source: the starts follow Tizhoosh (2005), Opposition-based learning. Differs in: opposites are
drawn from probabilities.
"""

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.autoregressive_fit import AutoregressiveFit
from crosscoding.methods.numerics.discrete_look import BEYOND
from crosscoding.methods.numerics.informed_moves import adapted, moved
from crosscoding.methods.numerics.resampling import taken
from crosscoding.random import spawn, uniform
from crosscoding.target.discrete_target import DiscreteTarget

# Starts from the prior, and opposite to particles; each costs two decodes. A mode is lost if fewer
# than one in so many draws of the prior lead to it: in six of 36 constructed cases
# (docs/discrete.md).
_NUM_STARTS, _NUM_OPPOSITE = 4096, 64
# Half or double of these three moves log p(x) by at most 0.02 nats on 26 queries of small models
# whose log p(x) is known, half as much as another seed; of the numbers above, by 0.006 nats
# (`discrete` and `wells` in benchmarks/sensitivity.py).
_NUM_CHAINS, _NUM_MOVES, _NUM_KEPT = 64, 24, 12  # the last states of each chain are kept
_AT_ONCE = 512  # starts, as each needs (B, D, K) numbers
_COST = 1.0  # of the chains' moves at first; later ones adapt it
# Decoder evaluations of a query: gradients before jumps and moves, and values after them.
STRAY_DECODES = float(2 * (_NUM_STARTS + _NUM_OPPOSITE) + 2 * _NUM_CHAINS * _NUM_MOVES)


@torch.no_grad()
def fitted(
    target: DiscreteTarget,
    particles: tuple[Tensor, Tensor],
    log_evidence: Tensor,
    draws: tuple[Tensor, Tensor],
    *,
    generator: Generator,
) -> tuple[AutoregressiveFit, tuple[Tensor, Tensor]]:
    """A density fitted to particles or, where there are strays, to both with equal weight.

    Args:
        target: The target, flat.
        particles: Points (S, B, D) and their log-weights, (S, B).
        log_evidence: log p(x) as the particles estimate it, shape (B,).
        draws: Draws of the prior, (N, D), and their log p(x|z), (N, B).
        generator: For starts and moves.
    Returns:
        The fit; and states that the search found, (S', B, D), with log p(z, x) there, (S', B).
    """
    for_starts, for_moves = spawn(generator, 2)
    z, log_weights = particles
    num_values = target.prior.num_values
    fit = AutoregressiveFit.to(z, log_weights, num_values)
    opposite = opposites(z, log_weights, num_values, generator=for_starts)
    starts = torch.cat([_starts(*draws), opposite])
    more, log_joint, stray = strays(target, fit, log_evidence, starts, generator=for_moves)
    own = stray.any(0).nonzero()[:, 0]
    if len(own):
        equal = torch.where(stray[:, own], 0.0, -torch.inf).log_softmax(0)
        both = torch.cat([log_weights[:, own].log_softmax(0), equal])
        again = AutoregressiveFit.to(torch.cat([z, more])[:, own], both, num_values)
        fit = fit.replaced(own, again)
    return fit, (more, log_joint)


def strays(
    target: DiscreteTarget,
    fit: AutoregressiveFit,
    log_evidence: Tensor,
    starts: Tensor,
    *,
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Search for states that a fit makes too rare.

    Args:
        target: The target, flat.
        fit: The density fitted to particles, q.
        log_evidence: Their log p(x), shape (B,).
        starts: Where jumps start, shape (N, B, D).
        generator: For the moves.
    Returns:
        Points (S, B, D), log p(z, x) there, (S, B), and which of them belong to chains that stayed
        among states that q makes too rare, boolean, (S, B).
    """

    def lack(z: Tensor, log_joint: Tensor) -> Tensor:
        return log_joint - fit.log_density(target.prior.inputs_of(z)) - log_evidence

    ends, heights = _jumped(target, starts)
    chosen = lack(ends, heights).nan_to_num(nan=-torch.inf).topk(_NUM_CHAINS, dim=0).indices
    now = torch.ones_like(log_evidence)
    points, cost = target.points(taken(ends, chosen), now), now * _COST
    states, log_joints = [], []
    for step in range(_NUM_MOVES):
        points, acceptance = moved(target, points, now, cost, generator=generator)
        cost = adapted(cost, acceptance)
        if step >= _NUM_MOVES - _NUM_KEPT:
            states.append(points.z)
            log_joints.append(points.log_reference + points.log_ratio)
    z, log_joint = torch.stack(states), torch.stack(log_joints)
    stays = (lack(z.flatten(0, 1), log_joint.flatten(0, 1)) > BEYOND).unflatten(0, z.shape[:2])
    stays = stays.all(0).expand(_NUM_KEPT, -1, -1)
    return z.flatten(0, 1), log_joint.flatten(0, 1), stays.flatten(0, 1)


def opposites(z: Tensor, log_weights: Tensor, num_values: int, *, generator: Generator) -> Tensor:
    """Draws in which a value has a probability ∝ 1 − p, where p is its share of the particles.

    Args:
        z: Particles, shape (S, B, D).
        log_weights: Of the particles, shape (S, B).
        num_values: K.
        generator: All queries share its numbers.
    Returns:
        Shape (M, B, D).
    """
    weights = log_weights.softmax(0)[..., None]
    shares = torch.stack([(weights * (z == value)).sum(0) for value in range(num_values)], -1)
    cumulative = ((1 - shares) / (num_values - 1)).cumsum(-1)
    chance = uniform((_NUM_OPPOSITE, 1, z.shape[-1], 1), generator=generator, like=z)
    return (cumulative[..., :-1] <= chance).sum(-1).to(z)


def _starts(z: Tensor, log_likelihood: Tensor) -> Tensor:
    """Draws of the prior, half of them the likeliest: (N, D), (N, B) -> (S, B, D)."""
    num = min(_NUM_STARTS, len(z)) // 2
    likeliest = log_likelihood.topk(num, dim=0).indices
    return torch.cat([z[likeliest], z[:num, None].expand(-1, log_likelihood.shape[1], -1)])


def _jumped(target: DiscreteTarget, z: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of jumps from z (S, B, D), or z itself if it is likelier, and log p(z, x) there."""
    ends, heights = [], []
    now = z.new_ones(z.shape[1])
    for some in z.split(_AT_ONCE):
        points = target.points(some, now)
        before = points.log_reference + points.log_ratio
        there = points.changes.argmax(-1).to(z)
        after = target.log_joint(there)
        better = after > before
        ends.append(torch.where(better[..., None], there, some))
        heights.append(torch.where(better, after, before))
    return torch.cat(ends), torch.cat(heights)
