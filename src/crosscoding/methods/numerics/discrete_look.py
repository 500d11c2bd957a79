"""Searches for discrete states that an answer lacks: by chains from the prior, and by neighbours.

Every chain goes from a draw of the prior to p(z|x) by informed moves. Unlike resampled particles,
no chain dies out, whatever its weight: a mode that looks poor at low temperatures keeps its chains.
Their ends join the known states. A known state that is likelier than the fitted density allows is a
sign of a mode that the fit lacks, so its neighbours, which differ in one place, join the known
states too. The mass that the last of them add is the share that the answer is likely to lack.

Source: the chains are those of Neal (2001), Annealed importance sampling. Differs in: their weights
are not used.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.autoregressive_fit import AutoregressiveFit
from crosscoding.methods.numerics.informed_moves import adapted, moved
from crosscoding.methods.numerics.known_states import KnownStates
from crosscoding.random import spawn
from crosscoding.target.discrete_target import DiscreteTarget

# Halving or doubling any number below moves log p(x) by at most 0.008 nats, and changes no verdict,
# on 26 queries of small models whose log p(x) is known (`discrete` and `wells` in
# benchmarks/sensitivity.py). Another seed moves it by 0.05 nats.
_NUM_CHAINS, _NUM_MOVES = 64, 48  # more chains find rarer modes, and more moves go farther
LOOK_DECODES = float(2 * _NUM_CHAINS * _NUM_MOVES)  # decoder evaluations of a query
_FIRST = 0.02  # the lowest temperature; they rise by equal factors
_FIRST_COST = 1.0  # of moves at first; later ones adapt it
# Rounds of looking at neighbours; in each, states whose neighbours are looked at, and most states
# that may join. A state has D (K − 1) neighbours, all of which are decoded.
_ROUNDS, _AT_ONCE, _MOST_ADDED = 3, 6, 256
BEYOND = math.log(20.0)  # log p(z, x) / q(z) p(x) above which a state is likelier than q allows


@torch.no_grad()
def looked(target: DiscreteTarget, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ends of the chains, (C, B, D), and log p(z, x) there, (C, B)."""
    for_prior, for_moves = spawn(generator, 2)
    num = target.num_queries
    z = target.draw_prior(_NUM_CHAINS, generator=for_prior)[:, None].expand(-1, num, -1)
    now = z.new_zeros(num)
    points, cost = target.points(z.contiguous(), now), now + _FIRST_COST
    for step in torch.linspace(math.log(_FIRST), 0.0, _NUM_MOVES).exp().tolist():
        now = torch.full_like(now, step)
        points = target.points(points.z, now)
        points, acceptance = moved(target, points, now, cost, generator=for_moves)
        cost = adapted(cost, acceptance)
    return points.z, points.log_reference + points.log_ratio


@torch.no_grad()
def explored(
    target: DiscreteTarget, fit: AutoregressiveFit, known: KnownStates, log_evidence: Tensor
) -> tuple[KnownStates, Tensor]:
    """The known states with neighbours of those that a fit lacks, and the share lacking, (B,).

    Args:
        target: The target, flat.
        fit: The density that an answer is drawn from.
        known: The states found so far.
        log_evidence: A first estimate of log p(x), shape (B,).
    """

    def lacking(z: Tensor, log_joint: Tensor) -> Tensor:
        log_q = fit.log_density(target.prior.inputs_of(z))
        return log_joint - log_q > log_evidence + BEYOND

    missed = target.like.new_zeros(target.num_queries)
    new = lacking(known.z, known.log_joint)
    for _ in range(_ROUNDS):
        if not new.any():
            return known, torch.zeros_like(missed)
        most = min(_AT_ONCE, len(known.log_joint))
        own, place = known.log_joint.masked_fill(~new, -math.inf).topk(most, dim=0)
        z = known.z.gather(0, place.unsqueeze(-1).expand(*place.shape, known.z.shape[-1]))
        around = _neighbours(z, target.prior.num_values)
        usable = (own > -math.inf).repeat_interleave(len(around) // most, 0) & ~known.has(around)
        log_joint = target.log_joint(around).masked_fill(~usable, -math.inf)
        grown = KnownStates.among(
            torch.cat([known.z, around]),
            torch.cat([known.log_joint, log_joint]),
            len(known.z) + _MOST_ADDED,
        )
        new = ~known.has(grown.z) & lacking(grown.z, grown.log_joint)
        gain = grown.log_joint.masked_fill(~new, -math.inf).logsumexp(0)
        known, missed = grown, (gain - log_evidence).exp()
    return known, missed


def _neighbours(z: Tensor, num_values: int) -> Tensor:
    """All states that differ from z (S, B, D) in one place: (S D (K − 1), B, D)."""
    dim = z.shape[-1]
    change = torch.eye(dim, dtype=z.dtype, device=z.device)
    steps = torch.arange(1, num_values, dtype=z.dtype, device=z.device)
    shift = (change[:, None] * steps[:, None]).reshape(-1, 1, dim)
    return ((z[:, None] + shift) % num_values).flatten(0, 1)
