"""What a cross-coder is: a distribution q(z|x) whose draws are z = XCoder_ψ(ε) with ε normal.

Most are one map of the noise, a `Map`; a mixture is several. A `Crosscoder` is a frozen
description without parameters. The parameters ψ are tensors by name, each with a leading batch
dimension, so that thousands of queries are fitted at once. `Fitted` pairs the two: a distribution
q(z|x) for each query.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.weighted_draws import WeightedDraws
from crosscoding.errors import ModelFormatError
from crosscoding.persistence.folder import Contents
from crosscoding.random import normal

Params = dict[str, Tensor]

_STEPS, _LEARNING_RATE = 300, 0.03  # for fits to draws; the tests' flows end within 0.01 nats


class WarmStart(Enum):
    """Where a fit by Algorithm 1 starts."""

    MOMENTS = "from the moments of weighted prior draws"
    BEND = "from a map that carries noise to such draws, in few dimensions"
    FIT = "from a fit to such draws"


class Crosscoder(ABC):
    """A family of distributions over z, each made from standard normal noise ε.

    Attributes:
        has_density: Whether log q is exact. Only then is the C-ELBO a lower bound, and the density
            known at any z.
        usual_num_draws: Default number of draws of ε per step of Algorithm 1. Richer families need
            more, because they can fold onto a few draws.
        usual_learning_rate: Default initial learning rate of Adam in Algorithm 1. At a higher one,
            a family that starts at the posterior's modes can lose them.
        warm_start: How Algorithm 1 finds its start (`methods.numerics.variational_starts`).
    """

    has_density: ClassVar[bool] = True

    usual_num_draws: ClassVar[int] = 128
    usual_learning_rate: ClassVar[float] = 0.01
    warm_start: ClassVar[WarmStart] = WarmStart.FIT

    @abstractmethod
    def start(self, mean: Tensor, scale: Tensor, *, generator: Generator) -> Params:
        """Parameters ψ of a member close to N(mean, diag scale²).

        Args:
            mean, scale: Shape (B, dim), scale > 0.
            generator: For parameters that must start at random; the same for the whole batch.
        Returns:
            Each parameter by name, shape (B, …).
        """

    @abstractmethod
    def weighted_draws(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted draws that together represent q: E_q[f] = E_ε[Σ_s exp(log_weights_s) f(z_s)].

        The equation holds for every ψ, so the gradients through all three outputs are those of
        E_q[f].

        Args:
            params: ψ, each tensor of shape (B, …).
            eps: Standard normal noise, shape (S, B, dim).
        Returns:
            z, (S, B, dim); log q(z|x) in nats, (S, B); and log_weights, (S, B), whose exponentials
            sum to 1 over S.
        """

    def draws(self, params: Params, eps: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of equal weight, z (S, B, dim), and log q(z|x) in nats, (S, B).

        Args:
            params: ψ, each tensor of shape (B, …).
            eps: Standard normal noise, shape (S, B, dim).
            generator: For randomness besides ε; the same for the whole batch.
        """
        z, log_q, _ = self.weighted_draws(params, eps)
        return z, log_q

    @abstractmethod
    def log_prob(self, params: Params, z: Tensor) -> Tensor:
        """log q(z|x) in nats, normalised; z (*sample, B, dim) -> (*sample, B)."""

    def fit_to(
        self, draws: WeightedDraws, *, generator: Generator, tick: Callable[[], None]
    ) -> Params:
        """ψ that maximises Σ_s w_s log q(z_s|x), by Adam; override it if a family has a better way.

        Args:
            draws: Draws of p(z|x) and their weights.
            generator: For random starts; the same for the whole batch.
            tick: Called before every round of a fit that has rounds.
        """
        params = self.start(draws.mean, draws.scale, generator=generator)
        points, weights = draws.points.transpose(0, 1).detach(), draws.weights.mT
        packed, layout = pack(params)

        def loss(psi: Tensor) -> Tensor:
            return -(weights * self.log_prob(unpack(psi, layout), points)).sum()

        return unpack(adam(loss, packed, _STEPS, _LEARNING_RATE), layout)


class Map(Crosscoder):
    """A family of maps from noise ε (*sample, B, dim) to z (*sample, B, dim)."""

    warm_start = WarmStart.BEND

    @abstractmethod
    def forward_and_ladj(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z = XCoder(ε), shape of eps, and log |det ∇XCoder(ε)|, shape eps.shape[:-1]."""

    def inverse_and_ladj(self, params: Params, z: Tensor) -> tuple[Tensor, Tensor]:
        """ε with XCoder(ε) = z, and log |det ∇XCoder(ε)| there, if the map is one-to-one."""
        raise NotImplementedError(
            f"{type(self).__name__} is not one-to-one: it has no density at a given z; "
            "use Gaussian or Planar if you need log_prob"
        )

    def weighted_draws(self, params: Params, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, ladj = self.forward_and_ladj(params, eps)
        return z, base_log_prob(eps) - ladj, torch.full_like(ladj, -math.log(max(len(eps), 1)))

    def log_prob(self, params: Params, z: Tensor) -> Tensor:
        eps, ladj = self.inverse_and_ladj(params, z)
        return base_log_prob(eps) - ladj


@dataclass(frozen=True, eq=False)
class Fitted:
    """A cross-coder with its parameters: q(z|x) for each query.

    Args:
        crosscoder: The family.
        params: ψ, each tensor of shape (B, …).
        dim: Size of z.
    """

    crosscoder: Crosscoder
    params: Params
    dim: int

    def rsample_and_log_prob(self, num: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws z of equal weight, (num, B, dim), and log q(z|x) in nats, (num, B).

        For a cross-coder that is not one-to-one, the second is not a density: it counts only one of
        the several ε that reach z.
        """
        like = next(iter(self.params.values()))
        eps = normal((num, 1, self.dim), generator=generator, like=like)
        eps = eps.expand(num, len(like), self.dim)
        return self.crosscoder.draws(self.params, eps, generator=generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) in nats, normalised; z (*sample, B, dim) -> (*sample, B).

        Raises:
            NotImplementedError: The cross-coder is not one-to-one.
        """
        return self.crosscoder.log_prob(self.params, z)

    def select(self, index: Tensor) -> "Fitted":
        """The fits of some queries."""
        params = {name: tensor[index] for name, tensor in self.params.items()}
        return Fitted(self.crosscoder, params, self.dim)

    @staticmethod
    def joined(fits: "Sequence[Fitted]") -> "Fitted":
        """The fits of several blocks of queries by one family, concatenated."""
        first = fits[0]
        params = {name: torch.cat([fit.params[name] for fit in fits]) for name in first.params}
        return Fitted(first.crosscoder, params, first.dim)

    def to_parts(self) -> Contents:
        """The parameters, and the family by name with its settings."""
        return self.params, family_to_json(self.crosscoder) | {"dim": self.dim}

    @staticmethod
    def family(name: str, settings: Mapping[str, Any]) -> Crosscoder:
        """The family of this name with these settings; a LookupError or TypeError if unknown."""
        families = {family.__name__: family for family in _families(Crosscoder)}
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return families[name](**plain)

    @classmethod
    def from_parts(cls, parts: Contents) -> "Fitted":
        """What `to_parts` described.

        Raises:
            ModelFormatError: The family is unknown, or the parameters are not its own.
        """
        params, description = parts
        try:
            crosscoder = cls.family(description["name"], description["settings"])
            like = next(iter(params.values()))
            ones = like.new_ones(len(like), int(description["dim"]))
            wanted = crosscoder.start(ones, ones, generator=Generator())
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            StopIteration,
            RuntimeError,
        ) as error:
            raise ModelFormatError(f"expected a known cross-coder, got {description}") from error
        if {k: v.shape for k, v in params.items()} != {k: v.shape for k, v in wanted.items()}:
            raise ModelFormatError(f"expected the parameters of {crosscoder}, got others")
        return cls(crosscoder, params, ones.shape[-1])


def family_to_json(crosscoder: Crosscoder) -> dict[str, Any]:
    """The name and settings of a family, from which `Fitted.family` makes it."""
    settings = {f.name: getattr(crosscoder, f.name) for f in fields(crosscoder)}  # pyright: ignore[reportArgumentType]
    return {"name": type(crosscoder).__name__, "settings": settings}


def _families(above: type[Crosscoder]) -> list[type[Crosscoder]]:
    """All subclasses of a class, abstract ones such as `Map` included."""
    below = above.__subclasses__()
    return below + [family for child in below for family in _families(child)]


def base_log_prob(eps: Tensor) -> Tensor:
    """log N(ε; 0, I) in nats, summed over the last dimension."""
    return -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1)


def small_normal(*shape: int, scale: float, generator: Generator, like: Tensor) -> Tensor:
    """Random first parameters: standard normal times scale, the same for every query."""
    noise = normal((1, *shape), generator=generator, like=like) * scale
    return noise.expand(len(like), *shape).clone()


def small_normals(
    shapes: Mapping[str, tuple[Sequence[int], float]], *, generator: Generator, like: Tensor
) -> Params:
    """`small_normal` for several parameters, each by its shape and scale."""
    return {
        name: small_normal(*shape, scale=scale, generator=generator, like=like)
        for name, (shape, scale) in shapes.items()
    }


def affine_start(mean: Tensor, scale: Tensor) -> Params:
    """The parameters of `bijections.affine` for L = diag(scale) and b = mean, both (B, dim)."""
    lower = mean.new_zeros(*mean.shape, mean.shape[-1])
    return {"shift": mean.clone(), "log_diagonal": scale.log(), "lower": lower}


def pack(params: Params) -> tuple[Tensor, list[tuple[str, torch.Size]]]:
    """All of ψ in one tensor (B, P), and the layout that `unpack` needs to split it."""
    layout = [(name, tensor.shape[1:]) for name, tensor in params.items()]
    return torch.cat([tensor.flatten(1) for tensor in params.values()], dim=1), layout


def unpack(packed: Tensor, layout: list[tuple[str, torch.Size]]) -> Params:
    """The inverse of `pack`: views into packed, (B, P)."""
    pieces = packed.split([shape.numel() for _, shape in layout], dim=1)
    return {
        name: piece.reshape(len(packed), *shape)
        for (name, shape), piece in zip(layout, pieces, strict=True)
    }


def root_params(root: Tensor) -> Params:
    """The parameters of `bijections.affine` for a Cholesky factor L."""
    log_diagonal = root.diagonal(dim1=-2, dim2=-1).log()
    return {"log_diagonal": log_diagonal, "lower": root.tril(-1)}


def unstandardised(params: Params, mean: Tensor, scale: Tensor) -> Params:
    """Parameters of the Gaussian of mean + scale · z, from those of the Gaussian of z."""
    moved = {
        "shift": mean + scale * params["shift"],
        "log_diagonal": params["log_diagonal"] + scale.log(),
    }
    if "lower" in params:
        moved["lower"] = scale.unsqueeze(-1) * params["lower"]
    return params | moved  # the factor of a low-rank Gaussian is relative to its diagonal


@torch.enable_grad()
def adam(
    loss: Callable[[Tensor], Tensor], packed: Tensor, steps: int, learning_rate: float
) -> Tensor:
    """Minimise a loss of ψ, packed (B, P), by Adam with a learning rate that falls to 0."""
    psi = packed.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([psi], lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(psi).backward()
        optimizer.step()
        schedule.step()
    return psi.detach()
