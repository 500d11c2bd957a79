"""The part of `VAE` that draws z from the prior, and data from p(t|z)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from crosscoding.covariates import Covariates, tiled
from crosscoding.errors import NonFiniteError
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.bound import bound_for
from crosscoding.model.tried_prior import NUM_PROBES
from crosscoding.model.undefined_elements import nothing_to_predict
from crosscoding.priors import Prior
from crosscoding.random import generator_from


class Generative(ABC):
    """A model p(z) p(t|z) to draw from; `VAE` says what its parts are."""

    latent_dim: int
    likelihood: Likelihood
    prior: Prior
    examples: Covariates
    given: Covariates
    data_shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    @abstractmethod
    def flat_likelihood(self) -> Likelihood:
        """The likelihood for flattened data."""

    @property
    @abstractmethod
    def data_size(self) -> int:
        """Number of elements of one datum."""

    @abstractmethod
    def decode_flat(self, z: Tensor) -> Tensor:
        """Parameters of p(t|z) for flattened data, (*sample, E, *param_shape)."""

    @abstractmethod
    def element_name(self, element: int) -> str:
        """The name of an element of a flattened datum, for messages."""

    @isolated
    def sample_prior(
        self, num: int, *, seed: int | torch.Generator | None = None, given: Covariates = None
    ) -> Tensor:
        """Draws of complete data from the model without evidence, shape (num, *data).

        Args:
            num: Number of draws, ≥ 0.
            seed: Seed of these draws.
            given: Covariates of each draw, or of all, if the decoder takes any; by default the
                model's examples in turn.
        Raises:
            ValueError: num or given does not fit.
            NonFiniteError: p(t|z) of an element does not exist at a draw of z.
        """
        if num < 0:
            raise ValueError(f"expected a number of draws >= 0, got {num}")
        if given is None:
            given = tiled(self.examples, num)
        vae = bound_for(self, given, torch.Size((num,)))
        return vae.simulate(num, generator=generator_from(seed))[1]

    @isolated
    def simulate(self, num: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of z, (num, latent), and of data, (num, *data); raises what `sample_prior` does."""
        z, params, draws = self._drawn(num, generator)
        wrong = ~(self.flat_likelihood.valid(params) & draws.isfinite())
        if wrong.any():
            words = nothing_to_predict(self.flat_likelihood, self.element_name, z, params, wrong)
            raise NonFiniteError(words)
        return z, draws.reshape(num, *self.data_shape)

    @torch.no_grad()
    def _drawn(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of z, the decoder's output for them, and draws of data, all flattened."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        own = {"given": tiled(self.given, num)} if self.prior.takes_given else {}
        z = self.prior.sample(num, generator=generator, like=like, **own)
        params, likelihood = self.decode_flat(z), self.flat_likelihood
        noise = likelihood.noise((num, self.data_size), generator=generator, like=like)
        return z, params, likelihood.draw(params, noise)

    def data_for_trial(self) -> Tensor:
        """Draws from the model, always the same, with 0 wherever a draw is not finite."""
        draws = self._drawn(NUM_PROBES, generator_from(0))[2]
        return torch.where(draws.isfinite(), draws, 0.0).reshape(-1, *self.data_shape)
