"""Exact answers for discrete latents: p(x) is a sum over all states, decoded once for all queries.

p(x) = Σ_z p(z) p(x|z),   p(z|x) = p(z) p(x|z) / p(x)
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.resampling import systematic
from crosscoding.progress import Report
from crosscoding.random import uniform
from crosscoding.result.findings import Findings
from crosscoding.target.discrete_target import DiscreteTarget

MAX_STATES = 2**20  # all are decoded, so time doubles with each switch; above, states are searched
_AT_ONCE = 2**14  # states
_MOST_KEPT = 2**12  # most states for which all are returned, with their weights


@torch.no_grad()
def enumerated(
    target: DiscreteTarget, num_draws: int, *, generator: Generator, report: Report
) -> Findings:
    """Exact findings for a flat target of at most `MAX_STATES` states.

    Few states are all returned as draws, with their probabilities. From more, `num_draws` are drawn
    with exact probabilities, by inverting the distribution function at evenly spaced points.

    Args:
        target: The target.
        num_draws: Number of draws where there are many states.
        generator: For the draws.
        report: Receives progress.
    """
    num = target.prior.num_states
    pieces = [range(start, min(start + _AT_ONCE, num)) for start in range(0, num, _AT_ONCE)]
    if num <= _MOST_KEPT:
        z, log_joint = _piece(target, pieces[0])
        log_evidence = log_joint.logsumexp(0)
        draws = z[:, None].expand(-1, target.num_queries, -1)
        return _findings(draws, log_evidence, target, log_joint - log_evidence)
    masses = []
    for number, piece in enumerate(pieces):
        report(0.5 * number / len(pieces), f"state {piece.start} of {num}")
        masses.append(_piece(target, piece)[1].logsumexp(0))
    log_masses = torch.stack(masses)
    offset = uniform((1,), generator=generator, like=target.like)
    owners = systematic(log_masses, offset, num_draws)
    within = uniform((num_draws, 1), generator=generator, like=target.like)
    draws = target.like.new_zeros(num_draws, target.num_queries, target.latent_dim)
    for number, piece in enumerate(pieces):
        own = owners == number
        if own.any():
            report(0.5 + 0.5 * number / len(pieces), f"state {piece.start} of {num}")
            z, log_joint = _piece(target, piece)
            draws = torch.where(own[..., None], z[_inverted(log_joint, within)], draws)
    return _findings(draws, log_masses.logsumexp(0), target, None)


def _piece(target: DiscreteTarget, numbers: range) -> tuple[Tensor, Tensor]:
    """Some states (N, D), and log p(z, x) of every query there, (N, B)."""
    z = target.prior.states(numbers.start, numbers.stop, target.like)
    log_prior = target.log_prior(z)
    return z, log_prior[:, None] + target.pairwise_log_likelihood(z)


def _inverted(log_weights: Tensor, chance: Tensor) -> Tensor:
    """Indices (S, B) up to which weights (N, B) sum to a share of their total, chance (S, 1)."""
    cumulative = log_weights.double().softmax(0).cumsum(0).mT.contiguous()
    points = chance.double() * cumulative[:, -1:].mT
    index = torch.searchsorted(cumulative, points.mT.contiguous(), right=True)
    return index.clamp_max(len(log_weights) - 1).mT


def _findings(
    draws: Tensor, log_evidence: Tensor, target: DiscreteTarget, log_weights: Tensor | None
) -> Findings:
    nothing = torch.zeros_like(log_evidence)
    error = nothing + target.prior.log_normaliser_error
    states = nothing + float(target.prior.num_states)
    return Findings(
        draws=draws,
        log_evidence=log_evidence,
        log_evidence_error=error,
        c_elbo=log_evidence,
        c_elbo_error=nothing,
        ess=nothing + math.inf,
        log_weights=log_weights,
        exact_density=True,
        missed=nothing,
        stats={"states": states},
    )
