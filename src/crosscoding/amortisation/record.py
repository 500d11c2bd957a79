"""Measures how good a trained network's proposals are on simulated queries."""

import itertools
import math

import torch
from torch import Generator, Tensor

from crosscoding.amortisation.coverage import coverage_of
from crosscoding.amortisation.training import Training, Twins, simulated
from crosscoding.diagnostics import importance_ess
from crosscoding.evidence import Evidence
from crosscoding.masks import MaskDistribution
from crosscoding.methods.cascade.amortised_stage import EVEN
from crosscoding.model.amortised import Amortised
from crosscoding.model.amortised_record import Record, ShareRecord
from crosscoding.model.in_noise import in_noise
from crosscoding.model.vae import VAE
from crosscoding.random import spawn
from crosscoding.target.vae_target import VAETarget

_NUM_TWINS, _NUM_DRAWS = 512, 500
_OPERATIONS = 3e10  # multiply-adds of the whole record, some seconds; large models get fewer twins
_OF_ELEMENT = 100  # multiply-adds that take as long as the likelihood of one element
_EDGES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the bins of shares observed
_BEYOND = 1.0  # nats above the largest weight, as in the cascade


@torch.no_grad()
def record_of(
    vae: VAE, amortised: Amortised, masks: MaskDistribution, training: Training
) -> Record:
    """The record of a training, with figures of its network on fresh twins."""
    each = max(vae.operations, _OF_ELEMENT * vae.data_size)
    affordable = int(_OPERATIONS / (each * _NUM_DRAWS))
    num = min(max(affordable, 16), _NUM_TWINS)
    for_twins, for_draws = spawn(training.for_record, 2)
    twins = simulated(in_noise(vae), masks, num, for_twins)
    ess, outside, bounds = _weighed(vae, amortised, twins, for_draws)
    share = twins.mask.flatten(1).double().mean(1)
    shares = tuple(
        _of_share(low, high, ess[inside])
        for low, high in itertools.pairwise(_EDGES)
        if (inside := (share >= low) & ((share < high) | (high == 1.0))).any()
    )
    return Record(
        masks=repr(masks),
        steps=training.steps,
        seconds=training.seconds,
        bound=float(bounds.mean()),
        error=float(bounds.std()) / math.sqrt(len(bounds)),
        outside=float(outside.double().mean()),
        shares=shares,
        coverage=coverage_of(vae, amortised, masks, shares, training.for_coverage),
        ended_early=training.ended_early,
    )


def _weighed(
    vae: VAE, amortised: Amortised, twins: Twins, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """ESS per draw, whether z* lies outside of the draws, and log q(z*|x), all (N,)."""
    target = VAETarget(vae, Evidence(twins.data, twins.mask)).flatten()
    proposal = amortised.propose(twins.values, twins.mask)
    z, log_q = proposal.rsample_and_log_prob(_NUM_DRAWS, generator=generator)
    log_weights = target.log_joint(z, checked=False) - log_q
    log_weights = log_weights.nan_to_num(nan=-math.inf)
    bounds = proposal.log_prob(twins.z)
    there = target.log_joint(twins.z, checked=False) - bounds
    outside = there > log_weights.amax(0) + _BEYOND
    return importance_ess(log_weights) / _NUM_DRAWS, outside, bounds


def _of_share(low: float, high: float, ess: Tensor) -> ShareRecord:
    levels = ess.double().quantile(torch.tensor([0.5, 0.1], dtype=torch.double).to(ess.device))
    median, tenth = levels.tolist()
    return ShareRecord(low, high, len(ess), median, tenth, float((ess >= EVEN).double().mean()))
