"""Second looks at an answer, whatever method gave it.

    losses     is log p(x|z) at the draws meaningful, or was it lost to rounding in the decoder?
    clamps     does the decoder clamp an observed element at all draws?
    coverage   does an answer on a bare density have the mass that other draws find?
    edges      is p(z|x) next to points where the decoder overflows?

Each takes the findings of a method and returns them with what it found, for the verdict.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Generator

from crosscoding.clock import Clock, OutOfTime
from crosscoding.errors import and_more
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.methods.numerics.missing_mass import share_lacking
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.result.findings import Findings
from crosscoding.result.purposes import PURPOSES
from crosscoding.result.verdict import ERROR_PER_MISSED, LOST, MISSED, SEARCHED_DIM
from crosscoding.target.base import REACH, Target

# At most 128 draws are decoded to look for losses, so that two lossy ones are more than 1 %. Fewer
# are decoded if they take over a second per query, and very few if the answer is not trusted.
_MOST_LOOKED, _FEWEST_LOOKED, _FEWEST_TRUSTED = 128, 4, 32
_LOSS_OPERATIONS = 2e10  # multiply-adds: about a second
_ABOVE = 1.5  # times the share that may be lost: any number above 1 refuses the answer
_LOOKED_FOR_CLAMPS = 8  # draws: all agree on a clamp, hardly any two do elsewhere
_FEW_NEAR = 0.01  # share of draws that may lie next to an overflow, as for `LOST`


def with_losses(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Decode some draws again, for queries whose observed values may be lost to rounding.

    A query for which there is no time to look counts as not finished.
    """
    rows = target.may_be_lost().nonzero()[:, 0]
    share, element = torch.zeros_like(findings.ess), torch.zeros_like(findings.ess)
    best = torch.stack([findings.figures.grades_for(purpose) for purpose in PURPOSES]).amin(0)
    trusted = bool((best[rows] == 0).any())
    fewest = _FEWEST_TRUSTED if trusted else _FEWEST_LOOKED
    num = int(min(max(_LOSS_OPERATIONS / target.operations, fewest), _MOST_LOOKED))
    weights = findings.normalised_log_weights()[:, rows]
    z = taken(findings.draws[:, rows], systematic(weights, weights.new_full((1,), 0.5), num))
    finished = findings.figures.finished.clone()
    try:
        share[rows], found = target.select(rows).timed(clock).lost(z)
        element[rows] = found.to(element)
    except OutOfTime:
        finished[rows] = False
    # A single lossy draw out of at most 128 may stand for more than 1 % of all.
    share = torch.where(share > 0, share.clamp_min(_ABOVE * LOST), share)
    return replace(findings, lost=share, lost_element=element, finished=finished)


def with_clamps(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Look for an observed element that all draws predict identically, and wrongly.

    A decoder that clamps or rounds internally does that. If there is no time to look, no query
    counts as finished.
    """
    weights = findings.normalised_log_weights()
    chosen = systematic(weights, weights.new_full((1,), 0.5), _LOOKED_FOR_CLAMPS)
    z = taken(findings.draws, chosen)
    try:
        stuck = target.timed(clock).stuck(z)
    except OutOfTime:
        return replace(findings, finished=torch.zeros_like(findings.figures.finished))
    found = (stuck >= 0) & (z[1:] != z[:1]).any(-1).any(0)  # identical draws show nothing
    if not found.any():
        return findings
    nothing = torch.zeros_like(findings.ess)
    share = nothing if findings.lost is None else findings.lost
    element = nothing if findings.lost_element is None else findings.lost_element
    element = torch.where(found, stuck.to(element), element)
    return replace(findings, lost=share.masked_fill(found, 1.0), lost_element=element)


def with_coverage(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Compare answers on bare densities, which no prior bounds, with what other draws find.

    If that is not possible, as when time runs out, the missed share is left unknown. In many
    dimensions, answers are marked as ones whose modes no search can find completely.
    """
    if target.ends_with_prior:
        return findings
    unknown = torch.full_like(findings.log_evidence, math.nan)
    missed = findings.figures.missed
    try:
        lacking = share_lacking(covered(target.timed(clock), Generator().manual_seed(0)), findings)
    except (KeyboardInterrupt, OutOfTime):
        lacking = unknown
    found = lacking > MISSED
    worst = torch.where(missed.isnan(), lacking, torch.maximum(missed, lacking)).clamp_max(1.0)
    worst = torch.where(found, worst, torch.where(lacking.isnan(), math.nan, missed))
    short = torch.where(found, ERROR_PER_MISSED * lacking, 0.0)
    return replace(
        findings,
        log_evidence_error=torch.hypot(findings.log_evidence_error, short),
        missed=worst,
        unsearchable=torch.full_like(found, target.latent_dim > SEARCHED_DIM),
    )


def with_edges(target: Target, findings: Findings, stacklevel: int) -> Findings:
    """Doubt answers near points z at which the decoder overflowed, as the density there is unknown.

    Warns:
        UserWarning: There are such answers.
    """
    if target.undefined is None or not target.undefined.any():
        return findings
    edge = (REACH - 1) * target.prior_scale
    near = (findings.draws.abs() > edge).any(-1).to(findings.draws)
    weights = findings.normalised_log_weights().exp()
    doubted = ((weights * near).sum(0) > _FEW_NEAR) & target.undefined
    if not doubted.any():
        return findings
    query, others = int(doubted.nonzero()[0, 0]), and_more(int(doubted.sum()) - 1)
    source, what = ("the decoder", "outputs") if target.ends_with_prior else ("log_density", "is")
    warnings.warn(
        f"p(z|x) of query {query}{others} lies next to points z at which {source} {what} NaN; "
        f"these are treated as impossible, which may be wrong; rewrite {source} so that it does "
        "not overflow, for example with torch.sigmoid instead of exp(h) / (1 + exp(h))",
        stacklevel=stacklevel + 1,
    )
    return replace(findings, missed=findings.figures.missed.masked_fill(doubted, math.nan))


def impossible_evidence(target: Target) -> str:
    """The message if log p(x|z) is −inf at every z, which makes methods fail; "" if it is not."""
    try:
        points, log_likelihood = target.log_likelihood_of_bank()
    except ValueError:
        return ""
    never = (log_likelihood == -math.inf).all(0)
    if not never.any():
        return ""
    query = int(never.nonzero()[0, 0])
    return (
        "expected evidence that is possible at some z, got log p(x|z) = -inf for query "
        f"{target.name(query)} at all {len(points)} points of the prior that were tried; "
        f"{target.explain(query, points[points.norm(dim=-1).argmin()])}"
    )
