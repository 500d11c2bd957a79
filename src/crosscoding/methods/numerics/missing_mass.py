"""Mass that an answer on a bare density lacks, found by comparing it with other distributions.

Let π = p(z) / Ẑ be the density according to the answer, and Q any other density. Then

    E_Q[π / (Q + π)] = ∫ Q π / (Q + π) dz = E_π[Q / (Q + π)]

The left side averages over draws of Q, the right side over draws of the answer. If the right side
is smaller, the answer lacks a part of p that Q reaches. Both averages are of numbers between 0 and
1, so their errors are known. Two Q are tried: the prior or reference of the target, and Gaussians
along climbs from draws of the answer and of the reference, which lead into narrow regions such as
the neck of a funnel. In addition, weights are checked far out on rays, where tails heavier than the
reference's show, and the search for modes says what it may have missed.

Source: Meng & Wong (1996) for the identity, with the bridge function 1 / (Q + π).
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Mixture
from crosscoding.methods.numerics.covering_reference import Covered
from crosscoding.methods.numerics.gauss_newton import MOST_DIM, climb
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# Halving or doubling any of these changes no answer on six densities of the tests, in 2 to 5-d.
_NUM_DRAWS = 1000  # of the answer, and of each Q: a share of `MISSED` has an error of 0.0044
_STEPS = 12  # of a climb towards a mode, which it need not reach
_MOST_CLIMBS, _MOST_ELSEWHERE, _CLIMBS_BY_DIM = 16, 64, 640  # the last is divided by the dimension
_SURE = 2.0  # standard errors that a gap must exceed: by chance, 2.3 % of gaps do
_NUM_RAYS = 100
_TIMES_AS_FAR = (2.0, 8.0, 64.0, 1e4)  # factors by which rays go beyond the draws
_HEAVIER = 1.0  # nats above the largest weight at the draws


@torch.no_grad()
def share_lacking(target: Target, findings: Findings) -> Tensor:
    """Mass that answers lack, relative to what they have, (B,); 0 if none is found.

    It is infinite where tails are heavier than the prior's or reference's, and NaN where nothing
    can be said: without an estimate of log p(x), and in more than 512 dimensions.
    """
    if target.latent_dim > MOST_DIM or not target.num_queries:
        return torch.full_like(findings.log_evidence, math.nan)
    for_draws, for_starts, for_climbs, for_reference = spawn(Generator().manual_seed(0), 4)
    z = findings.sample(_NUM_DRAWS, generator=for_draws)
    log_density = target.log_joint(z, checked=False) - findings.log_evidence
    paths = _along_climbs(target, findings, for_starts)
    along, log_paths = paths.rsample_and_log_prob(_NUM_DRAWS, generator=for_climbs)
    beside = target.draw_prior(_NUM_DRAWS, generator=for_reference)[:, None].expand_as(z)
    lacking = torch.zeros_like(findings.log_evidence)
    for points, log_q, log_q_at_draws in (
        (along, log_paths, paths.log_prob(z)),
        (beside, target.log_prior(beside), target.log_prior(z)),
    ):
        there = target.log_joint(points, checked=False) - findings.log_evidence
        of_other = (there - log_q).nan_to_num(nan=-math.inf).double().sigmoid()
        of_answer = (log_q_at_draws - log_density).nan_to_num(nan=-math.inf).double().sigmoid()
        count = findings.ess.nan_to_num(1.0).clamp(1.0, _NUM_DRAWS)
        error = (of_other.var(0) / _NUM_DRAWS + of_answer.var(0) / count).sqrt()
        gap = of_other.mean(0) - of_answer.mean(0) - _SURE * error
        lacking = torch.maximum(lacking, gap.clamp_min(0.0).to(lacking))
    if isinstance(target, Covered):
        lacking = lacking.clamp_min(target.reference.unseen)
    lacking = torch.where(_outgrown(target, z), math.inf, lacking)
    return torch.where(findings.log_evidence.isnan(), math.nan, lacking)


def _along_climbs(target: Target, findings: Findings, generator: Generator) -> Fitted:
    """A mixture of Gaussians along climbs, with the density's curvature there as precision.

    Some climbs start at draws of the answer, the others at draws of the reference.
    """
    affordable = max(_CLIMBS_BY_DIM // target.latent_dim, 2)
    z = findings.sample(min(_MOST_CLIMBS, affordable), generator=generator)
    others = min(_MOST_ELSEWHERE, affordable)
    elsewhere = target.draw_prior(others, generator=generator)[:, None]
    z = torch.cat([z, elsewhere.expand(-1, z.shape[1], -1)])
    means, precisions = [], []
    for _ in range(_STEPS):
        modes = climb(target, z, 1)
        z = modes.z
        means.append(z)
        precisions.append(modes.precision)
    means, precisions = torch.cat(means).transpose(0, 1), torch.cat(precisions).transpose(0, 1)
    return Mixture.from_components(torch.zeros_like(means[..., 0]), means, precisions)


def _outgrown(target: Target, z: Tensor) -> Tensor:
    """Whether weights are larger far out than at the draws z (S, B, latent), boolean (B,).

    Far out means on rays from the mean through some draws, several times as far as these.
    """
    mean = z.mean(0)
    rays = z[:: max(len(z) // _NUM_RAYS, 1)] - mean
    far = mean + torch.cat([factor * rays for factor in _TIMES_AS_FAR])
    largest = target.log_likelihood(z, checked=False).amax(0)
    return target.log_likelihood(far, checked=False).amax(0) > largest + _HEAVIER
