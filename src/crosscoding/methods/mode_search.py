"""The modes of a bare density, which may lie anywhere: found by climbs from many places.

A density falls into basins, one to a mode, and a narrow mode's basin may be a small part of the
room. So there are many starts, at all scales: around 0, at draws of an earlier proposal, and around
the modes found so far. Of the last there are so many that only their gradients are worked out, and
climbs begin where those of the modes found, as Gaussians, explain them worst. Each climb has a few
Newton steps, which within the basin of a normal peak are enough; the best of what they reach, apart
from each other, climb on.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from crosscoding.methods.ascent import Modes, climb, half_log_determinant
from crosscoding.methods.leapfrog import evaluated
from crosscoding.random import normal, uniform
from crosscoding.target import Target

_ROUNDS = 3  # the first from everywhere, the others from around what it found
_NUM_STARTS, _MOST_DECODES = 512, 8192  # of a round: starts, and starts times the dimension
_SCREENED = 16  # as many points as have their gradients looked at for each start
_FIRST_STEPS, _STEPS = 2, 12
_MOST_CLIMBS, _MOST_MODES = 32, 16  # that are worth climbing to the end, and keeping
_LIGHT = 6.0  # nats below the heaviest mode, from which on one does not count
_EVERYWHERE = (0.03, 100.0)  # distances from 0, in prior standard deviations
_AROUND = (2.0, 60.0)  # distances from a mode, in its own


@dataclass(frozen=True, eq=False)
class Peaks:
    """K modes of a density, heaviest first.

    Args:
        z: Where, shape (K, latent).
        precision: The curvature there, in double, shape (K, latent, latent).
        log_mass: log of the mass under Laplace's approximation, up to a constant, shape (K,).
        count: Starts that led to each, shape (K,).
    """

    z: Tensor
    precision: Tensor
    log_mass: Tensor
    count: Tensor

    @property
    def scales(self) -> Tensor:
        """Geometric mean of the standard deviations of each, (K,)."""
        return (-half_log_determinant(self.precision) / self.z.shape[-1]).exp().to(self.z)

    def gradient(self, z: Tensor) -> Tensor:
        """Of the logarithm of the Gaussians at the modes, as z (N, latent), in double."""
        gap = z.double()[:, None] - self.z.double()
        pull = torch.einsum("nki,kij->nkj", gap, self.precision)
        height = self.log_mass + half_log_determinant(self.precision)
        share = (height - 0.5 * (gap * pull).sum(-1)).softmax(-1)
        return -(share[..., None] * pull).sum(1)


def search(target: Target, starts: Tensor, *, generator: Generator) -> Peaks:
    """The modes of a flat target of one query that climbs from many places lead to.

    Args:
        target: A bare density.
        starts: Where to climb from, beside places of its own, shape (N, latent).
        generator: Of those places.
    """
    num = max(min(_NUM_STARTS, _MOST_DECODES // target.latent_dim), 16)
    origin, scale = torch.zeros_like(starts[:1]), starts.new_full((1,), target.prior_scale)
    own = _around(origin, scale, _EVERYWHERE, num, generator)
    peaks = _reached(target, torch.cat([own, starts]), None)
    for _ in range(_ROUNDS - 1):
        points = _around(peaks.z, peaks.scales, _AROUND, _SCREENED * num, generator)
        peaks = _reached(target, _unexplained(target, points, peaks, num // 2), peaks)
    return peaks


def _around(
    centres: Tensor, scales: Tensor, distances: tuple[float, float], num: int, generator: Generator
) -> Tensor:
    """Points (num, latent) in all directions from centres (K, latent), near ones and far ones."""
    which = torch.arange(num, device=centres.device) % len(centres)
    low, high = (math.log(distance) for distance in distances)
    length = (low + (high - low) * uniform((num, 1), generator=generator, like=centres)).exp()
    noise = normal((num, centres.shape[-1]), generator=generator, like=centres)
    return centres[which] + scales[which, None] * length * noise / noise.norm(dim=-1, keepdim=True)


def _unexplained(target: Target, points: Tensor, peaks: Peaks, num: int) -> Tensor:
    """The points, of (N, latent), where a density rises least like Gaussians at its peaks do."""
    log_density = partial(target.log_joint, checked=False)
    rise = evaluated(target, log_density, points[:, None]).gradient[:, 0]
    agreement = torch.cosine_similarity(rise.double(), peaks.gradient(points), dim=-1)
    order = agreement.nan_to_num(nan=1.0).argsort()
    return points[order[:num]]


def _reached(target: Target, starts: Tensor, earlier: Peaks | None) -> Peaks:
    """The modes that starts (N, latent) lead to, and those found earlier."""
    first = _distinct(climb(target, starts[:, None], _FIRST_STEPS), torch.ones(len(starts)))
    z, count = first.z[:_MOST_CLIMBS], first.count[:_MOST_CLIMBS]
    if earlier is not None:
        z, count = torch.cat([z, earlier.z]), torch.cat([count, earlier.count])
    peaks = _distinct(climb(target, z[:, None], _STEPS), count)
    heavy = (peaks.log_mass > peaks.log_mass[0] - _LIGHT)[:_MOST_MODES].nonzero()[:, 0]
    return Peaks(*(getattr(peaks, n)[heavy] for n in ("z", "precision", "log_mass", "count")))


def _distinct(modes: Modes, count: Tensor) -> Peaks:
    """Each mode once, where it was found heaviest, with all climbs that ended in it."""
    z, precision = modes.z[:, 0].double(), modes.precision[:, 0]
    log_mass = modes.log_joint[:, 0].double() - half_log_determinant(precision)
    left, chosen, counts = log_mass.isfinite(), [], []
    while left.any() and len(chosen) < 2 * _MOST_CLIMBS:
        best = int(torch.where(left, log_mass, -math.inf).argmax())
        gap = z - z[best]
        own = torch.einsum("ni,ij,nj->n", gap, precision[best], gap)
        others = torch.einsum("ni,nij,nj->n", gap, precision, gap)
        same = left & (torch.maximum(own, others) < modes.bulk)
        same[best] = True
        chosen.append(best)
        counts.append(count[same].sum())
        left = left & ~same
    index = torch.tensor(chosen, dtype=torch.long)
    return Peaks(modes.z[index, 0], precision[index], log_mass[index], torch.stack(counts))
