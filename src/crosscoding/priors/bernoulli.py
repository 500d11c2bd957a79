"""Binary latents: independent, or with an undirected model of pairs, as in discrete VAEs.

    log p(z) = Σ_i a_i z_i + Σ_{i<j} w_ij z_i z_j − log Z,   z_i ∈ {0, 1}

Source: Rolfe (2017), eq. 6, where the pairs join two groups (a restricted Boltzmann machine).
Differs in: any pairs are allowed.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from crosscoding.covariates import Covariates
from crosscoding.priors.discrete import DiscretePrior, checked_logits
from crosscoding.priors.elimination import Eliminated, eliminate, elimination_order
from crosscoding.priors.pair_annealing import annealed
from crosscoding.random import uniform

_NUM_ANNEALED = 8192  # particles that estimate log Z where it is not exact


class Bernoulli(DiscretePrior):
    """Binary latents, which the decoder takes as zeros and ones, shape (N, D).

    log Z, its gradient and draws are exact if the pairs have a structure that allows it: latents in
    two groups with pairs only between them, where one group has at most 20; chains, trees and
    narrow grids; or at most 21 latents in all. Otherwise log Z is estimated once by annealed
    particles, its error enters every verdict, and draws are approximate.

    Args:
        logits: a, finite, shape (D,): the log-odds of each latent where there are no pairs.
        pairs: w, finite, symmetric with a zero diagonal, shape (D, D); None: independent latents.

    Raises:
        TypeError: logits or pairs is not a floating-point tensor.
        ValueError: They are not finite, do not fit each other, or pairs is not symmetric.

    Example:
        >>> pairs = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> prior = Bernoulli(torch.tensor([-1.0, -1.0]), pairs)
        >>> prior.log_prob(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).exp()
        tensor([0.3655, 0.3655])
    """

    logits: Tensor
    pairs: Tensor | None

    def __init__(self, logits: Tensor, pairs: Tensor | None = None) -> None:
        if checked_logits(logits).ndim != 1:
            raise ValueError(f"expected logits of shape (D,), got {tuple(logits.shape)}")
        super().__init__(len(logits), 2)
        self.input_shape = torch.Size([self.latent_dim])
        _keep(self, "logits", logits)
        _keep(self, "pairs", None if pairs is None else _checked_pairs(pairs, logits))
        self._kept: tuple[tuple[int, ...], Eliminated | tuple[Tensor, float]] | None = None

    def log_density(self, inputs: Tensor) -> Tensor:
        linear = inputs @ self.logits
        if self.pairs is None:
            return linear
        return linear + 0.5 * torch.linalg.vecdot(inputs @ self.pairs, inputs)

    @property
    def log_normaliser(self) -> Tensor:
        if self.pairs is None:
            return F.softplus(self.logits).sum()
        found = self._summed()
        return found.log_normaliser if isinstance(found, Eliminated) else found[0]

    @property
    def log_normaliser_error(self) -> float:
        if self.pairs is None:
            return 0.0
        found = self._summed()
        return 0.0 if isinstance(found, Eliminated) else found[1]

    @torch.no_grad()
    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        if self.pairs is None:
            chance = uniform((num, self.latent_dim), generator=generator, like=self.logits)
            return (chance < self.logits.sigmoid()).to(like)
        found = self._summed()
        if isinstance(found, Eliminated):
            return found.sample(num, generator=generator, like=self.logits).to(like)
        if num == 0:
            return like.new_zeros(0, self.latent_dim)
        return annealed(self.logits, self.pairs, num, generator=generator)[0].to(like)

    def inputs_of(self, z: Tensor) -> Tensor:
        return z

    def changes(self, z: Tensor, slope: Tensor) -> Tensor:
        return torch.stack([-z * slope, (1 - z) * slope], -1)

    def settings(self) -> dict[str, Any]:
        return {"num_places": self.latent_dim, "has_pairs": self.pairs is not None}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        prior, num = cls.__new__(cls), settings["num_places"]
        DiscretePrior.__init__(prior, num, 2)
        prior.input_shape, prior._kept = torch.Size([num]), None
        prior.register_buffer("logits", torch.empty(num, device="meta"))
        pairs = torch.empty(num, num, device="meta") if settings["has_pairs"] else None
        prior.register_buffer("pairs", pairs)
        return prior

    def extra_repr(self) -> str:
        return f"{self.latent_dim}, pairs={self.pairs is not None}"

    def _summed(self) -> Eliminated | tuple[Tensor, float]:
        """log Z and what draws need, or log Z and its error; kept until the parameters change."""
        assert self.pairs is not None
        trained = torch.is_grad_enabled() and (
            self.logits.requires_grad or self.pairs.requires_grad
        )
        version = (self.logits._version, self.pairs._version, *map(id, (self.logits, self.pairs)))
        if not trained and self._kept is not None and self._kept[0] == version:
            return self._kept[1]
        steps = elimination_order(self.pairs != 0)
        found = _estimated(self.logits, self.pairs) if steps is None else None
        if found is None:
            assert steps is not None
            found = eliminate(self.logits, self.pairs, steps)
        if not trained:
            self._kept = version, found
        return found


def _estimated(logits: Tensor, pairs: Tensor) -> tuple[Tensor, float]:
    """log Z and its standard error, always from the same random numbers."""
    if torch.is_grad_enabled() and (logits.requires_grad or pairs.requires_grad):
        raise ValueError(
            "expected pairs with an exact log Z for its gradient, such as pairs between two groups "
            "one of which has at most 20 latents; this one can only be estimated"
        )
    generator = Generator().manual_seed(0)
    log_groups = annealed(logits, pairs, _NUM_ANNEALED, generator=generator)[1]
    log_normaliser = log_groups.logsumexp(0) - torch.tensor(float(len(log_groups))).log()
    relative = (log_groups - log_normaliser).double().exp()
    error = relative.std().item() / len(log_groups) ** 0.5
    return log_normaliser, error


def _keep(prior: nn.Module, name: str, value: Tensor | None) -> None:
    """Register a value: a parameter as it is, so that it can be trained; a tensor as a buffer."""
    if isinstance(value, nn.Parameter):
        setattr(prior, name, value)
    else:
        prior.register_buffer(name, None if value is None else value.detach().clone())


def _checked_pairs(pairs: Tensor, logits: Tensor) -> Tensor:
    dim = len(logits)
    if checked_logits(pairs, "pairs").shape != (dim, dim):
        raise ValueError(f"expected pairs of shape ({dim}, {dim}), got {tuple(pairs.shape)}")
    if pairs.dtype != logits.dtype:
        raise ValueError(
            f"expected pairs in the dtype of logits, {logits.dtype}, got {pairs.dtype}"
        )
    if not torch.equal(pairs, pairs.mT):
        raise ValueError(
            "expected symmetric pairs, w_ij = w_ji, got another matrix; if it has each pair only "
            "once, pass pairs + pairs.mT"
        )
    if pairs.diagonal().any():
        raise ValueError(
            "expected pairs with a zero diagonal, got other numbers on it; add them to logits, "
            "since z² = z"
        )
    return pairs
