"""One-to-one maps as modules, whatever library they come from.

Each has `forward_and_ladj(noise) -> (z, ladj)` and `inverse_and_ladj(z) -> (noise, ladj)`, for
noise and z of shape (*sample, latent), where ladj is log |det dz/dnoise|. `as_map` makes one from

| what | how it is read |
| --- | --- |
| a fitted cross-coder of one query | its map and parameters |
| a module with the two methods above | as it is |
| a sequence of maps | applied one after the other |
| a `torch.distributions.Transform` | the transform of noise |
| a `TransformedDistribution` whose base is normal | its base's location and scale, its transforms |
| a flow of zuko, a module that makes distributions | the same, of the distribution it makes |
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributions, nn
from torch.distributions.constraints import real_vector

from crosscoding.crosscoders import Fitted
from crosscoding.crosscoders.base import Map


class OneToOne(Protocol):
    """The two methods of a one-to-one map of noise."""

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z, (*sample, latent), and ladj, (*sample)."""
        ...

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that is mapped to z, and ladj there."""
        ...


def as_map(flow: Any) -> nn.Module:
    """A module with `forward_and_ladj` and `inverse_and_ladj`.

    Raises:
        TypeError: It is none of the kinds above.
        ValueError: A fitted cross-coder is not one-to-one, or fitted to several queries; or the
            base of a distribution is not normal.
    """
    if isinstance(flow, Fitted):
        return FittedMap(flow)
    if isinstance(flow, nn.Module):
        if hasattr(flow, "forward_and_ladj") and hasattr(flow, "inverse_and_ladj"):
            return flow
        return MadeMap(flow)
    if isinstance(flow, (list, tuple)) and flow:
        return Chain([as_map(part) for part in cast("Sequence[Any]", flow)])
    if isinstance(flow, distributions.Transform):
        return TransformMap(flow)
    if isinstance(flow, distributions.Distribution):
        return DistributionMap(flow)
    raise TypeError(
        "expected a fitted cross-coder, a module with forward_and_ladj and inverse_and_ladj, a "
        "torch.distributions.TransformedDistribution, a flow of zuko, or a list of these, got "
        f"{type(flow).__name__}"
    )


class FittedMap(nn.Module):
    """The map of a cross-coder that was fitted to one batch of draws, such as a planar flow."""

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        if not isinstance(fitted.crosscoder, Map) or not fitted.crosscoder.has_density:
            raise ValueError(
                "expected a cross-coder that is a single one-to-one map, as Planar() or Spline(), "
                f"got {type(fitted.crosscoder).__name__}"
            )
        self.family: Map = fitted.crosscoder
        self.dim, self.kind = fitted.dim, fitted.to_parts()[1]
        for name, tensor in fitted.params.items():
            if len(tensor) != 1:
                raise ValueError(
                    f"expected a cross-coder fitted to one query, got one of {len(tensor)}; pick "
                    "one with fitted.select(torch.tensor([0]))"
                )
            self.register_buffer(name, tensor.detach().clone())

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, ladj = self.family.forward_and_ladj(dict(self.named_buffers()), noise.unsqueeze(-2))
        return z.squeeze(-2), ladj.squeeze(-1)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise, ladj = self.family.inverse_and_ladj(dict(self.named_buffers()), z.unsqueeze(-2))
        return noise.squeeze(-2), ladj.squeeze(-1)


class Chain(nn.Module):
    """Maps applied one after the other, the first to the noise."""

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, ladj = noise, noise.new_zeros(noise.shape[:-1])
        for part in self.maps:
            z, step = cast(OneToOne, part).forward_and_ladj(z)
            ladj = ladj + step
        return z, ladj

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise, ladj = z, z.new_zeros(z.shape[:-1])
        for part in reversed(list(self.maps)):
            noise, step = cast(OneToOne, part).inverse_and_ladj(noise)
            ladj = ladj + step
        return noise, ladj


class TransformMap(nn.Module):
    """A transform of `torch.distributions`, elementwise or of vectors."""

    def __init__(self, transform: distributions.Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z: Tensor = self.transform(noise)  # pyright: ignore[reportAssignmentType]
        return z, _ladj(self.transform, noise, z)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise: Tensor = self.transform.inv(z)  # pyright: ignore[reportAssignmentType]
        return noise, _ladj(self.transform, noise, z)


class DistributionMap(nn.Module):
    """A distribution that is a transformed normal one."""

    def __init__(self, distribution: Any) -> None:
        super().__init__()
        self._distribution = distribution
        _check_event(distribution)
        _transforms_of(distribution)

    @property
    def dim(self) -> int:
        """Size of z."""
        return int(self.distribution.event_shape[0])

    @property
    def distribution(self) -> Any:
        """The distribution; a module that makes it is called each time."""
        return self._distribution

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return _chained(_transforms_of(self.distribution), noise)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        transforms = _transforms_of(self.distribution)
        noise, ladj = z, z.new_zeros(z.shape[:-1])
        for transform in reversed(transforms):
            before: Tensor = transform.inv(noise)  # pyright: ignore[reportAssignmentType]
            ladj, noise = ladj + _ladj(transform, before, noise), before
        return noise, ladj


class MadeMap(DistributionMap):
    """A module that makes a distribution when called without arguments, as flows of zuko do."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module
        try:
            made = self.distribution
        except Exception as error:  # a user's module may raise anything
            raise TypeError(
                "expected a module with forward_and_ladj and inverse_and_ladj, or one that makes a "
                f"distribution when it is called without arguments, got {type(module).__name__}: "
                f"{error}"
            ) from error
        _check_event(made)
        _transforms_of(made)

    @property
    def distribution(self) -> Any:
        return self.module()


class _Affine(distributions.Transform):
    """z = L ε + b with L lower triangular."""

    domain = codomain = real_vector
    bijective = True

    def __init__(self, shift: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.shift, self.matrix = shift, matrix

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        gaps = (y - self.shift).reshape(-1, y.shape[-1])
        return torch.linalg.solve_triangular(self.matrix, gaps.mT, upper=False).mT.reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.matrix.diagonal().abs().log().sum().expand(x.shape[:-1])


def _check_event(distribution: Any) -> None:
    if not isinstance(distribution, distributions.Distribution):
        raise TypeError(
            "expected a module that makes a torch distribution when it is called without "
            f"arguments, got {type(distribution).__name__}"
        )
    event, batch = tuple(distribution.event_shape), tuple(distribution.batch_shape)
    if len(event) != 1 or batch:
        raise ValueError(
            "expected a distribution of vectors z, with event shape (latent,) and no batch shape, "
            f"got event shape {event} and batch shape {batch}; wrap it in "
            "torch.distributions.Independent"
        )


def _transforms_of(distribution: Any) -> list[distributions.Transform]:
    """The transforms that turn standard normal noise into the distribution, in order."""
    own = vars(distribution)
    if isinstance(distribution, distributions.TransformedDistribution):
        return [*_transforms_of(distribution.base_dist), *distribution.transforms]
    if isinstance(distribution, distributions.Independent):
        return _transforms_of(distribution.base_dist)
    if isinstance(distribution, distributions.Normal):
        return [distributions.AffineTransform(distribution.loc, distribution.scale)]
    if isinstance(distribution, distributions.MultivariateNormal):
        return [_Affine(distribution.loc, distribution.scale_tril)]
    if "transform" in own and "base" in own:  # zuko's transform goes from z to noise
        return [*_transforms_of(own["base"]), own["transform"].inv]
    raise ValueError(
        f"expected a flow whose base distribution is normal, got {type(distribution).__name__}"
    )


def _chained(transforms: Sequence[distributions.Transform], noise: Tensor) -> tuple[Tensor, Tensor]:
    z, ladj = noise, noise.new_zeros(noise.shape[:-1])
    for transform in transforms:
        after: Tensor = transform(z)  # pyright: ignore[reportAssignmentType]
        ladj, z = ladj + _ladj(transform, z, after), after
    return z, ladj


def _ladj(transform: distributions.Transform, noise: Tensor, z: Tensor) -> Tensor:
    """log |det| summed over the vector, also for an elementwise transform."""
    ladj: Tensor = transform.log_abs_det_jacobian(noise, z)  # pyright: ignore[reportAssignmentType]
    return ladj if ladj.ndim < noise.ndim else ladj.sum(-1)
