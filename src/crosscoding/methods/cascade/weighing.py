"""From a proposal to answers: draws of it weighed by importance, as many as the error asks for."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted
from crosscoding.diagnostics import pareto_k_limit
from crosscoding.methods.cascade.best_so_far import Answers, answer_of
from crosscoding.methods.cascade.budget import NUM_WEIGHED
from crosscoding.random import spawn
from crosscoding.target.base import Target

BEYOND = 1.0  # nats above the largest weight: where a point lies outside what was fitted
_PIECES = 20  # that draws are weighed in where time is limited
_MOST_STREAMS = 6  # of further draws
_WANTED_ERROR = 0.037  # of log p(x), nats


class Weighing:
    """Weighs draws of proposals, and offers what comes of it as answers.

    Args:
        answers: To offer answers to.
        clock: When to stop.
        most_times: How many times as many draws an answer may take, where its error asks for them.
    """

    def __init__(self, answers: Answers, clock: Clock, most_times: int) -> None:
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
        """Answers from draws of a proposal, more of them where the error asks for it.

        Args:
            target: Of these queries.
            rows: Which they are.
            proposal: What to draw from.
            num_fitted: As in `importance.bound_of`.
            num: Draws at first.
            missed: The share of p(z|x) outside, (B,), given the largest log-weight of each query.
            generator: Of the draws.
        Returns:
            Decodes of each query.
        """
        z, log_weights = _weighted_draws(target, proposal, num, generator, self._clock)
        num = len(z)
        answer = answer_of(proposal, num_fitted, z, log_weights, missed(log_weights.amax(0)))
        self._answers.keep(rows, answer)
        decodes = torch.full_like(answer.error, float(num))
        times = (answer.error / _WANTED_ERROR).square().ceil().clamp(1, self._most_times)
        times = torch.where(answer.pareto_k < pareto_k_limit(num), times, 1.0)
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
                searched = missed(largest)[again]
                answer = answer_of(some, num_fitted, together, weights, searched)
                self._answers.keep(rows[again], answer)
                decodes[again] += len(extra)
        return decodes


def outside(
    proposal: Fitted, z: Tensor, log_joint: Tensor, elsewhere: Tensor
) -> Callable[[Tensor], Tensor]:
    """Given the largest log-weight of each query: the share of p(z|x) that particles see outside.

    A count of one may be luck, so one is added wherever any particle is found.

    Args:
        proposal: What was fitted to them, or to others.
        z: Particles of p(z|x), shape (S, B, latent).
        log_joint: log p(z, x) there, shape (S, B).
        elsewhere: The share that particles do not see either, shape (B,).
    """
    log_weights = log_joint - proposal.log_prob(z)

    def share(largest: Tensor) -> Tensor:
        count = (log_weights > largest + BEYOND).to(largest).sum(0)
        return (count + (count > 0)) / len(z) + elsewhere

    return share


def _weighted_draws(
    target: Target, proposal: Fitted, num: int, generator: Generator, clock: Clock
) -> tuple[Tensor, Tensor]:
    """So many draws and their log-weights, or as many as there is time for.

    What a proposal takes for any draws at all, products of matrices, is as much as for some draws a
    dimension: a piece has no fewer.
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
