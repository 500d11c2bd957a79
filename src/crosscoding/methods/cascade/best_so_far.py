"""Answers as they become better: the best that is known of each query, and how good it is."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.diagnostics import importance_ess, log_mean_exp, pareto_smooth
from crosscoding.methods.importance import FEWEST, bound_of, not_collapsed
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.random import uniform
from crosscoding.result.findings import Findings, Stage
from crosscoding.result.verdict import MISSED, Figures, k_limits
from crosscoding.target.base import Target


@dataclass(eq=False)
class Answer:
    """An answer for some queries.

    Args:
        draws: Shape (S, B, latent).
        log_weights: Of the draws, not normalised, shape (S, B).
        log_evidence, error: log p(x) and its standard error in nats, shape (B,).
        c_elbo, c_elbo_error: A lower bound on log p(x), NaN where there is none, shape (B,).
        ess, pareto_k, missed: As in `verdict.Figures`, shape (B,).
        weighed: Draws that the weights are of, shape (B,).
        cell_width: Side of the cell around each draw, shape (S, B); None: draws are points.
        searched: Whether they come of looking everywhere, so that no further look is needed.
        collapsed: Whether log_weights are those of a fit, as its own left a handful of draws, (B,).
    """

    draws: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    error: Tensor
    c_elbo: Tensor
    c_elbo_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    missed: Tensor
    weighed: Tensor
    cell_width: Tensor | None = None
    searched: bool = False
    collapsed: Tensor | None = None

    @property
    def grades(self) -> Tensor:
        """Index into `verdict.LABELS` of each query's answer, shape (B,)."""
        return Figures(
            log_evidence_error=self.error,
            ess=self.ess,
            pareto_k=self.pareto_k,
            r_hat=torch.full_like(self.ess, math.nan),
            missed=self.missed,
            finished=torch.ones_like(self.ess, dtype=torch.bool),
            num_draws=self.weighed,
        ).grades


_MOST_EXCESS = 5.0  # of Pareto k above its limit: any that is above is no guide
_CLAIM_ESS = 20.0  # of answers that others are held against
_DOUBTED = ("log_evidence", "error", "missed", "pareto_k", "weighed")
_FIGURES = ("log_evidence", "error", "ess", "pareto_k", "missed", "weighed", "collapsed")


class Answers:
    """The best answer of each query so far.

    Attributes:
        num_draws: Draws of each answer that are kept.
        grade: Index into `verdict.LABELS` of each query's answer, shape (B,); 3: there is none.
        way: How many temperatures p(z|x) is from the prior, about, shape (B,).
        looked: Whether climbs have looked for modes that the answer lacks, shape (B,).
        finished: False where a stage was not allowed to run, shape (B,).
    """

    def __init__(self, target: Target, num_draws: int, seed: int) -> None:
        self._seed = seed
        num_queries, like = target.num_queries, target.like
        unknown = like.new_full((num_queries,), math.nan)
        self.num_draws, self._shape = num_draws, (num_draws, num_queries, target.latent_dim)
        self._drawn: Tensor | None = None
        self._as_points = False
        self.log_evidence = unknown
        self.error, self.ess, self.pareto_k = unknown.clone(), unknown.clone(), unknown.clone()
        self.missed, self.weighed = unknown.clone(), torch.zeros_like(unknown)
        self.collapsed = torch.zeros_like(unknown)
        self.c_elbo, self.c_elbo_error = unknown.clone(), unknown.clone()
        self.way = torch.zeros_like(unknown)
        self._later: Answer | None = None  # of all queries
        self._postponed = torch.zeros_like(unknown, dtype=torch.bool)
        self.finished = torch.ones_like(unknown, dtype=torch.bool)
        self.looked = torch.zeros_like(self.finished)
        self.grade = torch.full_like(unknown, 3, dtype=torch.long)
        self._claimed = torch.full_like(unknown, -math.inf)

    @property
    def _draws(self) -> Tensor:
        """Of all queries, made when the first are there."""
        if self._drawn is None:
            self._drawn = self.error.new_zeros(self._shape)
        return self._drawn

    def keep(self, rows: Tensor, answer: Answer, *, postpone: bool = False) -> None:
        """Take an answer for the queries of which it is better than what there is.

        Args:
            rows: The queries.
            answer: Of theirs.
            postpone: Whether to take its draws only at the end, for the queries that keep it.
        """
        rounding = torch.finfo(answer.error.dtype).eps * answer.log_evidence.abs()
        error = torch.hypot(answer.error, rounding).nan_to_num(nan=math.inf)
        answer = replace(answer, error=torch.where(rounding.isfinite(), error, math.inf))
        if answer.collapsed is None:
            answer = replace(answer, collapsed=torch.zeros_like(error))
        self._claim(rows, answer)
        # Less 2 standard errors of each: the highest of noisy bounds would be no bound.
        bound = answer.c_elbo - 2 * answer.c_elbo_error
        bound_so_far = self.c_elbo[rows] - 2 * self.c_elbo_error[rows]
        higher = ~(bound <= bound_so_far) & ~bound.isnan()
        self.c_elbo[rows[higher]] = answer.c_elbo[higher]
        self.c_elbo_error[rows[higher]] = answer.c_elbo_error[higher]
        grade = answer.grades
        better = grade < self.grade[rows]
        bound = torch.where(higher, bound, bound_so_far)
        doubt = _doubt(bound, *(getattr(answer, name) for name in _DOUBTED))
        doubt_so_far = _doubt(bound, *(getattr(self, name)[rows] for name in _DOUBTED))
        better |= (grade == self.grade[rows]) & (doubt < doubt_so_far)
        if not better.any():
            return
        index = better.nonzero()[:, 0]
        chosen, generator = rows[index], Generator().manual_seed(self._seed)
        draws = None if postpone else _resampled(answer, index, self.num_draws, generator)
        # Whoever interrupts what follows finds answers that are not trusted, or none (grade 3).
        finished = self.finished[chosen]
        self.finished[chosen] = False
        if draws is None:
            self._later = answer
        else:
            self._draws[:, chosen] = draws
        self._postponed[chosen] = postpone
        for name in _FIGURES:
            getattr(self, name)[chosen] = getattr(answer, name)[index]
        self.looked[chosen] = answer.searched
        self.grade[chosen] = grade[index].long()
        self.finished[chosen] = finished

    def _claim(self, rows: Tensor, answer: Answer) -> None:
        """Remember what log p(x) is at least: by sound weights, or as a bound says."""
        sound = (answer.ess >= _CLAIM_ESS) & ~(answer.pareto_k > k_limits(answer.weighed))
        claim = torch.where(sound, answer.log_evidence - 3 * answer.error, -math.inf)
        bound = answer.c_elbo - 3 * answer.c_elbo_error
        for least in (claim, bound):
            least = least.nan_to_num(nan=-math.inf)
            self._claimed[rows] = torch.maximum(self._claimed[rows], least)

    def compare(self) -> None:
        """Doubt the answers that lack what another stage found: log p(x) beyond their errors."""
        lacking = _lacking(self._claimed, self.log_evidence, self.error)
        self.doubt(torch.arange(len(lacking), device=lacking.device), lacking)

    def doubt(self, rows: Tensor, missed: Tensor) -> None:
        """Take in what a second look found the answers to lack, (B,)."""
        self.missed[rows] = torch.maximum(self.missed[rows], missed)
        lacking = rows[missed > MISSED]
        self.grade[lacking] = self.grade[lacking].clamp_min(1)

    def draws_of(self, rows: Tensor) -> Tensor:
        """Equally weighted draws of some queries, (num_draws, rows, latent)."""
        later = rows[self._postponed[rows]]
        if len(later) and self._later is not None:
            generator = Generator().manual_seed(self._seed)
            self._draws[:, later] = _resampled(self._later, later, self.num_draws, generator)
            self._postponed[later] = False
        return self._draws[:, rows]

    def every_draw(self) -> Tensor:
        """`draws_of` all queries."""
        return self.draws_of(torch.arange(len(self.error), device=self.error.device))

    def _weighted(self) -> tuple[Tensor, Tensor]:
        assert self._later is not None
        return self._later.draws, self._later.log_weights.log_softmax(0)

    def keep_points(self) -> None:
        """Have the weighted points of the bank for draws: there is no time to draw from them."""
        self._as_points = True

    def findings(self, trace: tuple[Stage, ...]) -> Findings:
        """The answers as a method gives them."""
        self.compare()
        # What a search found outside is known to about itself, and log p(x) is short by it.
        short = torch.where(self.missed > MISSED, 2 * self.missed, 0.0)
        draws, log_weights = self._weighted() if self._as_points else (self.every_draw(), None)
        return Findings(
            draws=draws,
            log_weights=log_weights,
            log_evidence=self.log_evidence,
            log_evidence_error=torch.hypot(self.error, short),
            c_elbo=self.c_elbo,
            c_elbo_error=self.c_elbo_error,
            ess=self.ess,
            pareto_k=self.pareto_k,
            exact_density=True,
            stats={
                "missed": self.missed.clamp_max(1.0),
                "weighed": self.weighed,
                "finished": self.finished.to(self.ess),
                "collapsed": self.collapsed,
            },
            trace=trace,
        )


def _lacking(least: Tensor, log_evidence: Tensor, error: Tensor) -> Tensor:
    """Share of p(z|x) that is not in answers, as log p(x) is `least` or more."""
    short = least - log_evidence - 2 * error
    return -torch.expm1(-short.clamp_min(0.0)).nan_to_num(nan=0.0)


def _doubt(
    bound: Tensor,
    log_evidence: Tensor,
    error: Tensor,
    missed: Tensor,
    pareto_k: Tensor,
    weighed: Tensor,
) -> Tensor:
    """Orders answers of one grade: a lacking mode weighs more than a large error."""
    lacking = torch.maximum(missed.nan_to_num(nan=0.1), _lacking(bound, log_evidence, error))
    excess = (pareto_k.nan_to_num(nan=0.0) - k_limits(weighed)).clamp(0.0, _MOST_EXCESS)
    return error.nan_to_num(nan=10.0) + 10 * lacking + excess


def _resampled(answer: Answer, index: Tensor, num: int, generator: Generator) -> Tensor:
    """Draws of equal weight, (num, rows, latent), in random order; moved within their cells."""
    offset = uniform((1,), generator=generator, like=answer.draws)
    order = torch.randperm(num, generator=generator).to(index.device)
    jitter = uniform((num, 1, answer.draws.shape[-1]), generator=generator, like=answer.draws)
    draws, log_weights = _of_queries(answer.draws, index), _of_queries(answer.log_weights, index)
    if (answer.ess[index] < FEWEST).any():  # of a bank: what was proposed has been seen to
        log_weights, _ = not_collapsed(log_weights, draws, None, None)
    chosen = systematic(log_weights, offset, num)[order]
    z = taken(draws, chosen)
    if answer.cell_width is None:
        return z
    return z + (jitter - 0.5) * taken(_of_queries(answer.cell_width, index), chosen)[..., None]


def _of_queries(tensor: Tensor, index: Tensor) -> Tensor:
    """Those of tensor (S, B, …), copied only where some are chosen that are not all the same."""
    if tensor.stride(1) == 0:
        return tensor[:, :1].expand(-1, len(index), *tensor.shape[2:])
    return tensor if len(index) == tensor.shape[1] else tensor[:, index]


def answer_of(
    proposal: Fitted, num_fitted: int | None, z: Tensor, log_weights: Tensor, missed: Tensor
) -> Answer:
    """What weighted draws of a proposal tell.

    Args:
        proposal: What was drawn from.
        num_fitted: As in `importance.bound_of`.
        z: The draws, shape (S, B, latent).
        log_weights: log p(z, x) − log q(z) in nats, shape (S, B).
        missed: Share of p(z|x) that a search found outside, shape (B,).
    """
    log_evidence, error = log_mean_exp(log_weights)
    c_elbo, c_elbo_error = bound_of(proposal, z, log_weights, num_fitted)
    smoothed, pareto_k = pareto_smooth(log_weights)
    smoothed, collapsed = not_collapsed(smoothed, z, proposal, num_fitted)
    return Answer(
        draws=z,
        log_weights=smoothed,
        log_evidence=log_evidence,
        error=error,
        c_elbo=c_elbo,
        c_elbo_error=c_elbo_error,
        ess=importance_ess(log_weights),
        pareto_k=pareto_k,
        missed=missed,
        weighed=torch.full_like(error, len(z)),
        collapsed=collapsed,
    )
