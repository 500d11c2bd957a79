"""The contract of every prior p(z)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from torch import Generator, Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.random import normal


class Prior(nn.Module, ABC):
    """p(z) of a latent variable of `latent_dim` numbers; a module, so that it may be trained.

    Attributes:
        latent_dim: Size of z.
        noise_dim: Size of the standard normal noise that `from_noise` takes, or None if z is
            discrete and no such map exists.
        takes_given: Whether p(z) depends on covariates of the query. The methods below then need
            them as `given`: one row, or a row for each of the B queries of z (*sample, B, latent).
        may_be_steep: Whether the map from noise may be so steep that it magnifies rounding errors;
            answers are then checked for them.
    """

    latent_dim: int
    noise_dim: int | None
    takes_given: bool = False
    may_be_steep: bool = False

    @abstractmethod
    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        """Draws of z with the dtype and device of `like`, shape (num, latent)."""

    @abstractmethod
    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        """log p(z) in nats: z (*sample, latent) -> (*sample)."""

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        """z as a function of ε ~ N(0, I): (*sample, noise) -> (*sample, latent)."""
        raise NotImplementedError(f"{type(self).__name__} has no map from normal noise")

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        """The ε that `from_noise` maps to z: (*sample, latent) -> (*sample, noise)."""
        raise NotImplementedError(f"{type(self).__name__} has no map to normal noise")

    def decoder_input(self, z: Tensor) -> Tensor:
        """The part of z that the decoder takes, here all of it: (*sample, latent)."""
        return z

    # ---- saving ----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any] | None:
        """What `empty` needs besides the networks, as JSON; None if the prior is user code."""
        return None

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that the prior is made of, by name."""
        return {}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        """The prior with these settings and networks, before its tensors are loaded.

        Its tensors are on the meta device.
        """
        raise NotImplementedError(f"{cls.__name__} cannot be loaded")


class ContinuousPrior(Prior):
    """A prior given by a one-to-one map z = T(ε) of standard normal noise ε, of the size of z."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
            raise TypeError(f"expected latent_dim to be an int, got {type(latent_dim).__name__}")
        if latent_dim < 1:
            raise ValueError(f"expected latent_dim >= 1, got {latent_dim}")
        self.latent_dim = self.noise_dim = latent_dim

    def sample(
        self, num: int, *, generator: Generator, like: Tensor, given: Covariates = None
    ) -> Tensor:
        noise = normal((num, self.latent_dim), generator=generator, like=like)
        return self.from_noise(noise, given)
