"""Gaussian priors with a mean and a covariance of their own."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.arrays import numbers_in
from crosscoding.covariates import Covariates
from crosscoding.priors.base import ContinuousPrior
from crosscoding.priors.networks import Function, stacked
from crosscoding.priors.normal import standard_log_prob


class Gaussian(ContinuousPrior):
    """N(mean, diag scale²), or N(mean, L Lᵀ) with scale a matrix L: z = mean + L ε.

    Either may instead be a module, or a function, of the query's covariates, as in a conditional
    VAE: it is called with the covariates of N queries, as they are passed to the decoder.

    Args:
        mean: Shape (latent,), a number, or a module with output (N, latent).
        scale: Standard deviations, > 0, shape (latent,) or a number; L, lower triangular with a
            positive diagonal, shape (latent, latent); or a module with output (N, latent), > 0.
        latent_dim: Size of z; needed if neither mean nor scale is a tensor that gives it.

    Raises:
        TypeError: mean or scale is not a tensor, number, function or module.
        ValueError: They are not finite, do not fit each other, or scale is not positive.

    Example:
        >>> prior = Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]))
        >>> prior.from_noise(torch.zeros(3, 2))[0]
        tensor([ 1., -1.])
    """

    def __init__(
        self,
        mean: Tensor | np.ndarray | float | Callable[[Any], Tensor],
        scale: Tensor | np.ndarray | float | Callable[[Any], Tensor],
        latent_dim: int | None = None,
    ) -> None:
        mean, scale = (
            numbers_in(part, name)
            if isinstance(part, Tensor | np.ndarray) and not isinstance(part, nn.Parameter)
            else part
            for part, name in ((mean, "mean"), (scale, "scale"))
        )
        sizes = [t.shape[-1] for t in (mean, scale) if isinstance(t, Tensor) and t.ndim]
        if latent_dim is None and not sizes:
            raise ValueError(
                "expected latent_dim=..., as neither mean nor scale is a tensor that gives the "
                "size of z"
            )
        super().__init__(sizes[0] if latent_dim is None else latent_dim)
        like = next((t for t in (mean, scale) if isinstance(t, Tensor)), torch.empty(0))
        self._put("mean", mean, like)
        self._put("scale", scale, like)
        self.takes_given = bool(self.networks())
        if isinstance(self.mean, Tensor):
            _check_mean(self.mean, self.latent_dim)
        if isinstance(self.scale, Tensor):
            _check_scale(self.scale, self.latent_dim)

    def from_noise(self, noise: Tensor, given: Covariates = None) -> Tensor:
        mean, scale = self.moments(given)
        return mean + (noise @ scale.mT if self._is_full else scale * noise)

    def to_noise(self, z: Tensor, given: Covariates = None) -> Tensor:
        mean, scale = self.moments(given)
        if not self._is_full:
            return (z - mean) / scale
        gaps = (z - mean).reshape(-1, self.latent_dim)
        return torch.linalg.solve_triangular(scale, gaps.mT, upper=False).mT.reshape(z.shape)

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        _, scale = self.moments(given)
        diagonal = scale.diagonal() if self._is_full else scale
        return standard_log_prob(self.to_noise(z, given)) - diagonal.log().sum(-1)

    def moments(self, given: Covariates = None) -> tuple[Tensor, Tensor]:
        """Mean and scale: as they were passed, or (N, latent) where a module computes them."""
        mean = self.mean(given) if isinstance(self.mean, nn.Module) else self.mean
        scale = self.scale(given) if isinstance(self.scale, nn.Module) else self.scale
        for name in self.networks():
            output = mean if name == "mean" else scale
            if output.shape[-1:] != (self.latent_dim,):
                raise ValueError(
                    f"expected {name} of {self.latent_dim} numbers for each query from its module, "
                    f"got shape {tuple(output.shape)}"
                )
        return mean, scale

    def networks(self) -> Mapping[str, nn.Module]:
        return {name: own for name, own in self.named_children() if name in ("mean", "scale")}

    def settings(self) -> dict[str, Any]:
        return {"latent_dim": self.latent_dim, "full": self._is_full}

    @classmethod
    def empty(cls, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> Self:
        prior = cls.__new__(cls)
        ContinuousPrior.__init__(prior, settings["latent_dim"])
        dim = prior.latent_dim
        shapes = {"mean": (dim,), "scale": (dim, dim) if settings["full"] else (dim,)}
        for name, shape in shapes.items():
            own = networks.get(name)
            prior._put(name, torch.empty(shape, device="meta") if own is None else own, None)
        prior.takes_given = bool(prior.networks())
        return prior

    @property
    def _is_full(self) -> bool:
        return isinstance(self.scale, Tensor) and self.scale.ndim == 2

    def _put(self, name: str, value: Any, like: Tensor | None) -> None:
        """Keep a module, a parameter, or numbers with the dtype and device of `like`."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and like is not None:
            value = like.new_full((self.latent_dim,), float(value))
        if isinstance(value, nn.Module):
            setattr(self, name, stacked(value, name))
        elif callable(value) and not isinstance(value, Tensor):
            setattr(self, name, Function(cast(Callable[[Any], Tensor], value)))
        elif isinstance(value, nn.Parameter):
            setattr(self, name, value)
        elif isinstance(value, Tensor):
            full = value if value.ndim else value.expand(self.latent_dim)
            self.register_buffer(name, full.detach().clone())
        else:
            raise TypeError(
                f"expected {name} to be a tensor, a number or a torch.nn.Module, got "
                f"{type(value).__name__}"
            )


def _check_mean(mean: Tensor, dim: int) -> None:
    if mean.shape != (dim,) or not mean.is_floating_point():
        raise ValueError(
            f"expected a mean of shape ({dim},) and a floating-point dtype, got "
            f"{tuple(mean.shape)} of {mean.dtype}"
        )
    if not mean.isfinite().all():
        raise ValueError("expected a finite mean of the prior, got NaN or infinity")


def _check_scale(scale: Tensor, dim: int) -> None:
    if scale.shape not in ((dim,), (dim, dim)) or not scale.is_floating_point():
        raise ValueError(
            f"expected a scale of shape ({dim},) or ({dim}, {dim}) and a floating-point dtype, got "
            f"{tuple(scale.shape)} of {scale.dtype}"
        )
    diagonal = scale if scale.ndim == 1 else scale.diagonal()
    if not (scale.isfinite().all() and (diagonal > 0).all()):
        worst = diagonal.min().item()
        got = f"{worst:.4g}" if math.isfinite(worst) and worst <= 0 else "NaN or infinity"
        raise ValueError(f"expected a finite scale of the prior, > 0, got {got}")
    if scale.ndim == 2 and scale.triu(1).any():
        raise ValueError(
            "expected a lower triangular scale matrix, got numbers above its diagonal; pass "
            "torch.linalg.cholesky(covariance)"
        )
