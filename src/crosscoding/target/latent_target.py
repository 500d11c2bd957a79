"""p(z, x) as a density of the model's own latent variable, instead of the noise behind it."""

import torch
from torch import Tensor

from crosscoding.isolation import isolated
from crosscoding.model.bound import bound
from crosscoding.target.observed_likelihood import Observed
from crosscoding.target.vae_target import VAETarget


class LatentTarget(VAETarget):
    """The target of a VAE whose z is the model's own latent variable, with the prior's density.

    It is used to climb to modes where the map from noise to z loses too many digits.

    Args:
        target: A flat target of a model with continuous latents.
    """

    def __init__(self, target: VAETarget) -> None:
        vars(self).update(vars(target))
        model = self.model if self._given is None else bound(self.model, self._given)
        self.vae, self.latent_dim, self._is_known = model, model.latent_dim, False
        self._observer = lambda: Observed(model, self._values, self._mask, self._partial)

    @isolated
    def log_prior(self, z: Tensor) -> Tensor:
        return self.model.prior.log_prob(z, self._given_to_prior)

    @torch.no_grad()
    def latents(self, z: Tensor) -> Tensor:
        return z
