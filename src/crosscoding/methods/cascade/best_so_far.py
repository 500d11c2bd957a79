"""The best answer of each query so far, and how good it is."""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.methods.importance import FEWEST, not_collapsed
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.random import uniform
from crosscoding.result.findings import Findings, of_queries
from crosscoding.result.trace import Stage
from crosscoding.result.verdict import ERROR_PER_MISSED, MISSED, Figures, k_limits
from crosscoding.target.base import Target

# Least ESS of answers that may contradict others: with less, a single lucky weight would contradict
# good answers; with more, hardly any poor answer could show what better-looking ones lack.
_CLAIM_ESS = 20.0
# Standard errors by which an estimate is lowered to a limit that others must reach, and by which an
# answer may be lower nevertheless. By chance, 1 in 740 estimates is 3 errors too high, and 2.3 % of
# answers are 2 errors too low.
_SURE, _WITHIN = 3.0, 2.0
# What answers of the same grade are ranked by, in nats: the missed share of p(z|x) and the error
# where they are unknown, nats per share that an answer lacks, and the largest excess of Pareto k
# over its limit. So a rough missing share of 0.1 counts as one nat, and an unknown error as much as
# a lack of everything.
_UNKNOWN_MISSED, _UNKNOWN_ERROR, _PER_LACKING, _MOST_EXCESS = 0.1, 10.0, 10.0, 5.0
# Halving or doubling any of these but _CLAIM_ESS changes nothing on mnist-20d, or on `far`,
# `exact` and `densities` in benchmarks/sensitivity.py.


class BestSoFar:
    """The best answer of each query so far.

    Attributes:
        num_draws: Draws stored for each answer.
        purpose: What the answers are graded for, one of `purposes.PURPOSES`.
        grade: Index into `verdict.LABELS` of each query's answer, shape (B,); 3: there is none.
        vouched: Whether the answer rests on twins of an amortised cross-coder, shape (B,).
        looked: Whether climbs have looked for modes that the answer lacks, shape (B,).
        finished: False where the budget cut a stage short or skipped it, shape (B,).
    """

    def __init__(self, target: Target, num_draws: int, seed: int, purpose: str = "density") -> None:
        self._seed = seed
        self.purpose = purpose
        num_queries, like = target.num_queries, target.like
        unknown = like.new_full((num_queries,), math.nan)
        self.num_draws, self._shape = num_draws, (num_draws, num_queries, target.latent_dim)
        self._drawn: Tensor | None = None
        self._as_points = False
        self.log_evidence = unknown
        self.error, self.ess, self.pareto_k = unknown.clone(), unknown.clone(), unknown.clone()
        self.missed, self.weighed = unknown.clone(), torch.zeros_like(unknown)
        self.c_elbo, self.c_elbo_error = unknown.clone(), unknown.clone()
        self._later: Findings | None = None  # the postponed offer
        self._place = torch.full_like(unknown, -1, dtype=torch.long)  # places in that; -1: none
        self.finished = torch.ones_like(unknown, dtype=torch.bool)
        self.vouched = torch.zeros_like(self.finished)
        self.looked = torch.zeros_like(self.finished)
        self.collapsed = torch.zeros_like(self.finished)
        self.grade = torch.full_like(unknown, 3, dtype=torch.long)
        self._claimed = torch.full_like(unknown, -math.inf)

    @property
    def _draws(self) -> Tensor:
        """Stored draws of all queries, allocated on first use."""
        if self._drawn is None:
            self._drawn = self.error.new_zeros(self._shape)
        return self._drawn

    def keep(
        self,
        rows: Tensor,
        offer: Findings,
        *,
        searched: bool = False,
        postpone: bool = False,
        over_unreliable: bool = False,
        vouched: bool = False,
    ) -> None:
        """Take an offer for the queries for which it is better than the best so far.

        Args:
            rows: The queries.
            offer: What a stage found for them; its log-weights need not be normalised.
            searched: Whether it comes from a search of the whole prior, so that climbs need not
                look for further modes.
            postpone: Whether to draw from it only at the end, for the queries that keep it.
            over_unreliable: Whether it replaces unreliable answers whatever its figures. Collapsed
                weights may have better figures than particles, which are better answers.
            vouched: Whether twins of an amortised cross-coder stand in for particles.
        """
        rounding = torch.finfo(offer.ess.dtype).eps * offer.log_evidence.abs()
        error = torch.hypot(offer.log_evidence_error, rounding).nan_to_num(nan=math.inf)
        error = torch.where(rounding.isfinite(), error, math.inf)
        offer = replace(offer, log_evidence_error=error)
        figures = _figures(offer)
        self._claim(rows, offer, figures)
        bound = self._keep_bound(rows, offer)
        new = {
            "log_evidence": offer.log_evidence,
            "error": error,
            "missed": figures.missed,
            "pareto_k": figures.pareto_k,
            "weighed": figures.num_draws,
        }
        least = torch.fmax(bound, self._claimed[rows])
        doubt = _doubt(least, **new)
        doubt_so_far = _doubt(least, **{name: getattr(self, name)[rows] for name in new})
        grade = self.graded(figures)
        better = grade < self.grade[rows]
        better |= (grade == self.grade[rows]) & (doubt < doubt_so_far)
        better |= (self.grade[rows] == 2) & over_unreliable
        if not better.any():
            return
        index = better.nonzero()[:, 0]
        chosen = rows[index]
        draws = None if postpone else self._resampled(offer, index)
        # If what follows is interrupted, these answers are marked as not finished.
        finished = self.finished[chosen]
        self.finished[chosen] = False
        if draws is None:
            self._later = offer
        else:
            self._draws[:, chosen] = draws
        self._place[chosen] = index if postpone else -1
        for name, figure in (new | {"ess": offer.ess}).items():
            getattr(self, name)[chosen] = figure[index]
        self.collapsed[chosen] = False if offer.collapsed is None else offer.collapsed[index]
        self.looked[chosen] = searched
        self.vouched[chosen] = vouched
        self.grade[chosen] = grade[index].long()
        self.finished[chosen] = finished

    def graded(self, figures: Figures) -> Tensor:
        """Index into `verdict.LABELS` of each answer for the purpose, once its draws are stored."""
        stored = torch.full_like(figures.ess, self.num_draws)
        return replace(figures, resampled=stored).grades_for(self.purpose)

    def _keep_bound(self, rows: Tensor, offer: Findings) -> Tensor:
        """Keep the C-ELBO if it is the highest so far; returns the bounds on log p(x), (rows,)."""
        # Each less some standard errors: the highest of several noisy bounds would not be a bound.
        bound = offer.c_elbo - _WITHIN * offer.c_elbo_error
        bound_so_far = self.c_elbo[rows] - _WITHIN * self.c_elbo_error[rows]
        higher = ~(bound <= bound_so_far) & ~bound.isnan()
        self.c_elbo[rows[higher]] = offer.c_elbo[higher]
        self.c_elbo_error[rows[higher]] = offer.c_elbo_error[higher]
        return torch.where(higher, bound, bound_so_far)

    def _resampled(self, offer: Findings, index: Tensor) -> Tensor:
        """Draws of an offer for some of its queries, with the same random numbers every time."""
        return _resampled(offer, index, self.num_draws, Generator().manual_seed(self._seed))

    def _claim(self, rows: Tensor, offer: Findings, figures: Figures) -> None:
        """Remember the lower limits that sound weights and bounds put on log p(x)."""
        sound = (offer.ess >= _CLAIM_ESS) & ~(figures.pareto_k > k_limits(figures.num_draws))
        claim = offer.log_evidence - _SURE * offer.log_evidence_error
        bound = offer.c_elbo - _SURE * offer.c_elbo_error
        for least in (torch.where(sound, claim, -math.inf), bound):
            least = least.nan_to_num(nan=-math.inf)
            self._claimed[rows] = torch.maximum(self._claimed[rows], least)

    def compare(self) -> None:
        """Doubt answers whose log p(x) is below another stage's by more than both errors."""
        lacking = _lacking(self._claimed, self.log_evidence, self.error)
        self.doubt(torch.arange(len(lacking), device=lacking.device), lacking)

    def doubt(self, rows: Tensor, missed: Tensor) -> None:
        """Record the share of p(z|x) that answers lack according to a second look, (B,)."""
        so_far = self.missed[rows]
        # A mode that was found counts even where nothing is known about others (NaN).
        known = torch.where(missed > MISSED, torch.fmax(so_far, missed), so_far)
        self.missed[rows] = torch.where(missed > so_far, missed, known)
        lacking = rows[missed > MISSED]
        self.grade[lacking] = self.grade[lacking].clamp_min(1)

    def draws_of(self, rows: Tensor) -> Tensor:
        """Equally weighted draws for some queries, (num_draws, rows, latent)."""
        later = rows[self._place[rows] >= 0]
        if len(later) and self._later is not None:
            self._draws[:, later] = self._resampled(self._later, self._place[later])
            self._place[later] = -1
        return self._draws[:, rows]

    def every_draw(self) -> Tensor:
        """`draws_of` for all queries."""
        return self.draws_of(torch.arange(len(self.error), device=self.error.device))

    def _weighted(self) -> tuple[Tensor, Tensor]:
        assert self._later is not None
        return self._later.draws, self._later.normalised_log_weights().log_softmax(0)

    def keep_points(self) -> None:
        """Let the bank's weighted points be the draws, as there is no time to resample them."""
        self._as_points = True

    def findings(self, trace: tuple[Stage, ...]) -> Findings:
        """The answers as `Findings`."""
        self.compare()
        # log p(x) lacks the mass that a search found outside, which is known only roughly.
        short = torch.where(self.missed > MISSED, ERROR_PER_MISSED * self.missed, 0.0)
        # While answers compete, an unknown error is infinite; in the end, only that of −∞ is.
        unknown = self.error.isinf() & self.log_evidence.isfinite()
        error = torch.where(unknown, math.nan, torch.hypot(self.error, short))
        draws, log_weights = self._weighted() if self._as_points else (self.every_draw(), None)
        return Findings(
            draws=draws,
            log_weights=log_weights,
            log_evidence=self.log_evidence,
            log_evidence_error=error,
            c_elbo=self.c_elbo,
            c_elbo_error=self.c_elbo_error,
            ess=self.ess,
            pareto_k=self.pareto_k,
            exact_density=True,
            missed=self.missed.clamp_max(1.0),
            num_weighed=self.weighed,
            finished=self.finished,
            collapsed=self.collapsed,
            vouched=self.vouched if self.vouched.any() else None,
            trace=trace,
        )


def _figures(offer: Findings) -> Figures:
    """The figures that offers compete by; collapsed weights and bounds are judged at the end."""
    return replace(offer.figures, collapsed=None, short=None, excess=None)


def _lacking(least: Tensor, log_evidence: Tensor, error: Tensor) -> Tensor:
    """Share of p(z|x) that answers lack, given that log p(x) is at least `least`."""
    short = least - log_evidence - _WITHIN * error
    return -torch.expm1(-short.clamp_min(0.0)).nan_to_num(nan=0.0)


def _doubt(
    least: Tensor,
    log_evidence: Tensor,
    error: Tensor,
    missed: Tensor,
    pareto_k: Tensor,
    weighed: Tensor,
) -> Tensor:
    """Rank of answers of the same grade, (B,); a missing mode counts more than a large error."""
    lacking = torch.maximum(
        missed.nan_to_num(nan=_UNKNOWN_MISSED), _lacking(least, log_evidence, error)
    )
    excess = (pareto_k.nan_to_num(nan=0.0) - k_limits(weighed)).clamp(0.0, _MOST_EXCESS)
    return error.nan_to_num(nan=_UNKNOWN_ERROR) + _PER_LACKING * lacking + excess


def _resampled(offer: Findings, index: Tensor, num: int, generator: Generator) -> Tensor:
    """Equally weighted draws, (num, rows, latent), in random order, jittered in their cells."""
    offset = uniform((1,), generator=generator, like=offer.draws)
    order = torch.randperm(num, generator=generator).to(index.device)
    jitter = uniform((num, 1, offer.draws.shape[-1]), generator=generator, like=offer.draws)
    log_weights = offer.normalised_log_weights()
    draws, log_weights = of_queries(offer.draws, index), of_queries(log_weights, index)
    if (offer.ess[index] < FEWEST).any():  # of a bank: `weighted_findings` handled others
        log_weights, _ = not_collapsed(log_weights, draws, None, None)
    chosen = systematic(log_weights, offset, num)[order]
    z = taken(draws, chosen)
    if offer.cell_width is None:
        return z
    return z + (jitter - 0.5) * taken(of_queries(offer.cell_width, index), chosen)[..., None]
