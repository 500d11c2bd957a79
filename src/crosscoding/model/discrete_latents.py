"""Models with discrete latents, as functions of what their decoder takes.

A decoder of discrete latents takes zeros and ones, or one-hot rows. As a network it also takes the
numbers between these, so its gradient says, to first order, what changing a value would do.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.model.vae import VAE
from crosscoding.priors import DiscretePrior, Prior


class _Inputs(Prior):
    """A stand-in for the prior, with the decoder's flattened inputs in place of z."""

    noise_dim: int | None = None

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.latent_dim, self.shape = shape.numel(), shape

    def decoder_input(self, z: Tensor) -> Tensor:
        return z.reshape(*z.shape[:-1], *self.shape)

    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        raise NotImplementedError("inputs of a decoder have no distribution")

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        raise NotImplementedError("inputs of a decoder have no distribution")


class _Unflattened(nn.Module):
    """A network of one-hot rows that takes them flattened, with covariates if it takes any."""

    def __init__(self, shape: torch.Size, network: nn.Module) -> None:
        super().__init__()
        self.shape, self.network = shape, network

    def forward(self, inputs: Tensor, *given: Covariates) -> Any:
        return self.network(inputs.unflatten(1, self.shape), *given)


def relaxed(vae: VAE) -> VAE:
    """The same model as a function of the decoder's inputs, flattened, instead of z."""
    if "relaxed" in vae.kept:
        return vae.kept["relaxed"]
    prior = vae.prior
    assert isinstance(prior, DiscretePrior)
    chosen: Any = copy.copy(vae)
    chosen.prior, chosen.latent_dim = _Inputs(prior.input_shape), prior.input_shape.numel()
    if vae.head is not None and len(prior.input_shape) > 1:
        chosen.head = replace(vae.head, trunk=_Unflattened(prior.input_shape, vae.head.trunk))
    if vae.given is not None:
        chosen.unbound = relaxed(chosen.unbound)
    chosen.kept = {"cost": vae.cost}
    vae.kept["relaxed"] = chosen
    return chosen
