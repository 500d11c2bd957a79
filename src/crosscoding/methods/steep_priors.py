"""A second look at answers for priors whose map from noise is steep.

Between distant components of a mixture the map is nearly vertical. Only a sliver of the noise maps
to the z there, and methods miss it, although all of p(z|x) may be there. So this look climbs, and
estimates p(x), in the coordinates of the latent variable itself.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock, OutOfTime
from crosscoding.diagnostics import log_mean_exp
from crosscoding.errors import and_more
from crosscoding.methods.numerics.lbfgs import ascend
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.priors import Mixture
from crosscoding.random import normal, spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target
from crosscoding.target.latent_target import LatentTarget
from crosscoding.target.vae_target import VAETarget

# On 12 queries between and at components 12 apart, of known log p(x), 5 answers are trusted and
# right to 0.1 nats, and 7 are refused, off by up to 27 nats. Halving or doubling any of these
# numbers changes none of that (`steep` in benchmarks/sensitivity.py).
_NUM_LOOKED, _FEW = 64, 0.01  # draws looked at, and the share of them that rounding may move
_ROUNDING = 4.0  # times eps of noise, or of 1: how exact the map of a prior is
_MOVED = 0.05  # nats by which this may move log p(x|z), as many as log p(x) may be off
_NUM_CLIMBS, _CLIMB_STEPS = 4, 40  # from draws, and as many from the prior
_NUM_WEIGHED, _WIDER = 512, 1.2  # draws around the best mode, and their spread in deviations
_LACKING = 0.1  # nats, beyond three errors of both, by which their log p(x) may be higher


def with_steep_priors(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Refuse answers that rounding in the prior's map spoils, or that lack mass where it is steep.

    All of p(z|x) then counts as missed. If there is no time to look, the share is left unknown.
    """
    if not isinstance(target, VAETarget) or not target.may_be_steep or not target.num_queries:
        return findings
    missed, weights = findings.figures.missed, findings.normalised_log_weights()
    z = taken(findings.draws, systematic(weights, weights.new_full((1,), 0.5), _NUM_LOOKED))
    target = target.timed(clock)
    try:
        found = _is_moved(target, z).to(z).mean(0) > _FEW
        if isinstance(target.model.prior, Mixture):
            found = found | _lacks(target, target.model.prior, z, findings)
    except OutOfTime:
        return replace(findings, missed=torch.full_like(missed, math.nan))
    return replace(findings, missed=missed.masked_fill(found, 1.0))


def warn_of_steep_priors(target: Target, findings: Findings, stacklevel: int) -> None:
    """Warn about the answers that were refused."""
    found = findings.figures.missed == 1.0
    if not target.may_be_steep or not found.any():
        return
    query, others = int(found.nonzero()[0, 0]), and_more(int(found.sum()) - 1)
    warnings.warn(
        f"p(z|x) of query {query}{others} lies where the map of the prior is too steep for "
        f"{str(target.like.dtype).removeprefix('torch.')}, as between components of a mixture that "
        "are far apart, so the answer is wrong; use a model in double, or a prior that is less "
        "steep",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


@torch.no_grad()
def _is_moved(target: VAETarget, z: Tensor) -> Tensor:
    """Whether rounding of noise z moves log p(x|z), boolean, (S, B)."""
    step = _ROUNDING * torch.finfo(z.dtype).eps * z.abs().clamp_min(1.0)
    here, below, above = (
        target.log_likelihood(points, checked=False) for points in (z, z - step, z + step)
    )
    return torch.maximum((below - here).abs(), (above - here).abs()) > _MOVED


def _lacks(target: VAETarget, prior: Mixture, draws: Tensor, findings: Findings) -> Tensor:
    """Whether an answer lacks mass around the best mode of p(z|x), boolean, (B,).

    That is the case if draws from a Gaussian there estimate a larger p(x).
    """
    own = LatentTarget(target)
    for_starts, for_draws = spawn(Generator().manual_seed(0), 2)
    others = target.draw_prior(_NUM_CLIMBS, generator=for_starts)[:, None]
    starts = torch.cat([draws[:_NUM_CLIMBS], others.expand(-1, draws.shape[1], -1)])
    starts = target.latents(starts)
    places = torch.arange(starts.shape[1], device=starts.device).repeat(len(starts))
    ends, _ = ascend(own.select(places), starts.flatten(0, 1), _CLIMB_STEPS)
    ends = ends.unflatten(0, starts.shape[:2])
    with torch.no_grad():
        best = own.log_joint(ends, checked=False).nan_to_num(nan=-math.inf).argmax(0)
        mode = taken(ends, best[None])
        bend = own.curvature(mode)[0].double()
        bend = bend + (prior.precision(mode[0]).double() - 1).diag_embed()  # in place of I
        root = torch.linalg.cholesky(bend)
        noise = normal((_NUM_WEIGHED, 1, mode.shape[-1]), generator=for_draws, like=mode)
        noise = noise.expand(-1, mode.shape[1], -1).double()
        gaps = torch.linalg.solve_triangular(root.mT, noise[..., None], upper=True)[..., 0]
        z = mode + (_WIDER * gaps).to(mode)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - z.shape[-1] * math.log(_WIDER)
        log_q = log_det - 0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)
        log_weights = own.log_joint(z, checked=False).nan_to_num(nan=-math.inf) - log_q
    log_evidence, error = log_mean_exp(log_weights)
    errors = 3 * torch.hypot(error, findings.log_evidence_error.double().nan_to_num(nan=0.0))
    return log_evidence - findings.log_evidence > errors + _LACKING
