"""The contract of every prior p(z)."""

from abc import ABC, abstractmethod

from torch import Generator, Tensor, nn


class Prior(nn.Module, ABC):
    """p(z) of a latent variable of `latent_dim` numbers; a module, so that it may be trained.

    Attributes:
        latent_dim: Size of z.
        noise_dim: Size of the standard normal noise that `from_noise` takes, or None if z is
            discrete and no such map exists.
    """

    latent_dim: int
    noise_dim: int | None

    @abstractmethod
    def sample(self, num: int, *, generator: Generator, like: Tensor) -> Tensor:
        """Draws of z with the dtype and device of `like`, shape (num, latent)."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: z (*sample, latent) -> (*sample)."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """z as a function of ε ~ N(0, I): (*sample, noise) -> (*sample, latent)."""
        raise NotImplementedError(f"{type(self).__name__} has no map from normal noise")
