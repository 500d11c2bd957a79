"""The particles of `whitened_bridge`, and how they move.

    v = R⁻¹ (z − m),   ε as large as is accepted often enough,   L = ⌈(π / 2) / ε⌉ steps

R makes p(z|x) roughly round, so a trajectory of a quarter of a period, the longest that does not
turn back, takes L steps; near the Gaussian few are enough. Trajectories follow coarse gradients
where the device has fast ones, and are accepted by the exact density.

Source: Neal (2011), section 5.2, for the moves.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.methods.numerics.bridge import Bridge
from crosscoding.methods.numerics.gradients import Density, Points, evaluated
from crosscoding.methods.numerics.leapfrog import JITTER, Move
from crosscoding.methods.numerics.resampling import (
    bounded,
    next_temperature,
    systematic,
    taken,
)
from crosscoding.random import uniform

_QUARTER, _ROUNDING = 0.5 * math.pi, 1e-3
# Steps of the first trajectories, and the fewest: near the Gaussian, 3 are accepted as often as
# wanted, and 2 are not (decision 0010).
_FIRST_STEPS, _FEWEST_STEPS = 4, 3
_OF_DECODE = 1 / 3  # gradients that log p(z, x) alone costs


@dataclass(eq=False)
class BridgeParticles:
    """Particles z (S, B, latent) of the queries that are not finished.

    `slope` is the gradient of log p(z, x) there, shaped like z; coarse, if the device has fast
    coarse gradients.
    """

    bridge: Bridge
    coarse: Bridge
    most_steps: int
    index: Tensor
    root: Tensor
    factor: Tensor
    z: Tensor
    slope: Tensor
    log_joint: Tensor
    log_q: Tensor
    log_islands: Tensor
    temperature: Tensor
    step_size: Tensor
    decodes: Tensor
    stuck: Tensor

    @classmethod
    def start(cls, bridge: Bridge, num_islands: int, most_steps: int) -> "BridgeParticles":
        z, log_weights = bridge.log_likelihood_of_bank()
        log_q = bridge.log_prior(z)
        cold, coarse = torch.zeros_like(log_q[0]), bridge.coarse()
        root = gaussian_root(bridge.proposal)
        return cls(
            bridge=bridge,
            coarse=coarse,
            most_steps=most_steps,
            index=torch.arange(len(cold), device=z.device),
            root=root,
            factor=root,
            z=z,
            slope=_slope(coarse, z),
            log_joint=bounded(log_weights.nan_to_num(nan=-math.inf)) + log_q,
            log_q=log_q,
            log_islands=z.new_zeros(num_islands, len(cold)),
            temperature=cold,
            step_size=torch.full_like(cold, _QUARTER / _FIRST_STEPS),
            decodes=torch.full_like(cold, len(z)),
            stuck=cold > 0,
        )

    def sharpen(self, ess_share: float, *, generator: Generator) -> None:
        """Raise the temperature, and resample each island by the new weights."""
        log_ratio, islands = self.log_joint - self.log_q, len(self.log_islands)
        sharper = next_temperature(log_ratio, self.temperature, ess_share * len(self.z))
        gain = (sharper - self.temperature) * bounded(log_ratio)
        gain = gain.unflatten(0, (islands, -1)).transpose(0, 1)
        self.log_islands = self.log_islands + gain.logsumexp(0) - math.log(len(gain))
        offset = uniform((islands, 1), generator=generator, like=self.z)
        index = systematic(gain, offset, len(gain))
        self.z, self.slope, self.log_joint, self.log_q = (
            taken(part.unflatten(0, (islands, -1)).transpose(0, 1), index)
            .transpose(0, 1)
            .flatten(0, 1)
            for part in (self.z, self.slope, self.log_joint, self.log_q)
        )
        self.temperature = sharper

    @property
    def num_steps(self) -> Tensor:
        """Steps that make a quarter of a period, or the most allowed, (B,)."""
        wanted = (_QUARTER / self.step_size - _ROUNDING).ceil()
        return wanted.clamp_max(self.most_steps)

    def adapt(self, change: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Multiply step sizes of some queries by factors, up to those of the fewest steps."""
        step_size = self.step_size.clone()
        step_size[rows] = (step_size[rows] * change).clamp_max(_QUARTER / _FEWEST_STEPS)
        self.step_size = step_size

    @property
    def gradients(self) -> Tensor:
        """What a move costs at each particle, in gradients, (B,)."""
        return self.num_steps + (0.0 if self.coarse is self.bridge else _OF_DECODE)

    def moved(self, *, generator: Generator) -> tuple[Points, Tensor]:
        """Points after one move on π_t, but with log p(z, x), and the acceptance probabilities.

        Queries whose trajectories have the same number of steps move together.
        """
        num_steps, start = self.num_steps, generator.get_state()
        z, log_joint, slope = self.z.clone(), self.log_joint.clone(), self.slope.clone()
        accepted = torch.zeros_like(log_joint)
        for num in num_steps.unique().tolist():
            rows = (num_steps == num).nonzero()[:, 0]
            generator.set_state(start)  # as if each query were alone
            some = self if len(rows) == len(num_steps) else self.only(rows)
            points, accepted[:, rows] = some._moved_in(int(num), generator)
            z[:, rows], log_joint[:, rows] = points.z, points.log_density
            slope[:, rows] = points.gradient
        return Points(z, log_joint, slope), accepted

    def _moved_in(self, num_steps: int, generator: Generator) -> tuple[Points, Tensor]:
        """`moved`, in a number of steps."""
        t, rest = self.temperature, 1 - self.temperature
        here = Points(
            self.z,
            t * self.log_joint + rest * self.log_q,
            t[:, None] * self.slope + rest[:, None] * self._slope_of_q(self.z),
        )
        coarse = None if self.coarse is self.bridge else _density(self.coarse, t)
        move = Move(self.bridge, _density(self.bridge, t), self.factor, num_steps, coarse)
        step_size = self.step_size.clamp_max(_QUARTER / num_steps)
        points, accepted = move(here, step_size, JITTER, generator=generator)
        log_joint = (points.log_density - rest * self.bridge.log_prior(points.z)) / t
        slope = (points.gradient - rest[:, None] * self._slope_of_q(points.z)) / t[:, None]
        return Points(points.z, log_joint, slope), accepted

    def _slope_of_q(self, z: Tensor) -> Tensor:
        """The gradient of log q, (S, B, latent)."""
        centred = (self.bridge.proposal.params["shift"] - z).permute(1, 2, 0)
        return torch.cholesky_solve(centred, self.root).permute(2, 0, 1)

    def put(self, points: Points, rows: Tensor | slice = slice(None)) -> None:
        """Store points, with log p(z, x) and its gradient, of some queries."""
        proposal = self.bridge.proposal
        own = proposal if isinstance(rows, slice) else proposal.select(rows)
        self.z, self.slope, self.log_joint, self.log_q = (
            part.clone() for part in (self.z, self.slope, self.log_joint, self.log_q)
        )
        self.z[:, rows], self.slope[:, rows] = points.z, points.gradient
        self.log_joint[:, rows] = points.log_density
        self.log_q[:, rows] = own.log_prob(points.z)

    def join(self, z: Tensor) -> None:
        """Add points (K, B, latent) to the particles."""
        self.z = torch.cat([self.z, z])
        self.slope = torch.cat([self.slope, _slope(self.coarse, z)])
        self.log_joint = torch.cat([self.log_joint, self.bridge.log_joint(z, checked=False)])
        self.log_q = torch.cat([self.log_q, self.bridge.log_prior(z)])

    def only(self, rows: Tensor) -> "BridgeParticles":
        """Some of the queries, by their places."""
        bridge = self.bridge.select(rows)
        return BridgeParticles(
            bridge,
            bridge if self.coarse is self.bridge else self.coarse.select(rows),
            self.most_steps,
            self.index[rows],
            self.root[rows],
            self.factor[rows],
            self.z[:, rows],
            self.slope[:, rows],
            self.log_joint[:, rows],
            self.log_q[:, rows],
            self.log_islands[:, rows],
            self.temperature[rows],
            self.step_size[rows],
            self.decodes[rows],
            self.stuck[rows],
        )

    def select(self, which: Tensor) -> "BridgeParticles":
        """Some of the queries, by a boolean (B,)."""
        return self.only(which.nonzero()[:, 0])


def stretched(root: Tensor, z: Tensor, num: int) -> Tensor:
    """R, made wider in directions in which draws z (S, B, latent) clearly spread wider than R Rᵀ.

    "Clearly" is beyond the largest eigenvalue of the covariance of `num` independent draws of a
    round Gaussian. This is for t = 1, when log Ẑ is known: moves that depend on all particles make
    the errors of islands alike, so that their spread no longer shows these (decision 0010).

    Source: Marchenko and Pastur (1967) for the largest eigenvalue.
    """
    centred = (z - z.mean(0)).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(root, centred, upper=False)
    variances, axes = torch.linalg.eigh(white @ white.mT / len(z))
    largest = (1 + math.sqrt(z.shape[-1] / num)) ** 2
    scale = torch.where(variances > largest, variances.sqrt(), 1.0)
    return root @ (axes * scale[:, None]) @ axes.mT


def _slope(coarse: Bridge, z: Tensor) -> Tensor:
    """The gradient of log p(z, x) at z (C, B, latent)."""
    return evaluated(coarse, partial(coarse.log_joint, checked=False), z).gradient


def gaussian_root(gaussian: Fitted) -> Tensor:
    """R of a full Gaussian N(m, R Rᵀ), lower triangular, (B, latent, latent)."""
    params = gaussian.params
    return params["lower"].tril(-1) + torch.diag_embed(params["log_diagonal"].exp())


def _density(bridge: Bridge, temperature: Tensor) -> Density:
    """log π_t(z), not normalised: z (C, B, latent) -> (C, B)."""

    def log_density(z: Tensor) -> Tensor:
        log_joint = bridge.log_joint(z, checked=False)
        return temperature * log_joint + (1 - temperature) * bridge.log_prior(z)

    return log_density
