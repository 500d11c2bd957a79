"""Search for the modes of a bare density, which may lie anywhere, by climbs from many places.

Each mode of a density has a basin, and the basin of a narrow mode may be a small part of the space.
So there are many starts, at all scales: around 0, at draws of an earlier proposal, and around the
modes found so far. There are so many points around modes that only their gradients are computed;
climbs start at those whose gradients the Gaussians at the known modes explain worst. Each climb
takes a few Newton steps, which suffice within the basin of a normal peak, and the best distinct
ends climb on. If hardly any of all these points lie in the basin of a mode, it was found by luck,
and there may be others like it.

Source: Good (1953) for the unseen share, which is about the share of what was seen once. Differs
in: being seen a few times counts as once, and modes count by their mass under Laplace's
approximation.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from crosscoding.methods.numerics.gauss_newton import (
    Modes,
    climb,
    half_log_determinant,
    squared_widths,
)
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.random import normal, uniform
from crosscoding.target.base import Target

# On six densities of the tests, errors are 0.02 nats, and up to 0.08 with half or twice any of
# these (`_EXPLAINED` can only be halved).
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 6  # after the first; they go on while they find modes
_NUM_STARTS, _MOST_DECODES = 512, 8192  # of a round: starts, and starts times the dimension
_SCREENED = 16  # points whose gradients are compared, for each start
_FIRST_STEPS, _STEPS = 2, 12
_MOST_CLIMBS, MOST_MODES = 32, 16  # climbed to the end, and kept
_LIGHT = 6.0  # nats below the heaviest mode at which a mode no longer counts: e⁻⁶ = 0.0025
_EVERYWHERE = (0.03, 100.0)  # distances from 0, in prior standard deviations
_AROUND = (2.0, 60.0)  # distances from a mode, in its standard deviations
_EXPLAINED = 0.9  # cosine between a gradient and that of the Gaussians at the modes
_FEW = 4  # points: an equal basin gets none with probability e⁻⁴ = 1.8 %, but e⁻⁵ = 0.7 %
_FALL = (0.2, 2.0)  # nats over one standard deviation from a mode; a normal one falls 0.5


@dataclass(frozen=True, eq=False)
class Peaks:
    """K modes of a density, heaviest first.

    Args:
        z: Positions, shape (K, latent).
        precision: The curvature there, in double, shape (K, latent, latent).
        log_mass: log mass under Laplace's approximation, up to a constant, shape (K,).
        unseen: Estimated share of the density in modes that were not found.
    """

    z: Tensor
    precision: Tensor
    log_mass: Tensor
    unseen: float = 0.0

    @property
    def scales(self) -> Tensor:
        """Geometric mean of each mode's standard deviations, (K,)."""
        return (-half_log_determinant(self.precision) / self.z.shape[-1]).exp().to(self.z)

    def explain(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and gradient of the mixture of Gaussians at the modes, at z (N, latent).

        Returns:
            The share of each Gaussian, (N, K), and the gradient of the mixture's log-density,
            shaped like z; both in double.
        """
        gap = z.double()[:, None] - self.z.double()
        pull = torch.einsum("nki,kij->nkj", gap, self.precision)
        height = self.log_mass + half_log_determinant(self.precision)
        share = (height - 0.5 * (gap * pull).sum(-1)).softmax(-1)
        return share, -(share[..., None] * pull).sum(1)


def search(target: Target, starts: Tensor, *, generator: Generator) -> Peaks:
    """Find modes of a flat target of one query by climbs from many places.

    Args:
        target: A bare density.
        starts: Points to climb from, in addition to its own, shape (N, latent).
        generator: For its own starts.
    """
    num = max(min(_NUM_STARTS, _MOST_DECODES // target.latent_dim), 16)
    origin, scale = torch.zeros_like(starts[:1]), starts.new_full((1,), target.prior_scale)
    _, own = _around(origin, scale, _EVERYWHERE, num, generator)
    peaks = _reached(target, torch.cat([own, starts]), None)
    if not len(peaks.z):
        return replace(peaks, unseen=math.nan)
    screens: list[_Screen] = []
    for number in range(_MOST_ROUNDS):
        screens.append(_Screen.around(target, peaks, _SCREENED * num, generator))
        before, peaks = peaks, _reached(target, screens[-1].unexplained(peaks, num // 2), peaks)
        peaks = replace(peaks, unseen=_unseen(target, peaks, screens))
        new = len(peaks.z) > len(before.z)
        if number + 1 >= _FEWEST_ROUNDS and not new and not peaks.unseen:
            break
    return peaks


@dataclass(frozen=True, eq=False)
class _Screen:
    """Points around modes, the gradients there, and the modes they are around: (N, latent) each."""

    z: Tensor
    gradient: Tensor
    centre: Tensor

    @classmethod
    def around(cls, target: Target, peaks: Peaks, num: int, generator: Generator) -> "_Screen":
        centre, z = _around(peaks.z, peaks.scales, _AROUND, num, generator)
        log_density = partial(target.log_joint, checked=False)
        return cls(z, evaluated(target, log_density, z[:, None]).gradient[:, 0], centre)

    def unexplained(self, peaks: Peaks, num: int) -> Tensor:
        """The points whose gradients the Gaussians at the modes explain worst."""
        return self.z[self._agreement(peaks)[0].argsort()[:num]]

    def count(self, peaks: Peaks) -> Tensor:
        """For each mode, how many points around other modes lie in its basin, (K,)."""
        agreement, own = self._agreement(peaks)
        other = own != peaks.explain(self.centre)[0].argmax(-1)
        return own[other & (agreement > _EXPLAINED)].bincount(minlength=len(peaks.z))

    def _agreement(self, peaks: Peaks) -> tuple[Tensor, Tensor]:
        """Cosine between the gradients, and the mode with the largest share, both (N,)."""
        share, gradient = peaks.explain(self.z)
        agreement = torch.cosine_similarity(self.gradient.double(), gradient, dim=-1)
        flat = ~(self.gradient != 0).any(-1)  # or the density is not defined: nothing to climb
        return agreement.nan_to_num(nan=1.0).masked_fill(flat, 1.0), share.argmax(-1)


def _unseen(target: Target, peaks: Peaks, screens: list[_Screen]) -> float:
    """The share of modes found by luck; modes on a ridge are not counted."""
    if len(peaks.z) == 1:
        return 0.0
    count = torch.stack([screen.count(peaks) for screen in screens]).sum(0)
    by_luck = (count <= _FEW) & _are_normal(target, peaks)
    return peaks.log_mass.softmax(0)[by_luck].sum().item()


def _are_normal(target: Target, peaks: Peaks) -> Tensor:
    """Whether the density falls over one standard deviation about as a normal one does, (K,).

    Only the widest axis is checked; on a ridge the density falls by much more or much less.
    """
    values, vectors = torch.linalg.eigh(peaks.precision)
    axis = (vectors[..., 0] / values[:, :1].sqrt()).to(peaks.z)
    there = torch.stack([peaks.z, peaks.z + axis, peaks.z - axis])
    top, *sides = target.log_joint(there[:, :, None], checked=False)[..., 0]
    low, high = _FALL
    return torch.stack([(top - side > low) & (top - side < high) for side in sides]).all(0)


def _around(
    centres: Tensor, scales: Tensor, distances: tuple[float, float], num: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Random points around centres (K, latent), near and far in all directions.

    Returns the centre of each point, and the points, both (num, latent).
    """
    which = torch.arange(num, device=centres.device) % len(centres)
    low, high = (math.log(distance) for distance in distances)
    length = (low + (high - low) * uniform((num, 1), generator=generator, like=centres)).exp()
    noise = normal((num, centres.shape[-1]), generator=generator, like=centres)
    direction = noise / noise.norm(dim=-1, keepdim=True)
    return centres[which], centres[which] + scales[which, None] * length * direction


def _reached(target: Target, starts: Tensor, earlier: Peaks | None) -> Peaks:
    """The modes that climbs from starts (N, latent) lead to, and the earlier ones."""
    first = _distinct(climb(target, starts[:, None], _FIRST_STEPS))
    z = first.z[:_MOST_CLIMBS]
    if earlier is not None:
        z = torch.cat([z, earlier.z])
    if not len(z):  # the density is 0 at all starts
        return first
    peaks = _distinct(climb(target, z[:, None], _STEPS))
    heavy = (peaks.log_mass > peaks.log_mass[:1] - _LIGHT).nonzero()[:MOST_MODES, 0]
    return Peaks(peaks.z[heavy], peaks.precision[heavy], peaks.log_mass[heavy])


def _distinct(modes: Modes) -> Peaks:
    """Each mode once, where it was found heaviest."""
    z, precision = modes.z[:, 0].double(), modes.precision[:, 0]
    log_mass = modes.log_joint[:, 0].double() - half_log_determinant(precision)
    left, chosen = log_mass.isfinite(), []
    while left.any() and len(chosen) < 2 * _MOST_CLIMBS:
        best = int(torch.where(left, log_mass, -math.inf).argmax())
        left = left & ~(squared_widths(z - z[best], precision[best], precision) < modes.bulk)
        left[best] = False
        chosen.append(best)
    return Peaks(modes.z[chosen, 0], precision[chosen], log_mass[chosen])
