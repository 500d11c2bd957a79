"""The standard normal prior, p(z) = N(0, I)."""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Generator, Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.priors.base import ContinuousPrior


def standard_log_prob(noise: Tensor) -> Tensor:
    """log N(ε; 0, I) in nats: (*sample, noise) -> (*sample)."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)


class Normal(ContinuousPrior):
    """N(0, I), the prior of a plain VAE.

    Args:
        latent_dim: Size of z; None: that of the VAE to which it is passed.
    """

    def __init__(self, latent_dim: int | None = None) -> None:
        super().__init__(1 if latent_dim is None else latent_dim)
        self.fits_any = latent_dim is None

    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        if self.fits_any:
            raise ValueError(
                "expected Normal(latent_dim) to draw from, got Normal() without a size"
            )
        return super().sample(num, generator=generator, like=like)

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        return standard_log_prob(z)

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        return noise

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        return z

    def extra_repr(self) -> str:
        return "" if self.fits_any else str(self.latent_dim)

    def settings(self) -> dict[str, Any]:
        return {"latent_dim": self.latent_dim}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        return cls(settings["latent_dim"])
