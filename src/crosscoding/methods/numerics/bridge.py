"""`Bridge`: a target relative to a proposal q instead of the prior, for particles to anneal along.

    q(z) (p(z, x) / q(z))^t,   0 ≤ t ≤ 1

A narrow p(z|x) is a few temperatures away from the modes that climbs found, and dozens from the
prior. q is normalised, so particles still estimate log p(x). They do not find modes that q does not
reach.
"""

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.target.base import Target


class Bridge(Target):
    """A flat target with a proposal as its prior, and draws of the proposal as its bank.

    Args:
        target: p(z, x), of batch shape (B,).
        proposal: q for each of its queries, with a density.
        num: Number of draws in the bank, ≥ 1.
        generator: For the draws.
    """

    def __init__(self, target: Target, proposal: Fitted, num: int, *, generator: Generator) -> None:
        self.target, self.proposal = target, proposal
        self.latent_dim, self.batch_shape = target.latent_dim, target.batch_shape
        self.prior_scale, self.like, self.index = target.prior_scale, target.like, target.index
        self.ends_with_prior, self.clock = target.ends_with_prior, target.clock
        self._draws, log_q = proposal.rsample_and_log_prob(num, generator=generator)
        self._log_weights = target.log_joint(self._draws) - log_q

    def log_prior(self, z: Tensor) -> Tensor:
        return self.proposal.log_prob(z)

    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self.target.log_joint(z, checked=checked) - self.proposal.log_prob(z)

    def log_joint(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self.target.log_joint(z, checked=checked)

    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        """Draws from each query's proposal, (N, B, latent), and log p(z, x) − log q there."""
        return self._draws, self._log_weights

    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        return self.log_likelihood(z[:, None].expand(-1, self.num_queries, -1))

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self.select(query).log_likelihood(z[None])[0]

    def explain(self, query: int | Tensor, z: Tensor) -> str:
        return self.target.explain(query, z)

    def curvature(self, z: Tensor) -> Tensor:
        return self.target.curvature(z)

    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        return self.target.curvature_along(z, directions)

    def flatten(self) -> "Bridge":
        return self

    def select(self, index: Tensor) -> "Bridge":
        chosen = object.__new__(Bridge)
        vars(chosen).update(vars(self))
        chosen.target, chosen.proposal = self.target.select(index), self.proposal.select(index)
        chosen._draws, chosen._log_weights = self._draws[:, index], self._log_weights[:, index]
        chosen.batch_shape, chosen.index = chosen.target.batch_shape, chosen.target.index
        return chosen

    def coarse(self) -> "Bridge":
        if (coarse := self.target.coarse()) is self.target:
            return self
        chosen = self.select(torch.arange(self.num_queries, device=self.like.device))
        chosen.target = coarse
        return chosen

    @property
    def operations(self) -> float:
        return self.target.operations
