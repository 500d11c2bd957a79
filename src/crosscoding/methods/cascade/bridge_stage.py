"""The stage of the cascade (`auto`) for many dimensions: particles from the best Gaussian.

It climbs by gradients, fits a Gaussian at the best end by natural gradients, weights its draws, and
takes particles from it to p(z|x) (`whitened_bridge`) where these weights do not settle a query.
"""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted, Gaussian
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.budget import LEAST_CLIMBS, NUM_ISLANDS, NUM_WEIGHED, Budget
from crosscoding.methods.cascade.weighing import Weighing
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.natural_gradient import NaturalGradient
from crosscoding.methods.numerics.bridge_particles import gaussian_root
from crosscoding.methods.numerics.crossing import Crossing
from crosscoding.methods.numerics.gauss_newton import Modes, lacking_modes, positive
from crosscoding.methods.numerics.lbfgs import ascend
from crosscoding.methods.numerics.whitened_bridge import WhitenedBridge
from crosscoding.progress import part
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.result.purposes import NEEDED_DRAWS, draws_to_find
from crosscoding.target.base import Target

_NUM_CLIMBS, _CLIMB_STEPS = LEAST_CLIMBS, 200  # faces take 25 to 200 steps
_UNTIL_FITS, _UNTIL_PARTICLES = 0.05, 0.15  # shares of the work that come before
_OF_GRADIENT = 3  # decodes that a gradient costs
_TIME_FOR_CLIMBS, _TIME_FOR_FIT = 0.3, 0.5  # shares of the time left, if it is limited
_FIT_STEPS = 100  # of natural gradients; faces stop rising after 80 to 180
# Variance of the particles' start relative to the fit's, which is too narrow: on the paper's
# decoder, eyes observed, an island's log p(x) has a standard deviation of 1.4 nats without it, and
# of 0.8 with it and the mean of particles.
_WIDER = 1.3
# On 16 linear-Gaussian posteriors of 100 dimensions, from Gaussians with variances off by 40 %, a
# share of 0.5 gives errors of 1.2 nats, 0.7 gives 0.6, 0.85 gives 0.3 for twice the gradients, all
# with 8 steps; with 4 steps throughout and 0.9 it is 0.6. Resampled particles share ancestors; 8
# moves make up for this (decision 0010).
_ESS_SHARE, _MOST_STEPS, _NUM_FINAL = 0.85, 8, 8


class BridgeStage:
    """Answers queries by particles that start from the best Gaussian.

    Args:
        answers: Takes the offers.
        budget: How many particles there may be.
        clock: When to stop.
        report: Receives progress.
        weigh: Offers answers from proposals.
    """

    def __init__(
        self, answers: BestSoFar, budget: Budget, clock: Clock, report: Report, weigh: Weighing
    ) -> None:
        self._answers = answers
        self._budget = budget
        self._clock = clock
        self._report = report
        self._weigh = weigh

    def __call__(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Fit a Gaussian to each query, weight its draws, and start particles if these are poor."""
        for_starts, for_fit, for_weights, for_particles = spawn(generator, 4)
        self._report(0.0, "climbs")
        ends, heights, decodes = self._climbed(target, for_starts)
        self._report(_UNTIL_FITS, "fits")
        gaussian, extra = self._fitted(target, ends, for_fit)
        decodes = decodes + extra
        alone = torch.full_like(decodes, math.nan)  # a fit is no search
        decodes += self._weigh(
            target, rows, gaussian, None, NUM_WEIGHED, lambda largest: alone, for_weights
        )
        poor = (self._answers.grade[rows] > 0).nonzero()[:, 0]
        if not len(poor):
            return decodes
        particles = WhitenedBridge(
            self._budget.bridge_size,
            NUM_ISLANDS,
            _MOST_STEPS,
            _NUM_FINAL,
            _ESS_SHARE,
            self._enough,
        )
        wide, ends, heights = _widened(gaussian.select(poor)), ends[:, poor], heights[:, poor]
        crossing = particles.empty(ends)
        try:
            particles.run(
                target.select(poor),
                wide,
                ends,
                generator=for_particles,
                report=part(self._report, _UNTIL_PARTICLES, 1.0),
                stop=self._clock.to_the_end(),
                into=crossing,
            )
        finally:  # draws that are there before an interruption are kept
            self._offer(rows[poor], crossing, wide, ends, heights)
        decodes[poor] += _OF_GRADIENT * crossing.decodes
        return decodes

    def _offer(
        self, rows: Tensor, crossing: Crossing, gaussian: Fitted, ends: Tensor, heights: Tensor
    ) -> None:
        """Offer particles that went from a Gaussian to p(z|x), where they arrived."""
        self._answers.finished[rows[~crossing.reached]] = False
        there = crossing.reached.nonzero()[:, 0]
        if not len(there):
            return
        root = gaussian_root(gaussian.select(there))
        found = _findings(crossing.select(there), ends[:, there], heights[:, there], root)
        self._answers.keep(rows[there], found, over_unreliable=True)
        if found.missed is not None:  # the Gaussian's answer lacks these modes, too
            self._answers.doubt(rows[there], found.missed)

    @property
    def _enough(self) -> float:
        """Effective draws to aim for: for means, or for intervals if draws are for them alone.

        Particles leave log p(x) too uncertain for the purpose "density", which needs more.
        """
        stored = self._answers.num_draws
        purpose = "interval" if self._answers.purpose == "interval" else "mean"
        return draws_to_find(purpose, stored) if stored >= NEEDED_DRAWS[purpose] else 0.0

    def _climbed(self, target: Target, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of climbs by gradients, (K, B, latent), best first; log p(z, x) there; decodes."""
        starts = spread_starts(target, _NUM_CLIMBS, generator=generator)
        num_starts, num_queries = starts.shape[:2]
        query = torch.arange(num_queries, device=starts.device).repeat(num_starts)
        each = target.select(query)
        ends, steps = ascend(
            each, starts.flatten(0, 1), _CLIMB_STEPS, stop=self._clock.within(_TIME_FOR_CLIMBS)
        )
        heights = each.log_joint(ends[None])[0].unflatten(0, (num_starts, num_queries))
        ends = ends.unflatten(0, (num_starts, num_queries))
        order = heights.argsort(0, descending=True)
        ends, heights = ends.gather(0, order[..., None].expand_as(ends)), heights.gather(0, order)
        return ends, heights, _OF_GRADIENT * steps.unflatten(0, (num_starts, num_queries)).sum(0)

    def _fitted(self, target: Target, ends: Tensor, generator: Generator) -> tuple[Fitted, Tensor]:
        """The best Gaussian that natural gradients find from the best end, and the decodes."""
        dim = target.latent_dim
        precision = positive(target.curvature(ends[:1])[0], target.prior_scale)
        fit = NaturalGradient(_FIT_STEPS)
        report = part(self._report, _UNTIL_FITS, _UNTIL_PARTICLES)
        mean, precision, steps = fit.fit(
            target, ends[0], precision, generator, report, self._clock.within(_TIME_FOR_FIT)
        )
        decodes = steps * (_OF_GRADIENT * fit.num_draws + dim / 4) + dim
        return Gaussian.from_precision(mean, precision), decodes


def _widened(gaussian: Fitted) -> Fitted:
    """A Gaussian with `_WIDER` times the variance."""
    scale = math.sqrt(_WIDER)
    params = gaussian.params | {
        "log_diagonal": gaussian.params["log_diagonal"] + math.log(scale),
        "lower": gaussian.params["lower"] * scale,
    }
    return replace(gaussian, params=params)


def _findings(crossing: Crossing, ends: Tensor, heights: Tensor, root: Tensor) -> Findings:
    """The particles as an answer.

    Args:
        crossing: The particles.
        ends: Where climbs ended, shape (K, B, latent).
        heights: log p(z, x) there, shape (K, B).
        root: R of the Gaussian N(m, R Rᵀ) that they started from, shape (B, latent, latent).
    """
    log_evidence, error = crossing.log_evidence
    unknown = torch.full_like(error, math.nan)
    # All modes are given the Gaussian's widths: a mode without draws is lacking, as in `look`.
    precision = torch.cholesky_inverse(root.double()).expand(len(ends), *root.shape)
    nothing = torch.zeros_like(heights)
    modes = Modes(ends, heights, precision, nothing, nothing[0])
    log_weights, _ = modes.log_weights(modes.bulk)
    lacking = lacking_modes(modes, log_weights, crossing.z).to(error)
    return Findings(
        draws=crossing.z,
        log_evidence=log_evidence,
        log_evidence_error=error,
        c_elbo=unknown,
        c_elbo_error=unknown,
        ess=crossing.ess,
        missed=torch.maximum(crossing.missed(root), lacking),
    )
