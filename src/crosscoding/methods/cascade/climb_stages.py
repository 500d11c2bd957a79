"""The stages of the cascade (`auto`) that climb to modes.

They do so where p(z|x) is too narrow to anneal to, and to look for modes that the particles of
other stages may have lost. Like all `stages`, they offer what they find, and return each query's
decodes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted, Gaussian, Mixture
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.bank_points import BankPoints
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.budget import (
    CHECK_STEPS,
    CLIMB_EVERY,
    CLIMB_STEPS,
    LEAST_CLIMBS,
    NUM_AT_ONE_MODE,
    NUM_WEIGHED,
    SINGLE_CLIMB_STEPS,
    Budget,
)
from crosscoding.methods.cascade.handover import HandedOn
from crosscoding.methods.cascade.modes_found import ModesFound, few_suffice
from crosscoding.methods.cascade.weighing import BEYOND, Weighing
from crosscoding.methods.laplace import spread_starts
from crosscoding.methods.natural_gradient import NaturalGradient
from crosscoding.methods.numerics.adapted_mixture import widened
from crosscoding.methods.numerics.gauss_newton import Modes, climb
from crosscoding.methods.numerics.resampling import taken
from crosscoding.random import spawn
from crosscoding.target.base import Target

# Draws if only one climb is affordable. If one is all that is allowed on `far` in
# benchmarks/sensitivity.py, a swarm answers, and half or double of them changes nothing.
_NUM_FOR_SINGLE_CLIMB = 500
# Modes in the proposal: more cover more, but all are evaluated at each draw. On `far` in
# benchmarks/sensitivity.py, half or double moves log p(x) by 4e-6 nats.
_MOST_COMPONENTS = 8
_LEAST_SHARE = -50.0  # log of the share of a component: e⁻⁵⁰ is never drawn, and has a logarithm


@dataclass(eq=False)
class Found:
    """What climbs found for B queries.

    Args:
        proposal: A mixture of all modes found.
        unseen: Estimated share of p(z|x) in modes that were not found, shape (B,); NaN where there
            were too few climbs to tell.
    """

    proposal: Fitted
    unseen: Tensor

    def select(self, index: Tensor) -> "Found":
        """What was found for some queries."""
        return Found(self.proposal.select(index), self.unseen[index])

    @staticmethod
    def joined(parts: "Sequence[Found]") -> "Found":
        """What was found for several blocks of queries, one after the other."""
        proposal = Fitted.joined([part.proposal for part in parts])
        return Found(proposal, torch.cat([part.unseen for part in parts]))


class ClimbStages:
    """The stages that climb, and what they found.

    Args:
        answers: Takes the offers.
        budget: How much each stage may do.
        clock: When to stop.
        report: Receives progress.
        weigh: Offers answers from proposals.
        bank_points: Says where to start.

    Attributes:
        found: What climbs found, for the queries that they did not settle.
        modes: What second looks found.
    """

    def __init__(
        self,
        answers: BestSoFar,
        budget: Budget,
        clock: Clock,
        report: Report,
        weigh: Weighing,
        bank_points: BankPoints,
    ) -> None:
        self._answers = answers
        self._budget = budget
        self._clock = clock
        self._report = report
        self._weigh = weigh
        self._bank_points = bank_points
        self.found: HandedOn[Found] = HandedOn(answers.ess)
        self.modes: HandedOn[ModesFound] = HandedOn(answers.ess)
        self._begun: HandedOn[Modes] = HandedOn(answers.ess)  # where the first climbs ended
        self._searched = torch.zeros_like(answers.looked)  # by all climbs that are affordable

    def climb(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Climb to modes; propose from the Laplace mixture and, if poor, from the best Gaussian."""
        for_starts, for_modes, for_mode, for_fit, for_gaussian = spawn(generator, 5)
        num = self._budget.num_climbs
        steps = CLIMB_STEPS if num >= LEAST_CLIMBS else SINGLE_CLIMB_STEPS
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
            decodes += self._weigh(target, rows, proposal, several, NUM_WEIGHED, missed, for_modes)
            decodes += self._at_one_mode(target, rows, modes, seen.once, for_mode)
            self._answers.looked[rows] = True  # these answers come from climbs
        poor = (self._answers.grade[rows] > 0).nonzero()[:, 0]
        if len(poor):
            some, of_poor = target.select(poor), seen.select(poor)
            gaussian, extra = self._best_gaussian(some, rows[poor], of_poor, for_fit)
            missed = of_poor.lacking(gaussian)
            num_weighed = NUM_WEIGHED if seen.is_search else _NUM_FOR_SINGLE_CLIMB
            extra += self._weigh(
                some, rows[poor], gaussian, None, num_weighed, missed, for_gaussian
            )
            decodes[poor] += extra
        return decodes

    def _best_gaussian(
        self, target: Target, rows: Tensor, seen: "_Seen", generator: Generator
    ) -> tuple[Fitted, Tensor]:
        """The best Gaussian, by natural gradients from the best mode, and the decodes it took.

        A mixture of it and the modes is kept in `found`.
        """
        dim, modes = target.latent_dim, seen.modes
        best, query = seen.best[0], torch.arange(len(rows)).to(rows)
        fit = NaturalGradient(self._budget.fit_steps(3 * 16 + dim / 4, 400))
        start = modes.z[best, query], modes.precision[best, query]
        mean, precision, steps = fit.fit(
            target, *start, generator, self._report, self._clock.within()
        )
        proposal = widened(seen.mixture((mean, precision)), target)
        self.found.put(rows, Found(proposal, seen.unseen))
        return Gaussian.from_precision(mean, precision), steps * (fit.num_draws + dim / 4)

    def look(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Check that answers have draws at all modes that climbs from the prior find."""
        decodes = torch.zeros_like(self._answers.error[rows])
        if len(new := (~self.modes.has(rows)).nonzero()[:, 0]):
            decodes[new] = self.seek(target.select(new), rows[new], generator)
        if len(known := self.modes.has(rows).nonzero()[:, 0]):
            there = rows[known]
            missed = self.modes.of(there).missing_from(self._answers.draws_of(there))
            self._answers.doubt(there, missed)
            self._answers.looked[there] = True
        return decodes

    def search(
        self, target: Target, rows: Tensor, generator: Generator, *, answers: bool = True
    ) -> Tensor:
        """Climb 16 times from the prior; keep the modes if most climbs reach modes that count.

        If all climbs end in one mode, its Gaussian may be enough: with `answers`, answers from its
        draws are offered.
        """
        decodes = torch.zeros_like(self._answers.error[rows])
        if len(new := (~self._begun.has(rows) & ~self._searched[rows]).nonzero()[:, 0]):
            decodes[new] = self._seek(
                target.select(new), rows[new], generator, few=True, answers=answers
            )
        return decodes

    def seek(
        self, target: Target, rows: Tensor, generator: Generator, *, answers: bool = True
    ) -> Tensor:
        """Climb from the prior as often as is affordable, if not done before; keep the modes.

        `answers` is as in `search`.
        """
        decodes = torch.zeros_like(self._answers.error[rows])
        new, begun = ~self._searched[rows], self._begun.has(rows)
        for some in (new & begun, new & ~begun):
            if len(index := some.nonzero()[:, 0]):
                decodes[index] = self._seek(
                    target.select(index), rows[index], generator, answers=answers
                )
        return decodes

    def _seek(
        self,
        target: Target,
        rows: Tensor,
        generator: Generator,
        *,
        few: bool = False,
        answers: bool = True,
    ) -> Tensor:
        """`search` or `seek`, for queries that have all had their first climbs, or none of them."""
        for_starts, for_gaussian = spawn(generator, 2)
        num, every = self._budget.num_checks
        few, begun = few and num > LEAST_CLIMBS, bool(self._begun.has(rows).any())
        if few:
            starts = self._bank_points.of(target, rows, for_starts).starts
        else:
            starts = spread_starts(target, num - begun * LEAST_CLIMBS, generator=for_starts)
        modes = climb(target, starts, CHECK_STEPS, every=every, stop=self._clock.is_over)
        decodes = modes.decodes.clone()
        if self._clock.is_over():
            self._answers.finished[rows] = False
            return decodes
        if few:
            self._begun.put(rows, modes)
            sure = few_suffice(modes)
        else:
            if begun:
                modes = self._begun.of(rows).and_more(modes)
            self._searched[rows] = True
            sure = torch.ones_like(rows, dtype=torch.bool)
        if not len(some := sure.nonzero()[:, 0]):
            return decodes
        chosen, rows, modes = target.select(some), rows[some], modes.select(some)
        found = ModesFound.of(modes)
        self.modes.put(rows, found)
        if answers:
            decodes[some] += self._at_one_mode(chosen, rows, modes, found.overlooked, for_gaussian)
        return decodes

    def _at_one_mode(
        self, target: Target, rows: Tensor, modes: Modes, missed: Tensor, generator: Generator
    ) -> Tensor:
        """Where all climbs end in one mode, try Laplace's Gaussian, as it may be exact."""
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
            NUM_AT_ONE_MODE,
            lambda largest: missed[alone],
            generator,
        )
        return decodes


@dataclass(eq=False)
class _Seen:
    """Modes of B queries, and their shares of p(z|x).

    Args:
        modes: Where K climbs ended.
        log_weights: log of each mode's share, −inf for a mode found before, shape (K, B).
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
        """Whether there were enough climbs to estimate what none of them found."""
        return len(self.modes.z) >= LEAST_CLIMBS

    @property
    def unseen(self) -> Tensor:
        """Approximate share of p(z|x) outside the best modes and the bulk around them, (B,)."""
        if not self.is_search:
            return torch.full_like(self.once, math.nan)
        _, climbs = self.modes.log_weights(self.modes.bulk)
        left_out = 1 - self._shares().exp().sum(-1)
        return (climbs == 1).to(left_out).mean(0) + left_out

    def mixture(self, first: tuple[Tensor, Tensor] | None = None) -> Fitted:
        """A mixture of the best modes, after the Gaussian `first` (mean, precision), if any."""
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
        """A function from each query's largest log-weight to the share that a proposal lacks.

        It counts modes that were not found, and found ones where the proposal is too thin.
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
        """Logs of the shares of the best modes, (B, ≤ K)."""
        return self.log_weights.gather(0, self.best).mT.clamp_min(_LEAST_SHARE)
