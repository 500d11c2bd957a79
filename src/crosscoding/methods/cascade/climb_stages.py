"""The stages of the cascade (`auto`) that climb.

They do where p(z|x) is too narrow to anneal to, and to look for modes that the particles of other
stages may have lost. As all `stages`, they offer what they find, and return each query's decodes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.best_so_far import Answers
from crosscoding.methods.cascade.budget import (
    CHECK_STEPS,
    CLIMB_EVERY,
    CLIMB_STEPS,
    DEAR_STEPS,
    LEAST_CLIMBS,
    NUM_ADAPT,
    Effort,
)
from crosscoding.methods.cascade.handover import HandedOn
from crosscoding.methods.cascade.weighing import BEYOND, Weighing
from crosscoding.methods.importance import widened
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.natural_gradient import NaturalGradient
from crosscoding.methods.numerics.gauss_newton import Modes, climb, lacking_modes
from crosscoding.methods.numerics.resampling import taken
from crosscoding.random import spawn
from crosscoding.target.base import Target

_NUM_DEAR = 500  # draws where climbs cost so much that there is one
_MOST_COMPONENTS = 8  # of the modes found, to propose from
_LEAST_SHARE = -50.0  # log, of a component
_LIGHT = 4.0  # nats below the heaviest mode, from which on one does not count
_FEW_REACHED = 0.15  # share of climbs: with decoders of smooth networks it is 0.3 to 1


@dataclass(eq=False)
class Found:
    """What climbs found of B queries.

    Args:
        proposal: All of it, to draw from.
        unseen: The estimated share of p(z|x) in modes that they did not find, shape (B,); NaN where
            there were too few climbs to tell.
    """

    proposal: Fitted
    unseen: Tensor

    def select(self, index: Tensor) -> "Found":
        """That of some queries."""
        return Found(self.proposal.select(index), self.unseen[index])

    @staticmethod
    def joined(parts: "Sequence[Found]") -> "Found":
        """That of several blocks of queries, one after the other."""
        proposal = Fitted.joined([part.proposal for part in parts])
        return Found(proposal, torch.cat([part.unseen for part in parts]))


class Climbs:
    """What climbs found, and the stages that climb.

    Args:
        answers: To offer answers to.
        effort: How much of everything.
        clock: When to stop.
        report: Of progress.
        weigh: Makes answers of proposals.

    Attributes:
        found: Of the queries that climbs did not settle, what they found.
    """

    def __init__(
        self, answers: Answers, effort: Effort, clock: Clock, report: Report, weigh: Weighing
    ) -> None:
        self._answers = answers
        self._effort = effort
        self._clock = clock
        self._report = report
        self._weigh = weigh
        self.found: HandedOn[Found] = HandedOn(answers.way)

    def climb(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Modes, the Laplace mixture as a proposal, and the best Gaussian where that is poor."""
        for_starts, for_modes, for_mode, for_fit, for_gaussian = spawn(generator, 5)
        num = self._effort.num_climbs
        steps = CLIMB_STEPS if num >= LEAST_CLIMBS else DEAR_STEPS
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(
            target,
            starts,
            steps,
            every=CLIMB_EVERY,
            report=self._report,
            stop=self._clock.within(0.5),
        )
        self._clock.tick()
        seen = _Seen.of(modes)
        decodes = modes.decodes.clone()
        self._clock.tick()
        if seen.is_search:
            proposal = widened(seen.mixture(), target)
            missed, several = seen.lacking(proposal), len(seen.best)
            decodes += self._weigh(target, rows, proposal, several, NUM_ADAPT, missed, for_modes)
            decodes += self._at_one_mode(target, rows, modes, seen.once, for_mode)
            self._answers.looked[rows] = True  # it was climbs that found these
        poor = (self._answers.grade[rows] > 0).nonzero()[:, 0]
        if len(poor):
            some, of_poor = target.select(poor), seen.select(poor)
            gaussian, extra = self._best_gaussian(some, rows[poor], of_poor, for_fit)
            missed = of_poor.lacking(gaussian)
            num_weighed = NUM_ADAPT if seen.is_search else _NUM_DEAR
            extra += self._weigh(
                some, rows[poor], gaussian, None, num_weighed, missed, for_gaussian
            )
            decodes[poor] += extra
        return decodes

    def _best_gaussian(
        self, target: Target, rows: Tensor, seen: "_Seen", generator: Generator
    ) -> tuple[Fitted, Tensor]:
        """The best Gaussian by natural gradients from the best mode, and what it took of decodes.

        It is kept with the modes, in `found`.
        """
        dim, modes = target.latent_dim, seen.modes
        best, query = seen.best[0], torch.arange(len(rows)).to(rows)
        fit = NaturalGradient(self._effort.fit_steps(3 * 16 + dim / 4, 400))
        start = modes.z[best, query], modes.precision[best, query]
        mean, precision, steps = fit.fit(
            target, *start, generator, self._report, self._clock.within()
        )
        proposal = widened(seen.mixture((mean, precision)), target)
        self.found.put(rows, Found(proposal, seen.unseen))
        return Gaussian.from_precision(mean, precision), steps * (fit.num_draws + dim / 4)

    def look(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Climb from the prior to modes: does the answer have draws at all of them?"""
        for_starts, for_gaussian = spawn(generator, 2)
        num, every = self._effort.num_checks
        starts = spread_starts(target, num, generator=for_starts)
        modes = climb(target, starts, CHECK_STEPS, every=every, stop=self._clock.is_over)
        if self._clock.is_over():
            self._answers.finished[rows] = False
            return modes.decodes
        log_weights, climbs = modes.log_weights(modes.bulk)
        missed = lacking_modes(modes, log_weights, self._answers.draws_of(rows))
        missed = torch.maximum(missed, _overlooked(log_weights, climbs).to(missed))
        self._answers.doubt(rows, missed)
        decodes = modes.decodes + self._at_one_mode(target, rows, modes, missed, for_gaussian)
        self._answers.looked[rows] = True
        return decodes

    def _at_one_mode(
        self, target: Target, rows: Tensor, modes: Modes, missed: Tensor, generator: Generator
    ) -> Tensor:
        """Where all climbs end in one mode p(z|x) may be Gaussian, and Laplace's exact."""
        log_weights, climbs = modes.log_weights()
        alone = (climbs.amax(0) == len(climbs)).nonzero()[:, 0]
        decodes = torch.zeros_like(log_weights[0])
        if not len(alone):
            return decodes
        best = log_weights[:, alone].argmax(0)
        gaussian = Gaussian.from_precision(modes.z[best, alone], modes.precision[best, alone])
        decodes[alone] = self._weigh(
            target.select(alone),
            rows[alone],
            gaussian,
            None,
            NUM_ADAPT,
            lambda largest: missed[alone],
            generator,
        )
        return decodes


def _overlooked(log_weights: Tensor, climbs: Tensor) -> Tensor:
    """Share of p(z|x) that climbs may have overlooked, (B,), where it caught most on their way.

    Where hardly any of them got to the modes that count, there may be others that none got to. The
    share of basins that they know nothing of is about that of climbs that ended where no other did
    (Good, 1953).

    Args:
        log_weights: log of each mode's share, −inf for one found before, shape (K, B).
        climbs: That ended in it, shape (K, B).
    """
    heavy = log_weights > log_weights.amax(0) - _LIGHT
    reached = torch.where(heavy, climbs, 0.0).mean(0)
    return torch.where(reached < _FEW_REACHED, (climbs == 1).to(climbs).mean(0), 0.0)


@dataclass(eq=False)
class _Seen:
    """Modes of B queries and how much of p(z|x) they are.

    Args:
        modes: Where K climbs ended.
        log_weights: log of each mode's share, −inf for one found before, shape (K, B).
        once: Share of the climbs that ended where no other did, shape (B,).
        best: The modes to propose from, heaviest first, shape (≤ K, B).
    """

    modes: Modes
    log_weights: Tensor
    once: Tensor
    best: Tensor

    @classmethod
    def of(cls, modes: Modes) -> "_Seen":
        log_weights, climbs = modes.log_weights()
        once = (climbs == 1).to(modes.z).mean(0)
        best = log_weights.argsort(0, descending=True)[:_MOST_COMPONENTS]
        return cls(modes, log_weights, once, best)

    def select(self, index: Tensor) -> "_Seen":
        log_weights, once, best = self.log_weights[:, index], self.once[index], self.best[:, index]
        return _Seen(self.modes.select(index), log_weights, once, best)

    @property
    def is_search(self) -> bool:
        """Whether there were climbs enough to say what none of them found."""
        return len(self.modes.z) >= LEAST_CLIMBS

    @property
    def unseen(self) -> Tensor:
        """Share of p(z|x) outside of the modes that the best are bumps of, about, (B,)."""
        if not self.is_search:
            return torch.full_like(self.once, math.nan)
        _, climbs = self.modes.log_weights(self.modes.bulk)
        left_out = 1 - self._shares().exp().sum(-1)
        return (climbs == 1).to(left_out).mean(0) + left_out

    def mixture(self, first: tuple[Tensor, Tensor] | None = None) -> Fitted:
        """The best modes, and before them a Gaussian of this mean and precision, if any."""
        shares = self._shares()
        means = taken(self.modes.z, self.best).transpose(0, 1)
        precisions = taken(self.modes.precision, self.best).transpose(0, 1)
        if first is not None:
            mean, precision = first
            shares = shares.log_softmax(-1)
            shares = torch.cat([torch.zeros_like(shares[:, :1]), shares], 1)
            means = torch.cat([mean[:, None], means], 1)
            precisions = torch.cat([precision[:, None], precisions], 1)
        return Mixture.from_components(shares, means, precisions)

    def lacking(self, proposal: Fitted) -> Callable[[Tensor], Tensor]:
        """Given the largest log-weight of each query: the share of p(z|x) that a proposal lacks.

        That is of modes not found, and of those found where the proposal is too thin.
        """
        modes = self.modes
        if not self.is_search:  # one climb is no search
            return lambda largest: torch.full_like(largest, math.nan)
        weights = modes.log_joint - proposal.log_prob(modes.z)

        def share(largest: Tensor) -> Tensor:
            outside = torch.where(weights > largest + BEYOND, self.log_weights.exp(), 0.0)
            return self.once + outside.sum(0)

        return share

    def _shares(self) -> Tensor:
        """log of the shares of the best modes, (B, ≤ K)."""
        return self.log_weights.gather(0, self.best).mT.clamp_min(_LEAST_SHARE)
