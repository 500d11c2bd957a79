"""Estimates from simulated twins how much of p(z|x) the proposals of a trained network cover."""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.amortisation.training import Twins, simulated
from crosscoding.diagnostics import log_mean_exp, pareto_k_limit, pareto_smooth
from crosscoding.evidence import Evidence
from crosscoding.masks import MaskDistribution
from crosscoding.methods.cascade.amortised_stage import EVEN
from crosscoding.methods.cascade.bank_points import BestOfBank
from crosscoding.methods.cascade.drawing import Drawing
from crosscoding.methods.numerics.gradients import Points
from crosscoding.methods.numerics.proposal_pool import merged
from crosscoding.model.amortised import Amortised
from crosscoding.model.amortised_coverage import Coverage, CoveredShare
from crosscoding.model.amortised_record import ShareRecord
from crosscoding.model.in_noise import in_noise
from crosscoding.model.vae import VAE
from crosscoding.random import spawn
from crosscoding.result.verdict import MISSED
from crosscoding.target.vae_target import VAETarget

# Twins for each share observed. If at most 3 of 400 are outside of the draws, the upper bound on
# the part that the proposals lack is below `MISSED`.
_NUM_TWINS = 400
_MOST_SIMULATED = 20 * _NUM_TWINS  # twins simulated at most, to find that many for each share
_OPERATIONS = 1e12  # multiply-adds of all twins, about a minute; large models get fewer twins
_OF_ELEMENT = 100  # multiply-adds that take as long as the likelihood of one element
_NUM_DRAWS = 500  # per twin; the cascade makes more, which cover more
_AT_ONCE = 200  # twins simulated at once
_PIECE = 40  # twins whose draws are in memory at once


def coverage_of(
    vae: VAE,
    amortised: Amortised,
    masks: MaskDistribution,
    shares: tuple[ShareRecord, ...],
    generator: Generator,
) -> Coverage | None:
    """The queries for which fresh twins vouch that proposals cover p(z|x); None if for none.

    Only twins with even weights count, as the cascade uses proposals only then. Shares observed
    where most weights are uneven are left out, and so are those where the bound is too high.

    Args:
        vae: The model.
        amortised: Its cross-coder.
        masks: Masks of the twins.
        shares: ESS of the proposals by share observed.
        generator: For the twins.
    """
    worth = [part for part in shares if part.median >= EVEN]
    if not worth:
        return None
    each = max(vae.operations, _OF_ELEMENT * vae.data_size) * _NUM_DRAWS
    num = min(int(_OPERATIONS / (each * len(worth))), _NUM_TWINS)
    found = [torch.empty(2, 0, dtype=vae.dtype, device=vae.device) for _ in worth]
    for _ in range(0, _MOST_SIMULATED, _AT_ONCE):
        left = [num - own.shape[1] for own in found]
        if max(left) <= 0:
            break
        for_twins, for_draws = spawn(generator, 2)
        twins = simulated(in_noise(vae), masks, _AT_ONCE, for_twins)
        share = twins.mask.flatten(1).double().mean(1)
        share[~masks.holds(twins.mask)] = math.nan
        for place, part in enumerate(worth):
            inside = (share >= part.low) & ((share < part.high) | (part.high == 1.0))
            some = inside.nonzero()[: max(left[place], 0), 0]
            tried = [_tried(vae, amortised, twins.select(own), for_draws) for own in _pieces(some)]
            found[place] = torch.cat([found[place], *tried], 1)
    covered = [_covered(part, own) for part, own in zip(worth, found, strict=True)]
    kept = tuple(part for part in covered if part is not None and part.lacking <= MISSED)
    return Coverage(masks, kept) if kept else None


def _pieces(index: Tensor) -> tuple[Tensor, ...]:
    return index.split(_PIECE) if len(index) else ()


@torch.no_grad()
def _tried(vae: VAE, amortised: Amortised, twins: Twins, generator: Generator) -> Tensor:
    """log p(x) of twins with even weights, and whether z* lies outside of the draws, (2, N)."""
    target = VAETarget(vae, Evidence(twins.data, twins.mask)).flatten().prepare()
    proposal, like = amortised.propose(twins.values, twins.mask), target.like
    rows = torch.arange(len(twins.z), device=like.device)
    own = Generator().manual_seed(generator.initial_seed())
    nothing, enough = BestOfBank.nothing(target), EVEN * _NUM_DRAWS
    drawing = Drawing.of_proposal(target, rows, nothing, proposal, enough)
    drawing = drawing.drawn(_NUM_DRAWS, generator=own)
    z = twins.z[None]
    exact = Points(z, target.log_joint(z), torch.full_like(z, math.nan))
    outside = replace(drawing, particles=exact).outside > 0
    log_weights = merged(drawing.pool.log_weights)
    _, pareto_k = pareto_smooth(log_weights)
    sound = (drawing.ess >= drawing.enough) & ~(pareto_k > pareto_k_limit(drawing.pool.num))
    return torch.stack([log_mean_exp(log_weights)[0], outside.to(like)])[:, sound]


def _covered(part: ShareRecord, tried: Tensor) -> CoveredShare | None:
    """The coverage for one share observed, from `_tried`; None if it has no twins."""
    log_evidence, outside = tried
    if not len(outside):
        return None
    least, most = log_evidence.aminmax()
    num = len(outside)
    return CoveredShare(part.low, part.high, num, int(outside.sum()), float(least), float(most))
