"""Stochastic lower and upper bounds on log p(x), for data simulated from the model.

Annealed importance sampling goes from the prior to p(z|x) through π_t ∝ p(z) p(x|z)^t:

    log w = Σ_k (t_k − t_{k−1}) log p(x|z_{k−1}),   E[w] = p(x),   so E[log w] ≤ log p(x)

The same chain run backwards, from an exact draw of p(z|x) to the prior, has E[1/w] = 1 / p(x), so
its log w is on average above log p(x). A simulated datum comes with such a draw: the z that it was
made from. The bounds hold on average; a single one may be on the wrong side. Averaging w and 1/w
over several chains keeps the inequalities and tightens the bounds.

Temperatures, step sizes and coordinates are chosen beforehand, from other draws, so that both
directions use the same reversible moves. t_k = t₀ sinh(a k / K) has steps of equal thermodynamic
length if Var_t(log p(x|z)) = (latent / 2) / (t₀² + t²), as for Gaussians.

Source: Neal (2001), Annealed importance sampling; Grosse, Ghahramani and Adams (2015), Sandwiching
the marginal likelihood using bidirectional Monte Carlo. Differs in: the temperatures; all backward
chains of one datum start at the same draw.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.calibration.discrete_sandwich import discrete_bounds
from crosscoding.methods.numerics.gradients import Points, evaluated
from crosscoding.methods.numerics.leapfrog import regularized_covariance
from crosscoding.methods.numerics.resampling import log_mean_of_islands
from crosscoding.random import normal, spawn, uniform
from crosscoding.target.base import Target
from crosscoding.target.discrete_target import DiscreteTarget
from crosscoding.target.vae_target import VAETarget

_NUM_CHAINS = 8
_NUM_LEAPFROG = 4
_NUM_TEMPERATURES = (50, 300)  # least and most; the gap is about length² / K per chain
_NUM_SPREAD = 64  # prior draws from which the spread of log p(x|z) is estimated
_WANTED_ACCEPTANCE, _ADAPTATION = 0.75, 0.7  # as in `methods.numerics.annealing`
_LONGEST = 0.5 * math.pi / _NUM_LEAPFROG  # step; longer paths on a round Gaussian turn back
_MOST_DIM = 128  # latent dimensions above which coordinates are only scaled, not rotated
_BLOCK_BYTES = 256 * 2**20  # approximate memory of one block of data
_HELD = 6  # values that a gradient keeps, relative to `row_values`: outputs of a few layers


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Stochastic bounds on log p(x) of N data, in nats; all of shape (N,).

    Attributes:
        lower, upper: Bounds, below and above log p(x) on average.
        lower_error, upper_error: Standard errors, from the spread of the chains.
    """

    lower: Tensor
    lower_error: Tensor
    upper: Tensor
    upper_error: Tensor

    @classmethod
    def of(cls, target: VAETarget, z: Tensor, draws: Tensor, *, generator: Generator) -> "Sandwich":
        """The bounds for a flat target of simulated data.

        Args:
            target: The target, of N data.
            z: The latent points that the data were made from, (N, latent).
            draws: Rough draws of p(z|x), (S, N, latent), from which coordinates are chosen;
                they need not be exact.
            generator: For all random numbers.
        """
        decoded = _NUM_CHAINS * _HELD * target.vae.row_values * z.element_size()
        each = max(decoded, target.query_bytes, 1)
        rows = torch.arange(len(z), device=z.device).split(max(_BLOCK_BYTES // each, 1))
        generators = spawn(generator, len(rows))
        parts = [
            _bounds(target.select(some).prepare(), z[some], draws[:, some], own)
            for some, own in zip(rows, generators, strict=True)
        ]
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def _bounds(
    target: Target, z: Tensor, draws: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if isinstance(target, DiscreteTarget):
        return discrete_bounds(target, z, generator=generator)
    for_path, for_pilot, for_lower, for_upper = spawn(generator, 4)
    path = _Path.to(target, draws, generator=for_path)
    shape = (_NUM_CHAINS, *z.shape)
    start = target.prior_scale * normal(shape, generator=for_pilot, like=z)
    steps, _ = path.forward(start, None, generator=for_pilot)
    start = target.prior_scale * normal(shape, generator=for_lower, like=z)
    _, log_weights = path.forward(start, steps, generator=for_lower)
    inverse = path.backward(z.expand(shape), steps, generator=for_upper)
    lower, lower_error = log_mean_of_islands(log_weights)
    upper, upper_error = log_mean_of_islands(inverse)
    return lower, lower_error, -upper, upper_error


@dataclass(frozen=True, eq=False)
class _Path:
    """The densities between the prior and p(z|x), and HMC moves that leave each of them invariant.

    Args:
        target: The target, flat.
        temperatures: t_0 = 0 to t_K = 1, shape (K + 1, N).
        precision: Of p(z|x) along the axes, (N, latent).
        axes: Unit vectors as columns, (N, latent, latent); None: the axes of z.
    """

    target: Target
    temperatures: Tensor
    precision: Tensor
    axes: Tensor | None

    @classmethod
    def to(cls, target: Target, draws: Tensor, *, generator: Generator) -> "_Path":
        """The path to p(z|x), given rough draws of it."""
        dim = target.latent_dim
        points = target.draw_prior(_NUM_SPREAD, generator=generator)
        log_likelihood = target.log_likelihood(points[:, None].expand(-1, draws.shape[1], -1))
        low, high = log_likelihood.quantile(torch.tensor([0.16, 0.84]).to(log_likelihood), dim=0)
        spread = (0.5 * (high - low)).nan_to_num(nan=1.0, posinf=1e30).clamp_min(1e-3)
        first = math.sqrt(dim / 2) / spread
        length = (1 / first).asinh()
        least, most = _NUM_TEMPERATURES
        num = int(min(max(0.5 * dim * length.square().median().item(), least), most))
        steps = torch.linspace(0, 1, num + 1).to(draws)[:, None]
        temperatures = (first * (length * steps).sinh()).clamp(0.0, 1.0)
        temperatures[-1] = 1.0
        covariance = regularized_covariance(draws, 1e-10) / target.prior_scale**2
        if dim > _MOST_DIM:
            return cls(target, temperatures, 1 / covariance.diagonal(dim1=-2, dim2=-1), None)
        variance, axes = torch.linalg.eigh(covariance.double())
        precision = 1 / variance.clamp_min(1e-10)
        return cls(target, temperatures, precision.to(draws), axes.to(draws))

    def forward(
        self, z: Tensor, steps: Tensor | None, *, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Anneal points of the prior (C, N, latent) to p(z|x).

        Args:
            z: The points.
            steps: Step sizes, (K, N); None: they adapt to the acceptance.
            generator: For the moves.
        Returns:
            The step sizes used, (K, N), and log w, (C, N).
        """
        used, step = [], torch.full_like(self.temperatures[0], _LONGEST)
        log_weights = z.new_zeros(z.shape[:2])
        for k, (before, after) in enumerate(
            zip(self.temperatures[:-1], self.temperatures[1:], strict=True)
        ):
            gain = (after - before) * self.target.log_likelihood(z, checked=False)
            log_weights = log_weights + gain.nan_to_num(nan=-math.inf)
            step = step if steps is None else steps[k]
            z, acceptance = self._move(z, after, step, generator)
            used.append(step)
            if steps is None:
                change = (_ADAPTATION * (acceptance - _WANTED_ACCEPTANCE)).exp()
                step = (step * change).clamp_max(_LONGEST)
        return torch.stack(used), log_weights

    def backward(self, z: Tensor, steps: Tensor, *, generator: Generator) -> Tensor:
        """−log w of the same chains run from points of p(z|x) to the prior, (C, N)."""
        log_weights = z.new_zeros(z.shape[:2])
        for k in reversed(range(len(steps))):
            before, after = self.temperatures[k], self.temperatures[k + 1]
            z, _ = self._move(z, after, steps[k], generator)
            gain = (after - before) * self.target.log_likelihood(z, checked=False)
            log_weights = log_weights - gain.nan_to_num(nan=-math.inf)
        return log_weights

    def _move(
        self, z: Tensor, temperature: Tensor, step: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """One HMC move of z (C, N, latent) on π_t, and its mean acceptance, (N,).

        Unlike `leapfrog.Move`, every datum has its own noise, as bounds are averaged over data.
        """
        scale = self.target.prior_scale * (1 - temperature[:, None] * (1 - self.precision)).rsqrt()

        def log_density(points: Tensor) -> Tensor:
            likelihood = self.target.log_likelihood(points, checked=False)
            return self.target.log_prior(points) + temperature * likelihood

        start = momentum = normal(z.shape, generator=generator, like=z)
        points = end = evaluated(self.target, log_density, z)
        step = step[:, None]
        for _ in range(_NUM_LEAPFROG):
            momentum = momentum + 0.5 * step * scale * self._along(end.gradient)
            end = evaluated(self.target, log_density, end.z + step * self._back(scale * momentum))
            momentum = momentum + 0.5 * step * scale * self._along(end.gradient)
        gain = end.log_density - points.log_density
        gain = gain - 0.5 * (momentum.square() - start.square()).sum(-1)
        acceptance = gain.nan_to_num(nan=-math.inf).clamp_max(0).exp()
        accepted = uniform(acceptance.shape, generator=generator, like=z) < acceptance
        moved: Points = points.where(accepted, end)
        return moved.z, acceptance.mean(0)

    def _along(self, z: Tensor) -> Tensor:
        """Coordinates along the axes."""
        return z if self.axes is None else torch.einsum("nij,cni->cnj", self.axes, z)

    def _back(self, along: Tensor) -> Tensor:
        """The vectors with given coordinates along the axes."""
        return along if self.axes is None else torch.einsum("nij,cnj->cni", self.axes, along)
