"""The stage of the cascade (`auto`) for evidence that is narrow in a few of many directions.

Columns of a table with small standard deviations make p(z|x) narrow in a few directions and leave
the others to the prior. The narrow directions change from point to point, so no Gaussian or mixture
fits p(z|x), and particles need hundreds of temperatures. Each draw from `partial_laplace` finds
where p(z|x) is narrow anew.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.diagnostics import log_mean_exp
from crosscoding.methods.base import Report
from crosscoding.methods.cascade.bank_points import BankPoints, BestOfBank
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.budget import CHECK_STEPS, LEAST_CLIMBS
from crosscoding.methods.cascade.weighing import BEYOND
from crosscoding.methods.importance import weighted_findings
from crosscoding.methods.numerics.gauss_newton import Modes, climb
from crosscoding.methods.numerics.partial_laplace import (
    MOST_NARROW,
    Directions,
    Draws,
    PartialLaplace,
    num_narrow,
)
from crosscoding.methods.numerics.resampling import systematic, taken
from crosscoding.random import spawn, uniform
from crosscoding.result.verdict import MISSED
from crosscoding.target.base import Target

# Least latent dimension for this stage: at most an eighth of the directions are narrow, here four.
NARROW_DIM = 32
# Steps of climbs per curvature. On three queries of `tvae` in benchmarks/sensitivity.py, 6 leave
# one of them untrusted after twice the decodes, and 2 change log p(x) by 0.03 nats.
_EVERY = 3
# Points whose curvature gives the directions, and how often these are found. More points average
# over more of p(z|x), but each costs as many decodes as z has dimensions.
_NUM_POINTS, _TIMES = 16, 2
# Draws that the proposal is fitted to, and those that count: where pilots counted too, log p(x) was
# 0.15 nats too low (decision 0012).
# Half or double moves log p(x) by at most 0.08 nats on three queries of `tvae` in
# benchmarks/sensitivity.py, half as much as another seed.
_PILOTS = (256, 256)
_ROUNDS = (500, 1000, 1500, 2000, 2500)  # with half or double, log p(x) moves by 0.05 nats there
# Climbs in each plane; more where one climb misses solutions: with one alone, log p(x) of a
# parabola with two solutions was 0.26 nats too low (decision 0012).
_NUM_STARTS = (1, 4)
_HOPELESS = 0.05  # ESS per draw: all rounds together would have 375, and the verdict wants 600
# Points at which the proposal is checked. Half or double of them changes no answer on `tvae`.
_NUM_BESIDE, _NUM_OF_BANK = 64, 32
_NUM_CHECKED = LEAST_CLIMBS + _NUM_OF_BANK + 2 * _NUM_BESIDE  # draws that cost as much as the check
_BYTES = 32 * 2**20  # of a round's draws of queries worked on together


class NarrowStage:
    """Answers queries whose evidence is narrow in few directions.

    Args:
        answers: Takes the offers.
        clock: When to stop.
        report: Receives progress.
        bank_points: Where to climb from.
        left: Gives the decodes that queries may still take.
    """

    def __init__(
        self,
        answers: BestSoFar,
        clock: Clock,
        report: Report,
        bank_points: BankPoints,
        left: Callable[[Tensor], Tensor],
    ) -> None:
        self._answers = answers
        self._clock = clock
        self._report = report
        self._bank_points = bank_points
        self._left = left

    def __call__(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Answer queries whose evidence is narrow in few directions at the bank's best point."""
        for_starts, for_answers = spawn(generator, 2)
        in_bank = self._bank_points.of(target, rows, for_starts)
        num = num_narrow(target.curvature(in_bank.starts[:1]))
        decodes = torch.full_like(self._answers.ess[rows], float(target.latent_dim))
        some = ((num > 0) & (num <= MOST_NARROW * target.latent_dim)).nonzero()[:, 0]
        bytes_of_one = max(_ROUNDS) * 4 * target.latent_dim * target.like.element_size()
        seed = for_answers.initial_seed()
        blocks = some.split(max(self._clock.piece_bytes(_BYTES) // bytes_of_one, 1))
        for block in blocks if len(some) else ():
            own = target.select(block), rows[block], in_bank.select(block)
            decodes[block] += self._answer(*own, Generator().manual_seed(seed))
        return decodes

    def _answer(
        self, target: Target, rows: Tensor, in_bank: BestOfBank, generator: Generator
    ) -> Tensor:
        """Offer answers for some queries; returns their decodes."""
        for_fit, *streams = spawn(generator, 3)
        self._report(0.0, "directions of narrow evidence")
        modes = climb(
            target, in_bank.starts, CHECK_STEPS, every=_EVERY, stop=self._clock.within(0.3)
        )
        proposal, decodes, each = _fitted(target, modes, for_fit)
        decodes += modes.decodes
        left = torch.arange(len(rows), device=rows.device)
        for num_starts, stream in zip(_NUM_STARTS, streams, strict=True):
            cost = (_ROUNDS[0] + _NUM_CHECKED) * num_starts * each[left]
            left = left[self._can_afford(rows[left], decodes[left] + cost)]
            if not len(left):
                break
            own = replace(proposal.select(left), num_starts=num_starts)
            known = modes.select(left), in_bank.select(left)
            decodes[left], missed = self._drawn(own, rows[left], *known, decodes[left], stream)
            left = left[missed > MISSED]
        return decodes

    def _can_afford(self, rows: Tensor, decodes: Tensor) -> Tensor:
        """Which queries may take so many decodes, boolean; marks others as not finished."""
        affordable = decodes <= self._left(rows)
        self._answers.finished[rows[~affordable]] = False
        return affordable

    def _drawn(
        self,
        proposal: PartialLaplace,
        rows: Tensor,
        modes: Modes,
        in_bank: BestOfBank,
        decodes: Tensor,
        generator: Generator,
    ) -> tuple[Tensor, Tensor]:
        """Offer answers from rounds of draws.

        Returns the decodes, including earlier ones, and the shares of p(z|x) outside, all (B,).
        """
        for_draws, for_check = spawn(generator, 2)
        draws = proposal.draw(_ROUNDS[0], generator=for_draws)
        missed = _outside(proposal, draws, modes, in_bank, for_check)
        checks = (_NUM_CHECKED * draws.decodes / _ROUNDS[0]).round()
        decodes = decodes + draws.decodes + checks
        left = torch.arange(len(rows), device=rows.device)
        for num in (*_ROUNDS[1:], 0):
            offer = weighted_findings(draws.z, draws.log_weights, None)
            offer.missed = missed[left]
            self._answers.keep(rows[left], offer, searched=True)
            going = (self._answers.grade[rows[left]] > 0) & (offer.missed <= MISSED)
            going = (going & (offer.ess > _HOPELESS * len(draws.z))).nonzero()[:, 0]
            cost = num * draws.decodes[going] / len(draws.z)
            going = going[self._can_afford(rows[left[going]], decodes[left[going]] + cost)]
            if not len(going) or not num:
                break
            left, proposal = left[going], proposal.select(going)
            self._report(len(draws.z) / sum(_ROUNDS), "draws along narrow directions")
            more = proposal.draw(num, generator=for_draws)
            decodes[left] += more.decodes
            draws = draws.select(going).and_more(more)
        return decodes, missed


def _fitted(
    target: Target, modes: Modes, generator: Generator
) -> tuple[PartialLaplace, Tensor, Tensor]:
    """A proposal for each query, the decodes that it took, and those that a draw takes."""
    best = modes.log_joint.argmax(0)[None]
    directions = Directions.of(taken(modes.precision, best), target.like)
    decodes = torch.zeros_like(modes.decodes)
    for _ in range(_TIMES):
        points = PartialLaplace.from_prior(target, directions).draw(
            _NUM_POINTS, generator=generator
        )
        directions = Directions.of(target.curvature(points.z), target.like)
        decodes += points.decodes + _NUM_POINTS * target.latent_dim
    proposal = PartialLaplace.from_prior(target, directions)
    pilot = proposal.draw(_PILOTS[0], generator=generator)
    for num in _PILOTS[1:]:
        pilot = pilot.and_more(proposal.fitted_to(pilot).draw(num, generator=generator))
    return proposal.fitted_to(pilot), decodes + pilot.decodes, pilot.decodes / len(pilot.z)


def _outside(
    proposal: PartialLaplace,
    draws: Draws,
    modes: Modes,
    in_bank: BestOfBank,
    generator: Generator,
) -> Tensor:
    """Share of p(z|x) outside the proposal, as far as is known, (B,).

    Modes that climbs found, the bank's best points, and ends of other climbs in the planes of draws
    may show it, each by itself.
    """
    limit = draws.log_weights.amax(0) + BEYOND
    offset = uniform(limit.shape, generator=generator, like=limit)
    chosen = taken(draws.z, systematic(draws.log_weights, offset, _NUM_BESIDE))
    beside = proposal.beside(chosen, generator=generator)
    of_bank = in_bank.z[:_NUM_OF_BANK]
    points = torch.cat([modes.z, of_bank, beside])
    outside = proposal.log_weights_at(points, generator=generator) > limit
    at_modes, at_bank, at_others = outside.split([len(modes.z), len(of_bank), _NUM_BESIDE])
    log_shares, _ = modes.log_weights(modes.bulk)
    of_modes = torch.where(at_modes, log_shares.exp(), 0.0).sum(0)
    in_points = in_bank.log_likelihood[:_NUM_OF_BANK] - in_bank.log_size
    in_points = (in_points - log_mean_exp(draws.log_weights)[0]).exp()
    of_points = torch.where(at_bank, in_points, 0.0).sum(0)
    count = at_others.sum(0)
    of_others = (count + (count > 0)) / _NUM_BESIDE  # one may be luck
    return torch.stack([of_modes.to(limit), of_points, of_others.to(limit)]).amax(0)
