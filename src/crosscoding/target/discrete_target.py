"""The target of a VAE with discrete latents: p(z, x) = p(z) p(x|z), z the latents themselves.

Besides log p(z, x) it gives, to first order, its change if any one latent took another value. That
comes from gradients with respect to the decoder's inputs: zeros and ones, or one-hot rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from crosscoding.evidence import Evidence
from crosscoding.isolation import isolated
from crosscoding.model.discrete_latents import relaxed
from crosscoding.model.vae import VAE
from crosscoding.priors import DiscretePrior
from crosscoding.target.vae_target import VAETarget


class Reference(Protocol):
    """A normalised density r(z) of each query, from which a path leads to p(z, x)."""

    def log_density(self, inputs: Tensor) -> Tensor:
        """log r in nats, differentiable in the inputs for z: (S, B, *input) -> (S, B)."""
        ...

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Draws of z, (num, B, D); all queries share their random numbers."""
        ...

    def select(self, index: Tensor) -> "Reference":
        """The densities of some queries."""
        ...


@dataclass(frozen=True, eq=False)
class DiscretePoints:
    """Points of each query, and what is known of the path r(z)^{1 − t} p(z, x)^t there.

    Args:
        z: Values, shape (S, B, D).
        log_reference: log r(z) in nats, shape (S, B).
        log_ratio: log p(z, x) / r(z) in nats, shape (S, B).
        changes: By how much log r(z)^{1 − t} p(z, x)^t grows, to first order, if a latent takes
            another value: (S, B, D, K).
    """

    z: Tensor
    log_reference: Tensor
    log_ratio: Tensor
    changes: Tensor

    def where(self, chosen: Tensor, other: "DiscretePoints") -> "DiscretePoints":
        """These points, but those of `other` where chosen (S, B)."""
        return DiscretePoints(
            torch.where(chosen[..., None], other.z, self.z),
            torch.where(chosen, other.log_reference, self.log_reference),
            torch.where(chosen, other.log_ratio, self.log_ratio),
            torch.where(chosen[..., None, None], other.changes, self.changes),
        )


class DiscreteTarget(VAETarget):
    """p(z) p(x|z) of a VAE with discrete latents and the observed elements x.

    Args:
        vae: The trained model, with a discrete prior.
        evidence: Values of shape (*batch, *data), in the model's dtype and on its device.

    Raises:
        TypeError, ValueError, NonFiniteError: As for `VAETarget`.
    """

    is_discrete = True
    prior_scale = math.inf  # no z is far out

    def __init__(self, vae: VAE, evidence: Evidence) -> None:
        super().__init__(vae, evidence)

    @property
    def prior(self) -> DiscretePrior:
        """p(z)."""
        assert isinstance(self.vae.prior, DiscretePrior)
        return self.vae.prior

    @property
    def _decoded(self) -> VAE:
        return relaxed(self.vae)

    def latents(self, z: Tensor) -> Tensor:
        return z

    def noise_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, torch.zeros_like(z[..., 0])

    @isolated
    def log_prior(self, z: Tensor) -> Tensor:
        return self.prior.log_prob(z)

    @isolated
    def draw_prior(self, num: int, *, generator: Generator) -> Tensor:
        return self.prior.sample(num, generator=generator, like=self.like)

    @isolated
    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        sample = z.shape[: z.ndim - 1 - len(self.batch_shape)]
        points = z.reshape(*sample, self.num_queries, self.latent_dim)
        result = self._observed.log_likelihood(self._inputs(points)).reshape(z.shape[:-1])
        return self._checked(result, z) if checked else result

    @isolated
    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        return super().pairwise_log_likelihood(self._inputs(z))

    def _checked(self, result: Tensor, z: Tensor, query: Tensor | None = None) -> Tensor:
        if z.shape[-1] != self.latent_dim:  # inputs: one-hot rows, side by side
            z = z.unflatten(-1, self.prior.input_shape).argmax(-1).to(z)
        return super()._checked(result, z, query)

    @isolated
    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self._checked(self._observed.log_likelihood_at(self._inputs(z), query), z, query)

    @isolated
    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        points = self.draw_prior(self.bank_points, generator=Generator().manual_seed(0))
        return points, self.pairwise_log_likelihood(points)

    @isolated
    @torch.no_grad()
    def lost(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return super().lost(self._inputs(z))

    def stuck(self, z: Tensor) -> Tensor:
        # An element that depends on few latents has the same log p at many z without any clamp.
        return torch.full(z.shape[1:2], -1, device=z.device)

    @isolated
    def points(
        self, z: Tensor, temperature: Tensor, reference: Reference | None = None
    ) -> DiscretePoints:
        """What moves need at z, for a flat target.

        Args:
            z: Shape (S, B, D).
            temperature: t of each query, shape (B,).
            reference: r; None: p(z).
        """
        inputs = self.prior.inputs_of(z)
        shape = (-1, *[1] * len(self.prior.input_shape))
        t = temperature.reshape(shape)
        with torch.enable_grad():
            given = inputs.detach().requires_grad_()
            log_prior, slope = _with_slope(self.prior.log_density, given)
            log_prior = log_prior - self.prior.log_normaliser
            log_likelihood, own = _with_slope(
                lambda x: self._observed.log_likelihood(x.reshape(*z.shape[:2], -1)), given
            )
            log_ratio = self._checked(log_likelihood, z)
            if reference is None:
                log_reference, total = log_prior, slope + t * own
            else:
                log_reference, start = _with_slope(reference.log_density, given)
                log_ratio = log_ratio + log_prior - log_reference
                total = (1 - t) * start + t * (slope + own)
        changes = self.prior.changes(z, total).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return DiscretePoints(z, log_reference, log_ratio, changes)

    def curvature(self, z: Tensor) -> Tensor:
        raise NotImplementedError("discrete latents have no curvature")

    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        raise NotImplementedError("discrete latents have no curvature")

    def coarse(self) -> "DiscreteTarget":
        return self

    def select(self, index: Tensor) -> "DiscreteTarget":
        chosen = super().select(index)
        assert isinstance(chosen, DiscreteTarget)
        return chosen

    def _inputs(self, z: Tensor) -> Tensor:
        """The decoder's inputs for z (*sample, D), flattened: (*sample, inputs)."""
        return self.prior.decoder_input(z).reshape(*z.shape[:-1], math.prod(self.prior.input_shape))


def _with_slope(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Tensor]:
    """A function's values, (S, B), and its gradient, both without a graph."""
    values = function(given)
    if not values.requires_grad:  # such as the prior of uniform codes
        return values.detach(), torch.zeros_like(given)
    (slope,) = torch.autograd.grad(values.sum(), given)
    return values.detach(), slope


def target_of(vae: VAE, evidence: Evidence) -> VAETarget:
    """The target of a model with evidence, whatever its latents; raises what `VAETarget` raises."""
    if isinstance(vae, VAE) and isinstance(vae.prior, DiscretePrior):
        return DiscreteTarget(vae, evidence)
    return VAETarget(vae, evidence)
