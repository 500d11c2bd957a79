"""The contract of a target p(z, x), on which every method works.

    log p(z, x) = log p(z) + log p(x|z),   p(z|x) = p(z, x) / p(x)                            (3)

Shapes are (*sample, *batch, latent) for z and (*sample, *batch) for log-probabilities in nats. Each
entry of the batch is a query with evidence of its own.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from crosscoding.clock import UNLIMITED, Clock
from crosscoding.isolation import isolated
from crosscoding.model.bank import MAX_POINTS
from crosscoding.random import normal

REACH = 5.0  # prior standard deviations from 0 that hardly any prior draw is beyond


class Target(ABC):
    """An unnormalised density of z for each query of a batch, split into prior and likelihood.

    Attributes:
        latent_dim: Size of z.
        batch_shape: Shape of the batch of queries.
        prior_scale: Standard deviation of the prior N(0, prior_scale² I) that log_likelihood is
            relative to.
        like: An empty tensor of the dtype and on the device of everything here.
        index: Which queries of the whole batch these are, shape (B,); None: all of them.
        ends_with_prior: Whether far out p(z, x) falls off as the prior does; where that is not
            known, tails have to be looked at.
        undefined: For which queries of the whole batch log p(x|z) was NaN somewhere far out, and
            taken for −inf, boolean; None: not known.
        clock: Told before every piece of work.
        bank_points: Most points that the bank has.
    """

    latent_dim: int
    batch_shape: torch.Size
    prior_scale: float = 1.0
    like: Tensor
    index: Tensor | None = None
    ends_with_prior: bool = False
    undefined: Tensor | None = None
    clock: Clock = UNLIMITED
    bank_points: int = MAX_POINTS

    def name(self, query: int | Tensor) -> int:
        """Which query of the whole batch this is, for messages."""
        return int(query if self.index is None else self.index[query])

    @abstractmethod
    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        """log p(x|z) in nats, shape (*sample, *batch).

        Raises:
            NonFiniteError: It is NaN somewhere that prior draws are; not raised if not checked.
        """

    @abstractmethod
    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z) of every query at points that all share: z (N, latent) -> (N, *batch)."""

    @abstractmethod
    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        """Spread-out points of the prior, (N, latent), and log p(x|z) there, (N, *batch)."""

    @abstractmethod
    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        """log p(x|z) of query[i] at z[i], in nats: z (N, latent), query (N,) -> (N,)."""

    @abstractmethod
    def curvature(self, z: Tensor) -> Tensor:
        """How log p(z, x) bends at z (*sample, B, latent) of a flat target: about −∇², symmetric.

        A VAE's is I + Jᵀ F J, J the Jacobian of the decoder's output for the observed elements and
        F their Fisher information: positive definite, and −∇² itself where the decoder is linear
        (Gauss–Newton).

        Returns:
            Shape (*sample, B, latent, latent), in double precision whatever the model's: added up
            in float32, a direction 10⁴ times narrower than another would drown the wider one.
        """

    @abstractmethod
    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        """`curvature` at z times a direction of length 1 at each, without the matrix.

        Args:
            z: Shape (*sample, B, latent), of a flat target.
            directions: Shape of z.
        Returns:
            Shape of z, in double.
        """

    @abstractmethod
    def flatten(self) -> "Target":
        """The same target with batch shape (B,)."""

    @abstractmethod
    def select(self, index: Tensor) -> "Target":
        """The target of some queries (repeats allowed), for a target of batch shape (B,)."""

    def timed(self, clock: Clock, bank_points: int = MAX_POINTS) -> "Target":
        """The same flat target by this clock, with no more than so many points in its bank."""
        chosen = object.__new__(type(self))
        vars(chosen).update(vars(self))
        chosen.clock, chosen.bank_points = clock, bank_points
        return chosen

    def prepare(self) -> "Target":
        """The same flat target, ready to be evaluated often."""
        return self

    @property
    def query_bytes(self) -> int:
        """Memory that a query takes when prepared, about."""
        return 0

    @property
    def sizes(self) -> Tensor:
        """How much each query of a flat target observes: like ones are best worked on together."""
        return torch.zeros(self.batch_shape, dtype=torch.long, device=self.like.device)

    def may_be_lost(self) -> Tensor:
        """For which queries there may be z whose decoded output has lost log p(x|z), boolean."""
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.like.device)

    def stuck(self, z: Tensor) -> Tensor:
        """An observed element that the decoder holds on a clamp at all z, far from its value.

        Args:
            z: Shape (S, B, latent), of a flat target.
        Returns:
            The element, out of those of a datum laid out flat, shape (B,); −1 where there is none.
        """
        return torch.full(z.shape[1:2], -1, device=z.device)

    def lost(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """At what share of z an observed element is lost, and which one at most of them.

        Args:
            z: Shape (S, B, latent), of a flat target.
        Returns:
            The share and the element, out of those of a datum laid out flat, shape (B,) both.
        """
        nothing = z.new_zeros(z.shape[1])
        return nothing, nothing.long()

    def explain(self, query: int | Tensor, z: Tensor) -> str:
        """Why log p(x|z) of a query is NaN or −inf at a z, (latent,): a clause for messages."""
        return f"at a z of norm {z.norm():.3g}"

    @property
    @abstractmethod
    def operations(self) -> float:
        """Multiply-adds that log p(x|z) takes at one z, about."""

    @property
    def device(self) -> torch.device:
        """Where everything here lies."""
        return self.like.device

    @property
    def num_queries(self) -> int:
        """Number of queries in the batch."""
        return self.batch_shape.numel()

    def log_prior(self, z: Tensor) -> Tensor:
        """log N(z; 0, prior_scale² I) in nats, shape z.shape[:-1]."""
        squares = (z / self.prior_scale).square().sum(-1)
        log_normaliser = 0.5 * math.log(2 * math.pi) + math.log(self.prior_scale)
        return -0.5 * squares - self.latent_dim * log_normaliser

    @isolated
    def log_joint(self, z: Tensor, *, checked: bool = True) -> Tensor:
        """log p(z, x) in nats, shape (*sample, *batch); errors as `log_likelihood`."""
        return self.log_prior(z) + self.log_likelihood(z, checked=checked)

    @isolated
    def draw_prior(self, num: int, *, generator: Generator) -> Tensor:
        """Draws from the prior that all queries share, shape (num, latent)."""
        noise = normal((num, self.latent_dim), generator=generator, like=self.like)
        return self.prior_scale * noise
