"""Gradient-informed moves between discrete states, of all places at once.

    q(z'|z) = Π_i q_i(z'_i|z),   q_i(k|z) ∝ exp(½ d_ik − c [k ≠ z_i])
    accept with min(1, π(z') q(z|z') / π(z) q(z'|z))

d_ik is the change of log π, to first order, if place i takes the value k; half of it makes each q_i
locally balanced. The cost c of leaving a value sets how many places change at once; it is adapted
to the acceptance rate. A large c changes hardly more than one place, as Gibbs with
gradients does.

Source: Grathwohl et al. (2021), Oops I took a gradient, eq. 4–5; Zhang, Liu & Liu (2022), a
Langevin-like sampler for discrete distributions, eq. 3–4. Differs in: c, their 1/2α, is adapted.
"""

import math

from torch import Generator, Tensor

from crosscoding.random import uniform
from crosscoding.target.discrete_target import DiscretePoints, DiscreteTarget, Reference

WANTED_ACCEPTANCE = 0.574  # best for Langevin moves: Roberts & Rosenthal (1998)
# Change of c per difference of the acceptance rate from the wanted one: a larger one follows the
# temperature sooner, but also the noise of the rate.
_ADAPTATION = 1.0
_TINY = 1e-20  # least uniform number, as its logarithm is taken twice


def moved(
    target: DiscreteTarget,
    points: DiscretePoints,
    temperature: Tensor,
    cost: Tensor,
    reference: Reference | None = None,
    *,
    generator: Generator,
) -> tuple[DiscretePoints, Tensor]:
    """The points after one move, and the mean acceptance probability of each query, (B,).

    Args:
        target: The target, flat.
        points: The points before the move, (S, B), at the same temperature.
        temperature: t of each query, (B,).
        cost: c of each query, ≥ 0, (B,).
        reference: Where the path starts; None: at the prior.
        generator: All queries share its numbers.
    """
    num, _, places, values = points.changes.shape
    chance = uniform((num, 1, places, values), generator=generator, like=points.z)
    gumbel = -(-chance.clamp_min(_TINY).log()).clamp_min(_TINY).log()
    forward = _log_proposal(points, cost)
    z = (forward + gumbel).argmax(-1).to(points.z)
    there = target.points(z, temperature, reference)
    gain = there.log_reference - points.log_reference
    gain = gain + temperature * (there.log_ratio - points.log_ratio)
    gain = gain + _of(_log_proposal(there, cost), points.z) - _of(forward, z)
    return _accepted(points, there, gain, generator)


def redrawn(
    target: DiscreteTarget,
    points: DiscretePoints,
    temperature: Tensor,
    reference: Reference,
    z: Tensor,
    *,
    generator: Generator,
) -> tuple[DiscretePoints, Tensor]:
    """The points after proposing draws z (S, B, D) of the reference; returns what `moved` does."""
    there = target.points(z, temperature, reference)
    gain = temperature * (there.log_ratio - points.log_ratio)
    return _accepted(points, there, gain, generator)


def _accepted(
    points: DiscretePoints, there: DiscretePoints, gain: Tensor, generator: Generator
) -> tuple[DiscretePoints, Tensor]:
    acceptance = gain.nan_to_num(nan=-math.inf).clamp_max(0).exp()
    chance = uniform((len(gain), 1), generator=generator, like=points.z)
    return points.where(chance < acceptance, there), acceptance.mean(0)


def adapted(cost: Tensor, acceptance: Tensor) -> Tensor:
    """c after moves with this acceptance rate, both (B,)."""
    return (cost + _ADAPTATION * (WANTED_ACCEPTANCE - acceptance)).clamp_min(0.0)


def _log_proposal(points: DiscretePoints, cost: Tensor) -> Tensor:
    """log q_i(k|z), (S, B, D, K)."""
    logits = 0.5 * points.changes - cost[:, None, None]
    here = points.z.long().unsqueeze(-1)
    stay = logits.gather(-1, here) + cost[:, None, None]
    return logits.scatter(-1, here, stay).log_softmax(-1)


def _of(log_proposal: Tensor, z: Tensor) -> Tensor:
    """log q(z) of all places together, (S, B)."""
    return log_proposal.gather(-1, z.long().unsqueeze(-1))[..., 0].sum(-1)
