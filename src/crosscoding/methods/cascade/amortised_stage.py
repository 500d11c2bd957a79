"""The stage of the cascade (`auto`) that draws from the model's amortised cross-coder.

Where its draws have even weights, more of them are drawn. Where they do not, some of them, chosen
by their weights, take the place of annealed particles: components are fitted to the scores there.
Both are weighed, checked and refitted as in `anneal`, once climbs and particles from the prior have
looked for modes they may lack (`amortised_check`). So no answer rests on what the network was
trained on, and where hardly any draw has weight, as with masks far from those of its training,
other stages answer.
"""

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.methods.cascade.amortised_check import AmortisedCheck
from crosscoding.methods.cascade.bank_points import BankPoints, BestOfBank
from crosscoding.methods.cascade.budget import (
    AMORTISED_PILOT,
    EVEN_ROUNDS,
    FEW_PARTICLES,
    FITTED_ROUNDS,
)
from crosscoding.methods.cascade.drawing import Drawing
from crosscoding.methods.cascade.drawing_rounds import DrawingRounds
from crosscoding.methods.numerics.adapted_mixture import enough_to_fit, flat_enough
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.proposal_pool import merged
from crosscoding.methods.numerics.resampling import next_temperature, systematic, taken
from crosscoding.random import spawn, uniform
from crosscoding.target.base import Target

_EVEN = 0.25  # ESS per draw, from which on the proposal needs no fit
# Weights to this power are as even as a fit needs, or the proposal is given up. On mnist-20d it is
# 0.16 to 0.7 for digits, 0.1 to 0.28 where all pixels are observed, and below 0.04 for inverted
# digits; the first draws of the fit have an ESS of 4 to 20 %, 1 to 9 % and 0.2 % (24 queries each).
_LEAST_POWER = 0.1
_LEAST_ESS = 0.03  # per draw of the fit, below which it is given up: particles do better


class AmortisedStage:
    """Draws from the amortised cross-coder, then from refits to these draws.

    Args:
        rounds: Draws and weighs.
        check: Looks for modes.
        bank_points: Say where climbs start.
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
        (for_pilot,) = spawn(generator, 1)
        search = for_particles, for_climbs
        in_bank = self._bank_points.of(target, rows, for_climbs)
        seeds = [stream.initial_seed() for stream in spawn(for_rounds, len(FITTED_ROUNDS))]
        decodes = torch.zeros_like(in_bank.log_likelihood[0])
        everything = torch.arange(len(rows), device=rows.device)
        most = AMORTISED_PILOT, *EVEN_ROUNDS
        for some in everything.split(self._rounds.num_at_once(target, most)):
            own = target.select(some), rows[some], in_bank.select(some)
            pilot = Generator().manual_seed(for_pilot.initial_seed())
            self._answer(*own, some, seeds, pilot, search, decodes)
        return decodes

    def _answer(
        self,
        target: Target,
        rows: Tensor,
        in_bank: BestOfBank,
        place: Tensor,
        seeds: list[int],
        for_pilot: Generator,
        search: tuple[Generator, Generator],
        decodes: Tensor,
    ) -> None:
        """Offer answers to some queries, whose places in `decodes` are given."""
        self._clock.tick()
        proposal = target.propose()
        finite = [tensor.flatten(1).isfinite().all(1) for tensor in proposal.params.values()]
        good = torch.stack(finite).all(0).nonzero()[:, 0]
        if not len(good):
            return
        target, place, proposal = target.select(good), place[good], proposal.select(good)
        own = target, rows[good], in_bank.select(good), proposal, self._rounds.enough
        pilot = Drawing.of_proposal(*own).drawn(AMORTISED_PILOT, generator=for_pilot)
        decodes[place] += AMORTISED_PILOT
        even = pilot.ess >= _EVEN * AMORTISED_PILOT
        fair = ~even & (_power(pilot) >= _LEAST_POWER)
        if len(some := even.nonzero()[:, 0]):
            self._run(pilot.select(some), place[some], EVEN_ROUNDS, seeds, search, decodes)
        rest, seed = fair.nonzero()[:, 0], for_pilot.initial_seed()
        blocks = rest.split(self._rounds.num_at_once(target, FITTED_ROUNDS))
        for some in blocks if len(rest) else ():
            own = pilot.select(some), place[some], seeds, Generator().manual_seed(seed)
            self._refit(*own, search, decodes)

    def _refit(
        self,
        pilot: Drawing,
        place: Tensor,
        seeds: list[int],
        for_points: Generator,
        search: tuple[Generator, Generator],
        decodes: Tensor,
    ) -> None:
        """Offer answers from proposals that are fitted to a pilot's draws."""
        fitted = _fitted_to_scores(pilot, for_points)
        fitted = fitted.drawn(FITTED_ROUNDS[0], generator=Generator().manual_seed(seeds[0]))
        decodes[place] += 3 * FEW_PARTICLES + FITTED_ROUNDS[0]
        if len(some := (fitted.ess >= _LEAST_ESS * fitted.pool.num).nonzero()[:, 0]):
            rounds = fitted.select(some), place[some], FITTED_ROUNDS[1:], seeds[1:]
            self._run(*rounds, search, decodes)

    def _run(
        self,
        drawing: Drawing,
        place: Tensor,
        rounds: tuple[int, ...],
        seeds: list[int],
        search: tuple[Generator, Generator],
        decodes: Tensor,
    ) -> None:
        """Draw, look for modes that the draws lack, then draw in rounds from refits."""
        drawing = drawing.drawn(rounds[0], generator=Generator().manual_seed(seeds[0]))
        decodes[place] += rounds[0]
        rest = rounds[1:], seeds[1 : len(rounds)]
        for own, where in self._check.searched(drawing, place, *search, decodes):
            self._rounds.go_on(own, where, *rest, decodes, least_ess=_LEAST_ESS)


def _power(pilot: Drawing) -> Tensor:
    """The power of the weights at which they are as even as a fit needs, at most 1, (B,)."""
    log_weights, dim = merged(pilot.pool.log_weights), pilot.pool.target.latent_dim
    cold = torch.zeros_like(log_weights[0])
    return next_temperature(log_weights, cold, enough_to_fit(dim, len(log_weights)))


def _fitted_to_scores(pilot: Drawing, generator: Generator) -> Drawing:
    """A drawing whose first components are fitted to the scores at some of a pilot's draws."""
    target, z = pilot.pool.target, merged(pilot.pool.z)
    flat = flat_enough(z, merged(pilot.pool.log_weights), target)
    offset = uniform((1,), generator=generator, like=target.like)
    points = taken(z, systematic(flat.log_softmax(0), offset, FEW_PARTICLES))
    particles = evaluated(target, target.log_joint, points)
    return Drawing.of(target, pilot.rows, pilot.bank, particles, pilot.lacking, pilot.enough)
