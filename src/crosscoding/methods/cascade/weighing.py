"""Answers from proposals, by weighting draws of them."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.clock import Clock
from crosscoding.crosscoders import Fitted
from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.methods.importance import weighted_findings
from crosscoding.target.base import Target

# Nats above the largest weight, beyond which a point lies outside the fit; as in `drawing`.
BEYOND = 1.0
_PIECES = 20  # in which draws are weighted if time is limited


class Weighing:
    """Weights draws of proposals, and offers the results as answers.

    Args:
        answers: Takes the offers.
        clock: When to stop.
    """

    def __init__(self, answers: BestSoFar, clock: Clock) -> None:
        self._answers = answers
        self._clock = clock

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
        """Offer answers from draws of a proposal.

        Args:
            target: The target of these queries.
            rows: Their indices.
            proposal: What to draw from.
            num_fitted: As in `importance.bound_of`.
            num: Number of draws.
            missed: Gives the share of p(z|x) that the proposal lacks, (B,), from each query's
                largest log-weight.
            generator: For the draws.
        Returns:
            Decodes per query, shape (B,).
        """
        z, log_weights = _weighted_draws(target, proposal, num, generator, self._clock)
        offer = weighted_findings(z, log_weights, proposal, num_fitted)
        offer.missed = missed(log_weights.amax(0))
        self._answers.keep(rows, offer)
        return torch.full_like(offer.ess, float(len(z)))


def _weighted_draws(
    target: Target, proposal: Fitted, num: int, generator: Generator, clock: Clock
) -> tuple[Tensor, Tensor]:
    """`num` draws and their log-weights, or as many as there is time for.

    A piece has at least one draw per dimension, as the fixed cost of a piece, in matrix products,
    is about as large as the cost of so many draws.
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
