"""The stage of the cascade (`auto`) that draws from the model's amortised cross-coder.

Its draws are weighed, checked and refitted like those of `anneal`, with climbs from the prior that
look for modes it may lack. So it is never trusted for what it was trained on, and where its weights
do not hold, as with masks far from those of its training, other stages answer.
"""

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.methods.cascade.bank_points import BankPoints
from crosscoding.methods.cascade.budget import AMORTISED_ROUNDS
from crosscoding.methods.cascade.drawing import Drawing
from crosscoding.methods.cascade.drawing_rounds import DrawingRounds
from crosscoding.random import spawn
from crosscoding.target.base import Target

_LEAST = 3.0  # effective draws of the first round, below which the proposal is given up


class AmortisedStage:
    """Draws from the amortised cross-coder, then from refits to these draws.

    Args:
        rounds: Draws, weighs, and looks for modes.
        bank_points: Say where climbs start.
        clock: When to stop.
    """

    def __init__(self, rounds: DrawingRounds, bank_points: BankPoints, clock: Clock) -> None:
        self._rounds = rounds
        self._bank_points = bank_points
        self._clock = clock

    def __call__(self, target: Target, rows: Tensor, generator: Generator) -> Tensor:
        """Offer answers to queries that the network proposes z for; returns their decodes."""
        for_bank, for_climbs, for_rounds = spawn(generator, 3)
        in_bank = self._bank_points.of(target, rows, for_bank)
        seeds = [stream.initial_seed() for stream in spawn(for_rounds, len(AMORTISED_ROUNDS))]
        decodes = torch.zeros_like(in_bank.log_likelihood[0])
        everything = torch.arange(len(rows), device=rows.device)
        for some in everything.split(self._rounds.num_at_once(target, AMORTISED_ROUNDS)):
            self._clock.tick()
            chosen = target.select(some)
            proposal = chosen.propose()
            finite = torch.stack([t.flatten(1).isfinite().all(1) for t in proposal.params.values()])
            good = finite.all(0).nonzero()[:, 0]
            if not len(good):
                continue
            chosen, some, proposal = chosen.select(good), some[good], proposal.select(good)
            own = rows[some], in_bank.select(some)
            drawing = Drawing.of_proposal(chosen, *own, proposal, self._rounds.enough)
            climbs = Generator().manual_seed(for_climbs.initial_seed())
            run = drawing, some, AMORTISED_ROUNDS, seeds, climbs, decodes
            self._rounds.run(*run, least=_LEAST, at_one_mode=False)
        return decodes
