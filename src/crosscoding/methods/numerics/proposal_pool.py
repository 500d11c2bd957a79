"""Draws of mixtures of growing sets of components, each weighted as a draw of all mixtures.

    w(z) = p(z, x) / q̄(z),   q̄ = Σ_j n_j q_j / Σ_j n_j,   q_j = Σ_k α_jk q_k

n_j draws come from q_j. No draw is lost when a better proposal is found, and a draw that one
proposal makes too rarely gets no larger weight than the best of the others gives it. As all
proposals mix the same components, each component is evaluated once at each draw. The first of them
is the prior, or the reference of a bare density: it bounds the weights.

A proposal that was fitted to a draw makes it look likelier than it is, so log p(x) would come out
too low: by 0.3 nats in 32 dimensions. So draws form two halves with components of their own, and
those of one half are fitted to draws of the other.

Source: Veach & Guibas (1995), the balance heuristic; Cornuet et al. (2012) for proposals that were
fitted to earlier draws; Cappé et al. (2008), section 3, for fitting the shares α. Differs in: the
two halves; a part of the shares stays even.
"""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.components import Components
from crosscoding.methods.numerics.resampling import taken
from crosscoding.random import spawn, uniform
from crosscoding.target.base import Target

# Share of the draws from the prior: no weight exceeds 50 times what the prior alone would give it.
# The second is for the reference of a bare density.
_PRIOR_SHARE, _REFERENCE_SHARE = 0.02, 0.06
# Half or double of any of the next three moves log p(x) on mnist-20d by at most 0.06 nats, half as
# much as another seed. Half of _ROUNDS or double of _EVEN costs 25 % more decodes, and the others
# cost at most 8 % more.
_ROUNDS = 8  # of fitting shares
# Part of the shares that is divided evenly: draws that show a component's use may be lacking.
_EVEN = 0.1
_HEAVIEST = 512  # points to which the shares of a column are fitted


def in_halves(index: Tensor, num: int) -> Tensor:
    """The columns, in both halves, of queries with these indices among `num`."""
    return torch.cat([index, index + num])


def swapped(num: int, like: Tensor) -> Tensor:
    """The indices that exchange the halves of `num` queries."""
    return torch.arange(2 * num, device=like.device).roll(num)


def merged(tensor: Tensor) -> Tensor:
    """(n, 2B, …) -> (2n, B, …)."""
    return torch.cat(tensor.tensor_split(2, 1))


@dataclass(frozen=True, eq=False)
class ProposalPool:
    """The components and draws so far for every query of a flat target.

    Tensors have C = 2B columns: the first half of the draws of all queries, then the second.

    Args:
        target: p(z, x), of batch shape (B,).
        components: K Gaussians for each column.
        expected: Σ_j n_j α_j of the prior and of each component, shape (C, 1 + K).
        z: Draws, shape (S, C, latent).
        log_joint: log p(z, x) there, shape (S, C).
        log_kernels: log q_k there, of the prior and of each component, shape (C, 1 + K, S).
    """

    target: Target
    components: Components
    expected: Tensor
    z: Tensor
    log_joint: Tensor
    log_kernels: Tensor

    @classmethod
    def of(cls, target: Target, components: Components) -> "ProposalPool":
        """Before the first draw."""
        like, count = target.like, 2 * target.num_queries
        expected = like.new_zeros(count, 1 + components.num)
        nothing = like.new_zeros(0, count)
        kernels = like.new_zeros(count, 1 + components.num, 0)
        return cls(
            target,
            components,
            expected,
            nothing[..., None].expand(-1, -1, target.latent_dim),
            nothing,
            kernels,
        )

    def select(self, index: Tensor) -> "ProposalPool":
        """The draws for some queries."""
        twice = in_halves(index, self.target.num_queries)
        return ProposalPool(
            self.target.select(index),
            self.components.select(twice),
            self.expected[twice],
            self.z[:, twice],
            self.log_joint[:, twice],
            self.log_kernels[twice],
        )

    def grown(self, components: Components) -> "ProposalPool":
        """The same with further components."""
        together = Components.joined([self.components, components])
        unused = self.expected.new_zeros(len(self.expected), components.num)
        expected = torch.cat([self.expected, unused], 1)
        kernels = torch.cat([self.log_kernels, components.log_density(self.z)], 1)
        return replace(self, components=together, expected=expected, log_kernels=kernels)

    def drawn(self, num: int, shares: Tensor, *, generator: Generator) -> "ProposalPool":
        """The same with `num` further draws for each half, from the mixture with `shares`.

        Args:
            num: Number of draws, ≥ 1.
            shares: α of the components, (C, K), which sum to 1.
            generator: For the draws; halves have different random numbers.
        """
        least = prior_share(self.target)
        mixed = torch.cat([torch.full_like(shares[:, :1], least), (1 - least) * shares], 1)
        halves = torch.arange(len(shares), device=shares.device).tensor_split(2)
        parts = [
            self._draws(num, mixed[half], half, own)
            for half, own in zip(halves, spawn(generator, 2), strict=True)
        ]
        z = torch.cat(parts, 1)
        self.target.clock.tick()
        log_joint = self.target.log_joint(merged(z))
        log_joint = torch.cat(log_joint.tensor_split(2), 1)
        return replace(
            self,
            expected=self.expected + num * mixed,
            z=torch.cat([self.z, z]),
            log_joint=torch.cat([self.log_joint, log_joint]),
            log_kernels=torch.cat([self.log_kernels, self._log_kernels(z)], -1),
        )

    @property
    def num(self) -> int:
        """Number of draws per query, in both halves together."""
        return 2 * len(self.z)

    @property
    def log_weights(self) -> Tensor:
        """log w of the draws, shape (S, C)."""
        return self.log_joint - self._log_mixture(self.log_kernels)

    def log_weights_at(self, z: Tensor, log_joint: Tensor) -> Tensor:
        """log w as if z (N, C, latent) were draws; log p(z, x) has shape (N, C)."""
        return log_joint - self._log_mixture(self._log_kernels(z))

    def fitted_shares(self, z: Tensor, log_weights: Tensor) -> Tensor:
        """The shares α of the components, (C, K), under which weighted points are likeliest.

        Args:
            z: Points, shape (N, C, latent): not the column's own draws.
            log_weights: Their log-weights, shape (N, C).
        """
        heaviest = log_weights.mT.topk(min(_HEAVIEST, len(log_weights)), -1)
        weights = heaviest.values.softmax(-1)[..., None]
        kernels = self.components.log_density(taken(z, heaviest.indices.mT)).mT
        kernels = (kernels - kernels.amax(-1, keepdim=True)).exp()
        count = kernels.shape[-1]
        shares = kernels.new_full((len(kernels), 1, count), 1 / count)
        for _ in range(_ROUNDS):
            joint = kernels * shares
            ratio = weights / joint.sum(-1, keepdim=True)
            shares = (1 - _EVEN) * (ratio * joint).sum(1, keepdim=True) + _EVEN / count
        return shares[:, 0]

    def _draws(self, num: int, shares: Tensor, columns: Tensor, generator: Generator) -> Tensor:
        """Systematic draws of one half: each component gets its share, rounded up or down."""
        for_choice, for_prior, for_noise = spawn(generator, 3)
        order = torch.randperm(num, generator=for_choice).to(shares.device)
        levels = (order + uniform((1,), generator=for_choice, like=shares)) / num
        chosen = (levels[:, None, None] >= shares.cumsum(-1)[:, :-1]).sum(-1)
        beyond = self.target.draw_prior(num, generator=for_prior)[:, None]
        z = self.components.select(columns).draw(chosen - 1, generator=for_noise)
        return torch.where((chosen == 0)[..., None], beyond, z)

    def _log_kernels(self, z: Tensor) -> Tensor:
        """log q_k of the prior and of each component, (C, 1 + K, N)."""
        self.target.clock.tick()
        log_prior = self.target.log_prior(merged(z))
        log_prior = torch.cat(log_prior.tensor_split(2), 1).mT[:, None]
        return torch.cat([log_prior, self.components.log_density(z)], 1)

    def _log_mixture(self, log_kernels: Tensor) -> Tensor:
        """log q̄, (N, C), from kernels (C, 1 + K, N)."""
        log_shares = (self.expected / len(self.z)).log()
        return (log_kernels + log_shares[..., None]).logsumexp(1).mT


def prior_share(target: Target) -> float:
    """Share of the draws that come from the prior or, for a bare density, from the reference."""
    return _PRIOR_SHARE if target.ends_with_prior else _REFERENCE_SHARE
