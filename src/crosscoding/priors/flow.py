"""Flow priors: a one-to-one map of normal noise, trained with the VAE or after it."""

import math
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Generator, Tensor, nn

from crosscoding.covariates import Covariates
from crosscoding.crosscoders import Fitted
from crosscoding.priors.base import ContinuousPrior
from crosscoding.priors.normal import standard_log_prob
from crosscoding.priors.one_to_one import Chain, FittedMap, OneToOne, as_map


class Flow(ContinuousPrior):
    """The distribution of a one-to-one map of normal noise.

    Args:
        flow: One of
            - a fitted cross-coder of one query, such as `crosscoders.fit_to_draws(Spline(), z,
              generator=...)` for encodings z, (N, 1, latent);
            - a module with `forward_and_ladj(noise)`, which returns z and log |det dz/dnoise|, and
              its inverse `inverse_and_ladj(z)`, which returns the noise and the same log |det|;
            - a flow of zuko, or any module that makes a distribution when called;
            - a `torch.distributions.TransformedDistribution` of a normal one, or a `Transform`;
            - a list of these, applied to the noise one after the other.
        latent_dim: Size of z; needed if it cannot be read from the flow.

    Raises:
        TypeError: flow is none of these.
        ValueError: It is not one-to-one, its base is not normal, or the size of z is unknown.

    Example:
        >>> from crosscoding.crosscoders import Planar, fit_to_draws
        >>> z = torch.randn(200, 1, 2, generator=torch.Generator().manual_seed(0)).exp()
        >>> fitted = fit_to_draws(Planar(4), z, generator=torch.Generator().manual_seed(0))
        >>> Flow(fitted).from_noise(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    may_be_steep = True

    def __init__(self, flow: Any, latent_dim: int | None = None) -> None:
        bijection = as_map(flow)
        dim = _dim_of(bijection) if latent_dim is None else latent_dim
        if dim is None:
            raise ValueError("expected latent_dim=..., as the flow does not give the size of z")
        super().__init__(dim)
        self.bijection = bijection

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        return self._map.forward_and_ladj(noise)[0]

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        return self._map.inverse_and_ladj(z)[0]

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        noise, ladj = self._map.inverse_and_ladj(z)
        outside = ~noise.isfinite().all(-1)  # no noise is mapped to z
        return (standard_log_prob(noise) - ladj).masked_fill(outside, -math.inf)

    def settings(self) -> dict[str, Any] | None:
        maps = self.bijection.maps if isinstance(self.bijection, Chain) else [self.bijection]
        kinds = [part.kind if isinstance(part, FittedMap) else None for part in maps]
        if None in kinds:
            return None
        return {"latent_dim": self.latent_dim, "maps": kinds}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        maps = [_empty_map(kind) for kind in settings["maps"]]
        return cls(maps if len(maps) > 1 else maps[0], settings["latent_dim"])

    @property
    def _map(self) -> OneToOne:
        return cast(OneToOne, self.bijection)


def _dim_of(bijection: nn.Module) -> int | None:
    if isinstance(bijection, Chain):
        return next((d for part in bijection.maps if (d := _dim_of(part)) is not None), None)
    dim = getattr(bijection, "dim", None)
    return dim if isinstance(dim, int) else None


def _empty_map(kind: Mapping[str, Any]) -> FittedMap:
    """The map of a family of cross-coders, with parameters on the meta device."""
    crosscoder = Fitted.family(kind["name"], kind["settings"])
    with torch.device("meta"):
        ones = torch.ones(1, kind["dim"])
    params = crosscoder.start(ones, ones, generator=Generator())
    return FittedMap(Fitted(crosscoder, params, kind["dim"]))
