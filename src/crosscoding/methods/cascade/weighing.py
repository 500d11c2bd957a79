"""From a proposal to answers: weights draws of it, as many as the error of log p(x) needs."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted
from crosscoding.diagnostics import pareto_k_limit
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.cascade.budget import NUM_WEIGHED
from crosscoding.methods.importance import weighted_findings
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.result.purposes import draws_to_find
from crosscoding.target.base import Target

BEYOND = 1.0  # nats above the largest weight, where a point lies outside the fit
_PIECES = 20  # in which draws are weighted if time is limited
_MOST_STREAMS = 6  # of random numbers for further draws
_WANTED_ERROR = 0.037  # of log p(x), in nats: a little below what the verdict trusts


class Weighing:
    """Weights draws of proposals, and offers the results as answers.

    Args:
        answers: Takes the offers.
        clock: When to stop.
        most_times: By which factor the number of draws may grow if the error is too large.
    """

    def __init__(self, answers: BestSoFar, clock: Clock, most_times: int) -> None:
        self._answers = answers
        self._clock = clock
        self._most_times = most_times

    def __call__(
        self,
        target: Target,
        rows: Tensor,
        proposal: Fitted,
        num_fitted: int | None,
        num: int,
        missed: Callable[[Tensor], Tensor],
        generator: Generator,
    ) -> Tensor:
        """Offer answers from draws of a proposal, with more draws where the error is too large.

        Args:
            target: The target of these queries.
            rows: Their indices.
            proposal: What to draw from.
            num_fitted: As in `importance.bound_of`.
            num: Number of draws at first.
            missed: Gives the share of p(z|x) that the proposal lacks, (B,), from each query's
                largest log-weight.
            generator: For the draws.
        Returns:
            Decodes per query, shape (B,).
        """
        z, log_weights = _weighted_draws(target, proposal, num, generator, self._clock)
        num = len(z)
        offer = weighted_findings(z, log_weights, proposal, num_fitted)
        offer.missed = missed(log_weights.amax(0))
        self._answers.keep(rows, offer)
        decodes = torch.full_like(offer.ess, float(num))
        times = self._wanted(offer).ceil().clamp(1, self._most_times)
        times = torch.where(offer.figures.pareto_k < pareto_k_limit(num), times, 1.0)
        if num == NUM_WEIGHED and not self._clock.is_over():
            for_more = spawn(generator, _MOST_STREAMS)
            for total in times[times > 1].unique().tolist():
                again = (times == total).nonzero()[:, 0]
                more = int(total - 1) * num
                some = proposal.select(again)
                extra, extra_weights = _weighted_draws(
                    target.select(again), some, more, for_more[int(total) - 1], self._clock
                )
                together = torch.cat([z[:, again], extra])
                weights = torch.cat([log_weights[:, again], extra_weights])
                largest = torch.full_like(decodes, math.inf)
                largest[again] = weights.amax(0)
                offer = weighted_findings(together, weights, some, num_fitted)
                offer.missed = missed(largest)[again]
                self._answers.keep(rows[again], offer)
                decodes[again] += len(extra)
        return decodes

    def _wanted(self, offer: Findings) -> Tensor:
        """By which factor the number of draws should grow for the purpose, (B,)."""
        if self._answers.purpose == "density":
            return (offer.log_evidence_error / _WANTED_ERROR).square()
        return draws_to_find(self._answers.purpose, self._answers.num_draws) / offer.ess


def outside(
    proposal: Fitted, z: Tensor, log_joint: Tensor, elsewhere: Tensor
) -> Callable[[Tensor], Tensor]:
    """A function from each query's largest log-weight to the share of p(z|x) outside the proposal.

    A count of one may be luck, so one is added wherever any particle is found.

    Args:
        proposal: What was fitted, to these particles or to others.
        z: Particles from p(z|x), shape (S, B, latent).
        log_joint: log p(z, x) there, shape (S, B).
        elsewhere: The share that the particles themselves lack, shape (B,).
    """
    log_weights = log_joint - proposal.log_prob(z)

    def share(largest: Tensor) -> Tensor:
        count = (log_weights > largest + BEYOND).to(largest).sum(0)
        return (count + (count > 0)) / len(z) + elsewhere

    return share


def _weighted_draws(
    target: Target, proposal: Fitted, num: int, generator: Generator, clock: Clock
) -> tuple[Tensor, Tensor]:
    """`num` draws and their log-weights, or as many as there is time for.

    A piece has at least one draw per dimension, as the fixed cost of drawing at all, in matrix
    products, is about as large as that of so many draws.
    """
    if not clock.is_limited:
        z, log_q = proposal.rsample_and_log_prob(num, generator=generator)
        return z, target.log_joint(z) - log_q
    stop, draws, log_weights = clock.to_the_end(), [], []
    size = max(num // _PIECES, target.latent_dim, 2)
    for start in range(0, num, size):
        if draws and stop():
            break
        clock.tick()
        z, log_q = proposal.rsample_and_log_prob(min(size, num - start), generator=generator)
        draws.append(z)
        log_weights.append(target.log_joint(z) - log_q)
    return torch.cat(draws), torch.cat(log_weights)
