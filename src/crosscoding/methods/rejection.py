"""RS, rejection sampling from the prior: exact draws, in few dimensions.

    accept z ~ p(z) with probability p(x|z) / M,   M = sup_z p(x|z)

All queries share the proposals, so each proposal is decoded once. M is found by climbing from the
best of many prior draws. If a proposal exceeds it, M is raised and that query starts over: all
returned draws were accepted under one M that no proposal exceeded.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.errors import BudgetError, counted
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.random import spawn, uniform
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# These affect only time: if the M that they find is too low, a query starts over with a higher one.
_NUM_PROBES = 4096  # prior draws to look for the highest likelihood
_NUM_CLIMBERS = 8  # climbs, from the best of these
_CLIMB_STEPS = 100  # of Adam, whose rate falls to 0 over them
_CLIMB_RATE = 0.05  # in prior standard deviations
_MARGIN = 0.01  # nats added, as climbs end a little below the maximum: 1 % more proposals
_CHUNK = 8192  # proposals at once


@dataclass(frozen=True)
class Rejection(Method):
    """Exact, independent draws from p(z|x).

    Args:
        num_draws: Draws to accept for each query, ≥ 1.
        max_proposals: Most proposals; all queries share them.

    Raises (from `find`):
        BudgetError: max_proposals did not suffice for some query; the message says how far it got.
    """

    num_draws: int = 1000
    max_proposals: int = 4_000_000

    def __post_init__(self) -> None:
        if self.num_draws < 1 or self.max_proposals < 1:
            raise ValueError(
                "expected num_draws >= 1 and max_proposals >= 1, got "
                f"{self.num_draws} and {self.max_proposals}"
            )

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_bound, for_proposals = spawn(generator, 2)
        target = covered(target, generator)
        log_bound = _log_supremum(target, generator=for_bound)
        with torch.no_grad():
            return self._accept(target, log_bound, generator=for_proposals, report=report)

    def _accept(
        self, target: Target, log_bound: Tensor, *, generator: Generator, report: Report
    ) -> Findings:
        accepted = _Accepted(target, self.num_draws)
        spent = 0
        while accepted.wanting.any():
            num = min(_CHUNK, self.max_proposals - spent)
            if num == 0:
                self._give_up(accepted.count, spent)
            z = target.draw_prior(num, generator=generator)
            log_u = uniform((num, 1), generator=generator, like=z).log()
            log_bound = accepted.add(z, target.pairwise_log_likelihood(z), log_u, log_bound)
            spent += num
            share = accepted.count.to(torch.float32).mean().item() / self.num_draws
            report(share, counted(spent, "proposal"))
        return accepted.findings()

    def _give_up(self, count: Tensor, spent: int) -> None:
        short = count < self.num_draws
        accepted, asked = counted(self.num_draws, "draw"), counted(len(count), "query", "queries")
        raise BudgetError(
            f"rejection accepted {accepted} for {int((~short).sum())} of {asked} from "
            f"{counted(spent, 'proposal')}, and as few as {int(count.min())} for the others; "
            "raise max_proposals, ask for fewer draws, or use another method: the acceptance rate "
            "falls quickly with the latent dimension and with the amount of evidence"
        )


class _Accepted:
    """The draws accepted for each query so far, and sums over all of its proposals."""

    def __init__(self, target: Target, num_draws: int) -> None:
        like, num_queries = target.like, target.num_queries
        self.draws = like.new_zeros(num_draws, num_queries, target.latent_dim)
        self.count = torch.zeros(num_queries, dtype=torch.long, device=like.device)
        self.proposals = torch.zeros_like(self.count)
        self._seen = torch.zeros_like(self.count)
        self._log_sum = like.new_full((num_queries,), -math.inf)
        self._log_sum_squares = like.new_full((num_queries,), -math.inf)

    @property
    def wanting(self) -> Tensor:
        """Which queries need more draws, boolean (B,)."""
        return self.count < len(self.draws)

    def add(self, z: Tensor, log_likelihood: Tensor, log_u: Tensor, log_bound: Tensor) -> Tensor:
        """Accept or reject proposals for every query; returns the bounds, raised where exceeded.

        Args:
            z: Proposals, shape (N, latent).
            log_likelihood: log p(x|z), shape (N, B).
            log_u: Logarithms of uniform numbers, shape (N, 1).
            log_bound: log M, shape (B,).
        """
        wanting = self.wanting
        raised = wanting & (log_likelihood.amax(0) > log_bound)
        log_bound = torch.where(raised, log_likelihood.amax(0), log_bound)
        self.count = torch.where(raised, 0, self.count)
        self.proposals = torch.where(raised, 0, self.proposals)
        accepted = (log_u < log_likelihood - log_bound) & wanting & ~raised
        rank = accepted.cumsum(0) - 1 + self.count
        kept = accepted & (rank < len(self.draws))
        row, query = kept.nonzero(as_tuple=True)
        self.draws[rank[row, query], query] = z[row]
        last = (accepted & (rank == len(self.draws) - 1)).long()
        needed = torch.where(last.any(0), last.argmax(0) + 1, len(z))
        self.proposals += torch.where(wanting & ~raised, needed, 0)
        self.count = self.count + kept.sum(0)
        self._sum(log_likelihood, wanting)
        return log_bound

    def _sum(self, log_likelihood: Tensor, wanting: Tensor) -> None:
        total = torch.logaddexp(self._log_sum, log_likelihood.logsumexp(0))
        squares = torch.logaddexp(self._log_sum_squares, (2 * log_likelihood).logsumexp(0))
        self._log_sum = torch.where(wanting, total, self._log_sum)
        self._log_sum_squares = torch.where(wanting, squares, self._log_sum_squares)
        self._seen += torch.where(wanting, len(log_likelihood), 0)

    def findings(self) -> Findings:
        seen = self._seen.to(self._log_sum.dtype)
        relative_square = (self._log_sum_squares - 2 * self._log_sum).exp() * seen
        nothing = torch.full_like(self._log_sum, math.nan)
        return Findings(
            draws=self.draws,
            log_evidence=self._log_sum - seen.log(),
            log_evidence_error=((relative_square - 1).clamp_min(0) / seen).sqrt(),
            c_elbo=nothing,
            c_elbo_error=nothing,
            ess=torch.full_like(seen, len(self.draws)),
            missed=torch.zeros_like(seen),  # proposals come from all of the prior
            stats={
                "proposals": self.proposals.to(seen.dtype),
                "acceptance": len(self.draws) / self.proposals.to(seen.dtype),
            },
        )


def _log_supremum(target: Target, *, generator: Generator) -> Tensor:
    """log sup_z p(x|z) of each query in nats, (B,): the highest that Adam reaches from 8 starts."""
    if target.num_queries == 0:
        return target.like.new_zeros(0)
    probes = target.draw_prior(_NUM_PROBES, generator=generator)
    with torch.no_grad():
        log_likelihood = target.pairwise_log_likelihood(probes)
    best, index = log_likelihood.topk(_NUM_CLIMBERS, dim=0)
    z, highest = probes[index], best[0]
    momentum, squares = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(1, _CLIMB_STEPS + 1):
        z = z.requires_grad_()
        value = target.log_likelihood(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        highest = torch.maximum(highest, value.detach().amax(0))
        momentum.lerp_(gradient, 0.1)
        squares.lerp_(gradient.square(), 0.01)
        rate = _CLIMB_RATE * (1 - step / (_CLIMB_STEPS + 1))
        unbiased = momentum / (1 - 0.9**step)
        z = z.detach() + rate * unbiased / ((squares / (1 - 0.99**step)).sqrt() + 1e-8)
    return highest + _MARGIN
