"""The stage of the cascade (`auto`) that draws from the model's amortised cross-coder.

Where the weights of its draws are even, a search looks for modes that the draws lack, and rounds of
draws from refits follow, as in `anneal`. If simulated twins vouch that such draws cover p(z|x), and
log p(x) is like theirs, the points of the bank and 16 climbs search, as twins vouch only on
average. For a network that was not tested on twins, particles from the prior search too
(`amortised_check`). Where the weights are uneven, or the search finds something outside the draws,
other stages answer.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.diagnostics import log_mean_exp
from crosscoding.methods.cascade.amortised_check import AmortisedCheck
from crosscoding.methods.cascade.bank_points import BankPoints, BestOfBank
from crosscoding.methods.cascade.budget import AMORTISED_ROUNDS
from crosscoding.methods.cascade.drawing import ENOUGH, Drawing
from crosscoding.methods.cascade.drawing_rounds import DrawingRounds
from crosscoding.methods.numerics.proposal_pool import merged
from crosscoding.random import spawn
from crosscoding.result.verdict import MISSED
from crosscoding.target.base import Target

# ESS per draw below which other stages are as cheap, and after refits, below which the proposal is
# given up. On 24 rows of a table model with a briefly trained network (`amortised` in
# benchmarks/sensitivity.py), double of the first takes 2 % more decodes; half of it, and half or
# double of the second, change nothing.
EVEN, _LEAST_ESS = 0.25, 0.03


class AmortisedStage:
    """Draws from the amortised cross-coder, then from refits to these draws.

    Args:
        rounds: Draws and weighs.
        check: Looks for modes.
        bank_points: Shows where climbs may start, and what the draws may lack.
        clock: When to stop.
    """

    def __init__(
        self, rounds: DrawingRounds, check: AmortisedCheck, bank_points: BankPoints, clock: Clock
    ) -> None:
        self._rounds = rounds
        self._check = check
        self._bank_points = bank_points
        self._clock = clock

    def __call__(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Offer answers to queries that the network proposes z for; returns their decodes.

        Particles and climbs are those of `anneal`, if that gets a generator in the same state.
        """
        for_particles, for_climbs, for_rounds = spawn(generator, 3)
        seeds = [stream.initial_seed() for stream in spawn(for_rounds, len(AMORTISED_ROUNDS))]
        decodes = torch.zeros_like(target.vouched().lacking)
        known = ~target.vouched().lacking.isnan()
        for place, drawing in self._drawn(target, rows, known, seeds[0], decodes):
            self._vouched(drawing, place, seeds, for_climbs, decodes)
        for place, drawing in self._drawn(target, rows, ~known, seeds[0], decodes):
            drawing = replace(
                drawing, bank=self._bank_points.of(drawing.pool.target, drawing.rows, for_climbs)
            )
            for own, there in self._check.searched(
                drawing, place, for_particles, for_climbs, decodes
            ):
                self._go_on(own, there, seeds, decodes)
        return decodes

    def _drawn(
        self, target: Target, rows: Tensor, which: Tensor, seed: int, decodes: Tensor
    ) -> Iterator[tuple[Tensor, Drawing]]:
        """Yield the queries with even weights, in pieces: their places, and their first draws.

        The number of draws is proportional to the effective draws that the purpose needs, up to
        what a budget plans.
        """
        index, enough = which.nonzero()[:, 0], self._rounds.enough
        num = 2 * math.ceil(AMORTISED_ROUNDS[0] * min(enough / ENOUGH, 1.0) / 2)
        size = self._rounds.num_at_once(target, AMORTISED_ROUNDS)
        for some in index.split(size) if len(index) else ():
            self._clock.tick()
            own = target.select(some)
            proposal = own.propose()
            finite = [tensor.flatten(1).isfinite().all(1) for tensor in proposal.params.values()]
            if not len(good := torch.stack(finite).all(0).nonzero()[:, 0]):
                continue
            own, proposal, place = own.select(good), proposal.select(good), some[good]
            bank = BestOfBank.nothing(own)
            drawing = Drawing.of_proposal(own, rows[place], bank, proposal, enough)
            drawing = drawing.drawn(num, generator=Generator().manual_seed(seed))
            decodes[place] += num
            even = (drawing.ess >= EVEN * num).nonzero()[:, 0]
            if len(even):
                yield place[even], drawing.select(even)

    def _vouched(
        self,
        drawing: Drawing,
        place: Tensor,
        seeds: list[int],
        for_climbs: Generator,
        decodes: Tensor,
    ) -> None:
        """Offer answers that twins vouch for, unless the bank or a few climbs show a mode outside.

        Twins vouch only on average, and this mask or x may be an exception.
        """
        said = drawing.pool.target.vouched()
        alike = said.holds(log_mean_exp(merged(drawing.pool.log_weights))[0]).nonzero()[:, 0]
        if not len(alike):
            return
        drawing, place, lacking = drawing.select(alike), place[alike], said.lacking[alike]
        bank = self._bank_points.of(drawing.pool.target, drawing.rows, for_climbs)
        drawing = replace(drawing, bank=bank, lacking=lacking, is_vouched=True)
        drawing, place = self._check.climbed(drawing, place, for_climbs, decodes)
        if len(place) and len(right := (drawing.outside <= MISSED).nonzero()[:, 0]):
            self._go_on(drawing.select(right), place[right], seeds, decodes)

    def _go_on(self, drawing: Drawing, place: Tensor, seeds: list[int], decodes: Tensor) -> None:
        rest = AMORTISED_ROUNDS[1:], seeds[1:]
        self._rounds.go_on(drawing, place, *rest, decodes, least_ess=_LEAST_ESS)
