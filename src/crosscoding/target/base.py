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
from crosscoding.crosscoders import Fitted
from crosscoding.isolation import isolated
from crosscoding.model.amortised_coverage import Vouched
from crosscoding.model.bank import MAX_POINTS
from crosscoding.random import normal

REACH = 5.0  # prior standard deviations; a coordinate lies beyond with probability 6e-7


class Target(ABC):
    """An unnormalised density of z for each query of a batch, split into prior and likelihood.

    Attributes:
        latent_dim: Size of z.
        batch_shape: Shape of the batch of queries.
        prior_scale: Standard deviation of the prior N(0, prior_scale² I), relative to which
            log_likelihood is defined.
        like: An empty tensor with the dtype and device of the target.
        kinds: A number for each query of a flat target, (B,). Queries with the same number, other
            than −1, decode z alike and are answered together. None: all decode alike.
        index: The places of these queries in the whole batch, shape (B,); None: all of them.
        ends_with_prior: Whether p(z, x) is known to fall off like the prior far out. If not,
            methods have to examine the tails.
        has_cheap_curvature: Whether a column of `curvature` costs about as much as a few decodes.
        undefined: For which queries of the whole batch log p(x|z) was NaN somewhere far out and
            was taken as −inf, boolean; None: not known.
        clock: Ticked before every piece of work.
        bank_points: Largest number of points in the bank.
        is_discrete: Whether z is discrete, so that log p(z, x) has no gradient.
        may_be_steep: Whether the map from z to the model's latent may magnify rounding errors.
    """

    latent_dim: int
    batch_shape: torch.Size
    prior_scale: float = 1.0
    like: Tensor
    index: Tensor | None = None
    ends_with_prior: bool = False
    kinds: Tensor | None = None
    has_cheap_curvature: bool = True
    undefined: Tensor | None = None
    clock: Clock = UNLIMITED
    bank_points: int = MAX_POINTS
    is_discrete: bool = False
    may_be_steep: bool = False

    def name(self, query: int | Tensor) -> int:
        """The place of a query in the whole batch, for messages."""
        return int(query if self.index is None else self.index[query])

    @abstractmethod
    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        """log p(x|z) in nats, shape (*sample, *batch).

        Raises:
            NonFiniteError: It is NaN at a z where prior draws are common; only if `checked`.
        """

    @abstractmethod
    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z) of every query at shared points: z (N, latent) -> (N, *batch)."""

    @abstractmethod
    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        """Evenly spread points of the prior, (N, latent), and log p(x|z) there, (N, *batch)."""

    @abstractmethod
    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        """log p(x|z) of query[i] at z[i], in nats: z (N, latent), query (N,) -> (N,)."""

    @abstractmethod
    def curvature(self, z: Tensor) -> Tensor:
        """The curvature of log p(z, x), approximately −∇², symmetric; for a flat target.

        For a VAE it is I + Jᵀ F J, with J the Jacobian of the decoder's output for the observed
        elements and F their Fisher information. This Gauss–Newton matrix is positive definite, and
        equals −∇² if the decoder is linear.

        Args:
            z: Shape (*sample, B, latent).
        Returns:
            Shape (*sample, B, latent, latent), always in double precision: in a float32 sum, a
            direction 10⁴ times narrower than another would drown the wider one.
        """

    @property
    def curvature_decodes(self) -> int | Tensor:
        """Number of decodes that a curvature at one z takes; broadcasts to (B,)."""
        return self.latent_dim

    @abstractmethod
    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        """The product of `curvature` and a unit direction at each z, without forming the matrix.

        Args:
            z: Shape (*sample, B, latent), for a flat target.
            directions: Shape of z.
        Returns:
            Shape of z, in double precision.
        """

    @abstractmethod
    def flatten(self) -> "Target":
        """The same target with batch shape (B,)."""

    @abstractmethod
    def select(self, index: Tensor) -> "Target":
        """The target of some queries, repeats allowed, from a target of batch shape (B,)."""

    def timed(self, clock: Clock, bank_points: int = MAX_POINTS) -> "Target":
        """The same flat target with this clock and at most `bank_points` points in its bank."""
        chosen = object.__new__(type(self))
        vars(chosen).update(vars(self))
        chosen.clock, chosen.bank_points = clock, bank_points
        return chosen

    def prepare(self) -> "Target":
        """The same flat target, prepared for many evaluations."""
        return self

    def coarse(self) -> "Target":
        """The same flat target in lower precision where that is faster, for gradients only."""
        return self

    def latents(self, z: Tensor) -> Tensor:
        """The model's own latent variable at z, shape of z except for the last dimension."""
        return z

    def noise_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that maps to the model's own latent variable z, and log |det| of z ↦ noise.

        The inverse of `latents`; shapes are those of z and of z without the last dimension.
        """
        return z, torch.zeros_like(z[..., 0])

    @property
    def is_amortised(self) -> Tensor:
        """Which queries an amortised cross-coder proposes z for, boolean, (*batch,)."""
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.like.device)

    def propose(self) -> Fitted:
        """The proposals of the amortised cross-coder, for a flat target of such queries.

        Raises:
            LookupError: There is none.
        """
        raise LookupError("expected a model with an amortised cross-coder, got none")

    def vouched(self) -> Vouched:
        """What simulated twins say about these proposals, for a flat target."""
        return Vouched.nothing(self.like.new_zeros(self.num_queries))

    def is_common(self, z: Tensor) -> Tensor:
        """Whether prior draws are common at z, so that NaN there is an error, boolean.

        Args:
            z: Shape (*sample, *batch, latent).
        Returns:
            Shape (*sample, *batch).
        """
        return (z.abs() < REACH * self.prior_scale).all(-1)

    @property
    def query_bytes(self) -> int:
        """Approximate memory that a prepared query takes."""
        return 0

    @property
    def sizes(self) -> Tensor:
        """How many elements each query observes, so that similar queries can share a block."""
        return torch.zeros(self.batch_shape, dtype=torch.long, device=self.like.device)

    def may_be_lost(self) -> Tensor:
        """For which queries rounding or a clamp of the decoder's output may lose log p(x|z)."""
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.like.device)

    def stuck(self, z: Tensor) -> Tensor:
        """An observed element that the decoder clamps at all z, far from its value.

        Args:
            z: Shape (S, B, latent), for a flat target.
        Returns:
            The element's index in a flattened datum, shape (B,); −1 if there is none.
        """
        return torch.full(z.shape[1:2], -1, device=z.device)

    def lost(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The share of z at which an observed element is lost, and the one lost most often.

        Args:
            z: Shape (S, B, latent), for a flat target.
        Returns:
            The share, and the element's index in a flattened datum, both of shape (B,).
        """
        nothing = z.new_zeros(z.shape[1])
        return nothing, nothing.long()

    def explain(self, query: int | Tensor, z: Tensor) -> str:
        """Why log p(x|z) of a query is NaN or −inf at z (latent,), as a clause for messages."""
        return f"at a z of norm {z.norm():.3g}"

    @property
    @abstractmethod
    def operations(self) -> float:
        """Approximate number of multiply-adds to evaluate log p(x|z) at one z."""

    @property
    def device(self) -> torch.device:
        """The device of the target."""
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
        """Draws from the prior, shared by all queries, shape (num, latent)."""
        noise = normal((num, self.latent_dim), generator=generator, like=self.like)
        return self.prior_scale * noise
