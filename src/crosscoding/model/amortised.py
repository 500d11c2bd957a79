"""Amortised cross-coders: one network that gives q(z|x) of any query, without a fit.

    ψ = network(values, mask),   q(z|x) = Σ_k π_k N(z; m_k, L_k L_kᵀ) with parameters ψ

It is a proposal: `methods.Auto` weighs its draws by p(z, x) and checks them like all others, so it
makes answers fast, never wrong. z is the noise that the model's prior maps to its latent variable;
the two are the same if the prior is N(0, I).
"""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from crosscoding.crosscoders import Crosscoder, Gaussian, Mixture
from crosscoding.crosscoders.base import Fitted
from crosscoding.crosscoders.packed_numbers import num_numbers, unpacked_numbers
from crosscoding.isolation import isolated
from crosscoding.model.amortised_coverage import Vouched
from crosscoding.model.amortised_record import Record
from crosscoding.model.generative import Generative
from crosscoding.model.model_print import ModelPrint
from crosscoding.model.trial import OutputError, Trial, frozen_copy

_FAMILIES = (Mixture, Gaussian)


@dataclass(frozen=True, eq=False)
class Amortised:
    """A network that proposes z for evidence, and the model that it is for.

    Make one with `crosscoding.amortise`, or from a network of your own with `Amortised.of`, and
    give it to the model: `vae.with_amortised(amortised)`.

    Args:
        network: Frozen module, called as network(values, mask) with values, 0 where unobserved, and
            a boolean mask, both of shape (B, *data); returns the numbers of ψ, (B, P).
        crosscoder: The family whose parameters ψ are, a `Mixture` or a `Gaussian`.
        latent_dim: Size of z.
        made_for: The fingerprint of the model.
        record: How it was trained, and how good its proposals are; None for a network of your own.
    """

    network: nn.Module
    crosscoder: Crosscoder
    latent_dim: int
    made_for: ModelPrint
    record: Record | None = None

    @classmethod
    @isolated
    def of(cls, vae: "Proposing", network: nn.Module, crosscoder: Crosscoder) -> "Amortised":
        """An amortised cross-coder for a model, made from any network.

        The network is copied and frozen, and tried on a few draws of data. Its output for a
        `Mixture(K)` is, side by side: K logits of the shares, the means (K, latent), the logarithms
        of the diagonals of L (K, latent), and their entries below the diagonal, row by row
        (K, latent (latent − 1) / 2). For a `Gaussian` it is the same without shares and K, for a
        diagonal one without entries below.

        Args:
            vae: The model, whose latents are continuous and whose decoder takes no covariates.
            network: Module called as network(values, mask), as the class says.
            crosscoder: `crosscoders.Mixture(...)` or `crosscoders.Gaussian(...)`.
        Raises:
            TypeError: network is not a module, or crosscoder is neither of the two families.
            ValueError: The model takes covariates or has discrete latents; or the network does not
                fit, mixes the rows of a batch, or is not deterministic.
            NonFiniteError: The network outputs NaN or infinity.
        """
        if type(crosscoder) not in _FAMILIES:
            raise TypeError(
                "expected crosscoder to be crosscoders.Mixture(...) or crosscoders.Gaussian(...), "
                f"got {crosscoder!r:.80}"
            )
        latent_dim = check_amortisable(vae)
        made = cls(frozen_copy(network, "network"), crosscoder, latent_dim, vae.own_print())
        made._try(vae.data_for_trial())
        return made

    @torch.no_grad()
    def propose(self, values: Tensor, mask: Tensor) -> Fitted:
        """q(z|x) of each query; values, 0 where unobserved, and mask have the shape (B, *data)."""
        numbers = self.network(values.clone(), mask.clone())
        params = unpacked_numbers(self.crosscoder, numbers, self.latent_dim)
        return Fitted(self.crosscoder, params, self.latent_dim)

    def vouched(self, mask: Tensor) -> Vouched:
        """What simulated twins say about its proposals for queries with masks (B, *data)."""
        coverage = None if self.record is None else self.record.coverage
        if coverage is None:
            return Vouched.nothing(mask.flatten(1).double().sum(1))
        return coverage.of(mask)

    def with_record(self, record: Record | None) -> "Amortised":
        """The same with a record of its training."""
        return replace(self, record=record)

    def to(self, device: torch.device | str) -> "Amortised":
        """The same on another device."""
        return replace(self, network=frozen_copy(self.network, "network").to(device))

    def _try(self, data: Tensor) -> None:
        """Raise unless the network takes values and masks of data, (N, *data)."""
        masks = torch.arange(data.numel(), device=data.device).reshape(data.shape) % 3 > 0
        rows = torch.stack([torch.where(masks, data, 0.0), masks.to(data)], 1)
        hint = "it must take values and a mask, both of the data's shape with a batch in front"
        try:
            trial = Trial(self.network, _numbers, rows, 1 - rows.flip(0), "network", hint)
        except OutputError as error:
            raise ValueError(str(error)) from None
        wanted = (len(data), num_numbers(self.crosscoder, self.latent_dim))
        if trial.output.shape != wanted:
            raise ValueError(
                f"expected network output of shape {wanted} for {len(data)} queries, as "
                f"{self.crosscoder} of {self.latent_dim} latents takes, got "
                f"{tuple(trial.output.shape)}"
            )
        trial.check_finite(trial.output.isfinite())
        trial.check(data.dtype)


class Proposing(Generative):
    """The part of `VAE` that has an amortised cross-coder."""

    amortised: Amortised | None = None

    @abstractmethod
    def own_print(self) -> ModelPrint:
        """The fingerprint by which the model is recognised."""

    @isolated
    def with_amortised(self, amortised: Amortised | None) -> Self:
        """The same model with an amortised cross-coder, from which `methods.Auto` proposes first.

        Args:
            amortised: From `crosscoding.amortise` or `Amortised.of`; None removes it.
        Raises:
            TypeError: amortised is neither an `Amortised` nor None.
            ValueError: It was made for another model.
        """
        if amortised is not None and not isinstance(amortised, Amortised):
            raise TypeError(
                "expected an Amortised, such as Amortised.of(vae, network, crosscoder), got "
                f"{type(amortised).__name__}"
            )
        if amortised is not None and not amortised.made_for.same_as(self.own_print()):
            raise ValueError(
                "expected an amortised cross-coder of this model, got one that was made for "
                "another decoder, prior or likelihood; train a new one: crosscoding.amortise(vae)"
            )
        chosen = copy.copy(self)
        chosen.amortised = amortised
        return chosen


def check_amortisable(vae: Generative) -> int:
    """The size of the noise that a model's prior maps to z.

    Raises:
        ValueError: The model has discrete latents, or its decoder takes covariates.
    """
    if vae.prior.noise_dim is None:
        raise ValueError(
            "expected a model with continuous latents, got discrete ones, which have no amortised "
            "cross-coder"
        )
    if vae.examples is not None:
        raise ValueError(
            "expected a decoder without covariates, as amortised cross-coders see only values and "
            "mask, got one that takes some"
        )
    return vae.prior.noise_dim


def _numbers(network: nn.Module, rows: Tensor) -> Tensor:
    """The output for values and mask, which are stacked in rows (N, 2, *data)."""
    output = network(rows[:, 0], rows[:, 1] > 0.5)
    if not isinstance(output, Tensor):
        raise OutputError(
            f"expected one tensor of numbers from the network, got {type(output).__name__}; wrap "
            "it in a module that returns torch.cat of them"
        )
    return output
