"""Second looks at an answer that hold whatever method gave it.

    losses     does the decoder's output at the draws tell log p(x|z), or was that rounded away?
    clamps     does the decoder hold an observed element on a clamp of its own at all draws?
    coverage   has an answer on a bare density the mass that other draws find?
    edges      is p(z|x) next to points where the decoder overflowed?

Each takes the findings of a method and gives them with what it found, for the verdict to use.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Generator

from crosscoding.clock import Clock, OutOfTime
from crosscoding.errors import and_more
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.methods.numerics.overlap import share_lacking
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.result.findings import Findings
from crosscoding.result.verdict import LOST, MISSED
from crosscoding.target.base import REACH, Target

# Draws that are decoded to look for losses: of the most, two count as more than 1 %. Where they
# cost more than a second of a query, fewer; few are enough where the answer is not trusted anyway.
_MOST_LOOKED, _FEWEST_LOOKED, _FEWEST_TRUSTED = 128, 4, 32
_LOSS_OPERATIONS = 2e10  # multiply-adds: about a second
_LOOKED_FOR_CLAMPS = 8  # draws: on a clamp all agree, elsewhere two hardly do
_FEW_NEAR = 0.01  # share of draws that may lie next to what overflows


def with_losses(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Decode some draws once more, of queries whose observed values may be lost to rounding.

    A query that there was no time to look at was stopped before it was done.
    """
    rows = target.may_be_lost().nonzero()[:, 0]
    share, element = torch.zeros_like(findings.ess), torch.zeros_like(findings.ess)
    trusted = bool((findings.figures.grades[rows] == 0).any())
    fewest = _FEWEST_TRUSTED if trusted else _FEWEST_LOOKED
    num = int(min(max(_LOSS_OPERATIONS / target.operations, fewest), _MOST_LOOKED))
    weights = findings.normalised_log_weights()[:, rows]
    z = taken(findings.draws[:, rows], systematic(weights, weights.new_full((1,), 0.5), num))
    finished = findings.stats.get("finished", torch.ones_like(share)).clone()
    try:
        share[rows], found = target.select(rows).timed(clock).lost(z)
        element[rows] = found.to(element)
    except OutOfTime:
        finished[rows] = 0.0
    # One draw of a hundred or fewer may stand for more than 1 % of them.
    share = torch.where(share > 0, share.clamp_min(1.5 * LOST), share)
    stats = findings.stats | {"lost": share, "lost_element": element, "finished": finished}
    return replace(findings, stats=stats)


def with_clamps(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Look for an observed element that is the same at all draws, and that they contradict.

    A decoder that clamps or rounds within itself holds it there.
    """
    if target.operations > _LOSS_OPERATIONS / _LOOKED_FOR_CLAMPS:
        return findings
    weights = findings.normalised_log_weights()
    chosen = systematic(weights, weights.new_full((1,), 0.5), _LOOKED_FOR_CLAMPS)
    z = taken(findings.draws, chosen)
    try:
        stuck = target.timed(clock).stuck(z)
    except OutOfTime:
        return findings
    found = (stuck >= 0) & (z[1:] != z[:1]).any(-1).any(0)  # a single point shows nothing
    if not found.any():
        return findings
    nothing = torch.zeros_like(findings.ess)
    share, element = (findings.stats.get(name, nothing) for name in ("lost", "lost_element"))
    share, element = share.masked_fill(found, 1.0), torch.where(found, stuck.to(element), element)
    return replace(findings, stats=findings.stats | {"lost": share, "lost_element": element})


def with_coverage(target: Target, findings: Findings, clock: Clock) -> Findings:
    """Hold answers on bare densities, which no prior bounds, against what other draws find.

    Where that cannot be told, as when time runs out, the share that is missed is left unknown.
    """
    if target.ends_with_prior:
        return findings
    unknown = torch.full_like(findings.log_evidence, math.nan)
    missed = findings.stats.get("missed", unknown)
    try:
        lacking = share_lacking(covered(target.timed(clock), Generator().manual_seed(0)), findings)
    except (KeyboardInterrupt, OutOfTime):
        lacking = unknown
    found = lacking > MISSED
    worst = torch.where(missed.isnan(), lacking, torch.maximum(missed, lacking)).clamp_max(1.0)
    worst = torch.where(found, worst, torch.where(lacking.isnan(), math.nan, missed))
    short = torch.where(found, 2 * lacking, 0.0)
    return replace(
        findings,
        log_evidence_error=torch.hypot(findings.log_evidence_error, short),
        stats=findings.stats | {"missed": worst},
    )


def with_edges(target: Target, findings: Findings, stacklevel: int) -> Findings:
    """Doubt answers that come near z for which a decoder overflowed: what is there is not known.

    Warns:
        UserWarning: There are some.
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
    warnings.warn(
        f"p(z|x) of query {query}{others} lies next to z for which the decoder outputs NaN: they "
        "are taken for impossible, which may be wrong; write the decoder so that it does not "
        "overflow, as with torch.sigmoid for exp(h) / (1 + exp(h))",
        stacklevel=stacklevel + 1,
    )
    missed = findings.stats.get("missed", torch.full_like(findings.log_evidence, math.nan))
    return replace(
        findings, stats=findings.stats | {"missed": missed.masked_fill(doubted, math.nan)}
    )


def impossible_evidence(target: Target) -> str:
    """What to say where a method failed because log p(x|z) is −inf at every z; "" if it is not."""
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
        f"{target.name(query)} at all {len(points)} points of the prior that were tried"
        f"; {target.explain(query, points[points.norm(dim=-1).argmin()])}"
    )
