"""A target without a VAE: any density of z, for use with the methods for VAEs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosscoding.clock import UNLIMITED
from crosscoding.errors import NonFiniteError, counted
from crosscoding.isolation import isolated
from crosscoding.model.bank import MAX_POINTS, prior_points
from crosscoding.target.base import Target

_BEYOND = 3.0  # added to √latent: the probability of a longer draw is 6e-5 to 1e-5 (D = 1 to ∞)
_BANK_SHARE = 0.25  # of the time left, for evaluating the bank
_AT_ONCE = 256  # points per query between two checks of the time limit


class DensityTarget(Target):
    """A target without a VAE: any unnormalised density of z.

    It is split into a prior N(0, prior_scale² I) and the rest, so every method runs on it as on a
    VAE, including those that start from the prior.

    Args:
        log_density: Maps z (*sample, *batch, latent) to log-densities (*sample, *batch). If torch
            cannot differentiate it, its gradient counts as 0, and gradient-based moves become a
            random walk.
        latent_dim: Size of z.
        prior_scale: Standard deviation of the prior; wide enough to cover all modes.
        like: Tensor whose dtype and device to use; by default float32 on the CPU.

    Attributes:
        kept: Cached results computed from the density, by name.

    Example:
        >>> target = DensityTarget(lambda z: -z.square().sum(-1), latent_dim=2)
        >>> target.log_joint(torch.ones(3, 2))
        tensor([-2., -2., -2.])
    """

    @isolated
    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        latent_dim: int,
        *,
        prior_scale: float = 1.0,
        like: Tensor | None = None,
    ) -> None:
        if latent_dim < 1 or not prior_scale > 0:
            raise ValueError(
                f"expected latent_dim >= 1 and prior_scale > 0, got {latent_dim} and {prior_scale}"
            )
        self.log_density = log_density
        self.latent_dim = latent_dim
        self.prior_scale = float(prior_scale)
        like = torch.empty(0, dtype=torch.float32) if like is None else like
        self.like = like.new_empty(0)
        self.batch_shape = torch.Size()
        self.kept: dict[str, Any] = {}
        self._found = {"undefined": False}  # shared by all that is selected from one flat target

    @property
    def undefined(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the density was NaN or +inf somewhere far out; the same for all queries, (B,)."""
        found = self._found["undefined"] or self.kept.get("undefined", False)
        return torch.full(self.batch_shape, found, dtype=torch.bool, device=self.like.device)

    @property
    def _far(self) -> float:
        """Distance from 0 beyond which hardly any prior draw lies."""
        return (math.sqrt(self.latent_dim) + _BEYOND) * self.prior_scale

    @property
    def operations(self) -> float:
        return 100.0 * self.latent_dim  # a guess: the cost of a density is unknown

    @isolated
    def log_joint(self, z: Tensor, *, checked: bool = True) -> Tensor:
        in_pieces = self.clock.is_limited and z.ndim > 1 + len(self.batch_shape) and len(z) > 1
        if not in_pieces:
            return self._log_joint(z, checked)
        slices = self.clock.slices(len(z), _AT_ONCE, "points")
        return torch.cat([self._log_joint(z[some], checked) for some in slices])

    def _log_joint(self, z: Tensor, checked: bool) -> Tensor:
        self.clock.tick()
        result = self.log_density(z)
        if result.shape != z.shape[:-1]:
            raise ValueError(
                f"expected log_density to map z of shape {tuple(z.shape)} to shape "
                f"{tuple(z.shape[:-1])}, got {tuple(result.shape)}; sum over the last dimension"
            )
        if result.dtype != z.dtype:
            raise ValueError(
                f"expected log_density to return the dtype of z, {z.dtype}, got {result.dtype}; "
                f"give its tensors that dtype, or DensityTarget(..., like=torch.empty(0, "
                f"dtype={result.dtype}))"
            )
        if z.requires_grad and torch.is_grad_enabled() and not result.requires_grad:
            result = result + 0 * z.sum(-1)  # a constant, or code that torch cannot trace
        wrong = result.isnan() | (result == math.inf)
        if wrong.any():
            far = z.detach().norm(dim=-1) > self._far
            self._found["undefined"] |= bool((wrong & far).any())
            result = torch.where(wrong & far, -math.inf, result)
            wrong = wrong & ~far
        if checked and wrong.any():
            place = z.detach()[wrong][0].norm()
            found = "NaN" if result[wrong].isnan().any() else "infinity"
            raise NonFiniteError(
                f"expected a finite log-density, got {found} from log_density at "
                f"{int(wrong.sum())} of {counted(wrong.numel(), 'point')}, the first at "
                f"|z| = {place:.3g}"
            )
        return result

    @isolated
    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self.log_joint(z, checked=checked) - self.log_prior(z)

    @isolated
    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        one_batch = z.reshape(len(z), *[1] * len(self.batch_shape), self.latent_dim)
        return self.log_likelihood(one_batch).expand(len(z), *self.batch_shape)

    @isolated
    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        num = min(MAX_POINTS, self.bank_points)
        points = self.prior_scale * prior_points(num, self.latent_dim, self.like)
        log_likelihood = self.in_time(lambda target, z: target.pairwise_log_likelihood(z), points)
        return points[: len(log_likelihood)], log_likelihood

    def in_time(
        self, evaluate: "Callable[[DensityTarget, Tensor], Tensor]", points: Tensor
    ) -> Tensor:
        """Evaluate a function of points (N, latent), in order, at as many as time allows.

        The first point is always evaluated, however late it is.
        """
        if not self.clock.is_limited:
            return evaluate(self, points)
        first = self.timed(UNLIMITED)
        assert isinstance(first, DensityTarget)
        stop, pieces = self.clock.within(_BANK_SHARE), [evaluate(first, points[:1])]
        for some in self.clock.slices(len(points) - 1, _AT_ONCE, "bank"):
            if stop():
                break
            pieces.append(evaluate(self, points[1:][some]))
        return torch.cat(pieces)

    @isolated
    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self.log_likelihood(z)

    @isolated
    def curvature(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_joint(z).sum(), z, create_graph=True)
            if not gradient.requires_grad:  # a linear density
                return z.new_zeros(*z.shape, self.latent_dim, dtype=torch.double)
            rows = []
            for column in gradient.unbind(-1):
                self.clock.tick()
                rows.append(torch.autograd.grad(column.sum(), z, retain_graph=True)[0])
        hessian = torch.stack(rows, -2).detach().double()
        return -0.5 * (hessian + hessian.mT)

    @isolated
    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        """By central differences of the gradient, which need not be differentiable."""
        step = torch.finfo(z.dtype).eps ** (1 / 3)
        shift = step * directions.to(z)
        with torch.enable_grad():
            both = torch.stack([z - shift, z + shift]).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_joint(both).sum(), both)
        behind, ahead = gradient.double()
        return (behind - ahead) / (2 * step)

    def flatten(self) -> "DensityTarget":
        flat = self.select(torch.zeros(self.num_queries, dtype=torch.long, device=self.like.device))
        flat._found = {"undefined": False}
        return flat

    def select(self, index: Tensor) -> "DensityTarget":
        flat = DensityTarget(
            self.log_density, self.latent_dim, prior_scale=self.prior_scale, like=self.like
        )
        flat.kept, flat._found = self.kept, self._found
        flat.index = index if self.index is None else self.index[index]
        flat.batch_shape, flat.clock, flat.bank_points = index.shape, self.clock, self.bank_points
        return flat
