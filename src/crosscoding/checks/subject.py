"""The subject of all checks: the model, decoded points of its prior, and some data."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from crosscoding.checks.laplace_fits import Fits, fit
from crosscoding.covariates import number_of_rows
from crosscoding.model.bound import selected
from crosscoding.model.vae import VAE
from crosscoding.random import normal

_OPERATIONS = 5e9  # multiply-adds to decode the probes: a fraction of a second
_FEWEST_PROBES, _MOST_PROBES = 16, 256
_OF_ENCODING = 64  # draws of q(z|t) that are mapped to noise: 9 % error in a standard deviation
_BLOCK = 250  # data to encode at once
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under examination.

    Args:
        vae: The model, in noise coordinates: all z here are noise, unless latents are discrete.
            A decoder that takes covariates is bound to those of the data, or to the model's
            examples, which points take in turn.
        generator: The source of all random numbers.
        data: Complete data that fit the model, (N, *data), or None.
        model: The model as the user has it, with its encoder.
    """

    vae: VAE
    generator: Generator
    data: Tensor | None
    model: VAE

    @cached_property
    def probes(self) -> Tensor:
        """Draws from the prior, (num, latent)."""
        num = int(max(min(_OPERATIONS / self.vae.operations, _MOST_PROBES), _FEWEST_PROBES))
        return self.draw_prior(num)

    @cached_property
    def output(self) -> Tensor:
        """The decoder's output at the probes, (num, *data, *param_shape)."""
        return self.decoded(self.probes)

    @cached_property
    def params(self) -> Tensor:
        """The same for flattened data, (num, E, *param_shape)."""
        return self.flat(self.output)

    @property
    def whole(self) -> Tensor:
        """The data; raises if there are none."""
        if self.data is None:
            raise ValueError("expected data, got none")
        return self.data

    @cached_property
    def fits(self) -> Fits:
        """Gaussian fits to p(z|t) of the first few data."""
        return fit(self.vae, self.whole, None if self.encoded is None else self.encoded[0])

    @cached_property
    def encoded(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of q(z|t) for all data, (N, latent) each; None without an encoder.

        If the prior is not N(0, I), they are those of the noise, over a few draws of q(z|t).

        Raises:
            NonFiniteError: The encoder outputs NaN or infinity.
        """
        if self.model.encoder is None or self.data is None:
            return None
        with torch.no_grad():
            pieces = [self.model.encode(piece) for piece in self.data.split(_BLOCK)]
            means, deviations = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            if self.vae is self.model:
                return means, deviations.square()
            shape = (_OF_ENCODING // 2, *means.shape)
            eps = normal(shape, generator=self.generator, like=means)
            z = means + deviations * torch.cat([eps, -eps])
            noise = self.model.prior.to_noise(z)
            return noise.mean(0), noise.var(0)

    @property
    def is_discrete(self) -> bool:
        """Whether latents are discrete."""
        return self.vae.prior.noise_dim is None

    def draw_prior(self, num: int) -> Tensor:
        """Points of the prior, (num, latent)."""
        if self.is_discrete:
            return self.vae.prior.sample(num, generator=self.generator, like=self.like)
        return normal((num, self.vae.latent_dim), generator=self.generator, like=self.like)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the model's dtype, on its device."""
        return torch.empty(0, dtype=self.vae.dtype, device=self.vae.device)

    def of_probe(self, index: Tensor) -> VAE:
        """The model for the covariates of the probes with these indices, (N,)."""
        if self.vae.given is None:
            return self.vae
        return selected(self.vae, index % number_of_rows(self.vae.given))

    @torch.no_grad()
    def decoded(self, z: Tensor, index: Tensor | None = None) -> Tensor:
        """The decoder's output at z (N, latent), computed in pieces.

        Args:
            z: Points.
            index: The probes whose covariates they have, (N,); by default they are the first N.
        """
        if index is None:
            index = torch.arange(len(z), device=z.device)
        row_bytes = max(self.vae.row_values * z.element_size(), 1)
        size = max(_CHUNK_BYTES // row_bytes, 1)
        pieces = zip(z.split(size), index.split(size), strict=True)
        return torch.cat([self.of_probe(own).decode(piece) for piece, own in pieces])

    def flat(self, output: Tensor) -> Tensor:
        """A decoder's output (N, *data, *param_shape) flattened as likelihoods take it."""
        return output.reshape(len(output), *self.vae.likelihood.flat_shape(output.shape[1:]))
