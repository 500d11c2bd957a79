"""Autoregressive priors: p(z) = Π_d N(z_d; μ_d(z_<d), σ_d(z_<d)²), by a masked network.

Source: Papamakarios et al. (2017), Masked autoregressive flow, eq. 2–4. Differs in: nothing.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.priors.base import ContinuousPrior
from crosscoding.priors.networks import mean_and_scale, stacked
from crosscoding.priors.normal import standard_log_prob


class Autoregressive(ContinuousPrior):
    """Each element of z is Gaussian given the elements before it.

    `log_prob` runs the network once; a draw runs it once for each element of z.

    Args:
        latent_dim: Size of z.
        network: Module from z, (N, latent), to mean and log-variance of every element given the
            elements before it, side by side in one tensor, (N, 2 latent), or as a tuple of two.
            Neither may depend on the element itself or on later ones, as in a masked network
            (MADE).

    Raises:
        TypeError: latent_dim is not an int, or network is not a module.

    Example:
        >>> masked = nn.Linear(2, 4)  # its second input is not used, and its first only for z_2
        >>> mask = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
        >>> masked.weight = nn.Parameter(masked.weight * mask)
        >>> Autoregressive(2, masked).from_noise(torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, latent_dim: int, network: nn.Module) -> None:
        super().__init__(latent_dim)
        self.network = stacked(network, "network")

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        z = torch.zeros_like(noise)
        for d in range(self.latent_dim):
            mean, scale = self._moments(z)
            own = mean[..., d] + scale[..., d] * noise[..., d]
            z = torch.cat([z[..., :d], own.unsqueeze(-1), z[..., d + 1 :]], -1)
        return z

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        mean, scale = self._moments(z)
        return (z - mean) / scale

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        mean, scale = self._moments(z)
        return standard_log_prob((z - mean) / scale) - scale.log().sum(-1)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def settings(self) -> dict[str, Any]:
        return {"latent_dim": self.latent_dim}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        return cls(settings["latent_dim"], networks["network"])

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(z.reshape(-1, self.latent_dim))
        mean, scale = mean_and_scale(output, self.latent_dim, "the network")
        return mean.reshape(z.shape), scale.reshape(z.shape)
