"""The modes that climbs from the prior found, and what they say about others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from crosscoding.methods.cascade.budget import LEAST_CLIMBS, MOST_CHECKS
from crosscoding.methods.numerics.gauss_newton import Modes, lacking_modes
from crosscoding.methods.numerics.resampling import taken

# Halving or doubling _LIGHT, _FEW_REACHED or _MOST_REACHED changes no answer on mnist-20d; they
# matter on decoders with waves (decision 0009).
_MOST_KEPT = LEAST_CLIMBS  # modes of a search whose widths are kept
_LIGHT = 4.0  # nats below the heaviest mode at which a mode no longer counts
# Shares of climbs that reach modes that count: smooth decoder networks have 0.3 to 1. Below the
# first, nothing is known about modes; above the second, few climbs suffice.
_FEW_REACHED, _MOST_REACHED = 0.15, 0.5


@dataclass(eq=False)
class ModesFound:
    """What a second look found for B queries.

    Args:
        heaviest: The heaviest modes, up to 16 of them, the heaviest first.
        log_weights: log of their shares of p(z|x), −inf for a mode found before, shape (≤ 16, B).
        z: All modes, shape (K, B, latent), K being the largest number of climbs.
        log_joint: log p(z, x) there, shape (K, B); −inf if there were fewer climbs.
        all_log_weights: As log_weights, of all modes, shape (K, B).
        overlooked: Share of p(z|x) that the climbs may have overlooked, shape (B,).
    """

    heaviest: Modes
    log_weights: Tensor
    z: Tensor
    log_joint: Tensor
    all_log_weights: Tensor
    overlooked: Tensor

    @classmethod
    def of(cls, modes: Modes) -> "ModesFound":
        """From the ends of climbs."""
        log_weights, climbs = modes.log_weights(modes.bulk)
        order = log_weights.argsort(0, descending=True)[:_MOST_KEPT]
        heaviest = Modes(
            taken(modes.z, order),
            modes.log_joint.gather(0, order),
            taken(modes.precision, order),
            modes.steps.gather(0, order),
            modes.decodes,
        )
        lacking = MOST_CHECKS - len(log_weights)
        return cls(
            heaviest,
            log_weights.gather(0, order),
            F.pad(modes.z, (0, 0, 0, 0, 0, lacking)),
            F.pad(modes.log_joint, (0, 0, 0, lacking), value=-math.inf),
            F.pad(log_weights, (0, 0, 0, lacking), value=-math.inf),
            _overlooked(log_weights, climbs),
        )

    @property
    def is_single(self) -> Tensor:
        """Whether all climbs ended in one mode, boolean (B,)."""
        return (self.all_log_weights > -math.inf).sum(0) == 1

    def missing_from(self, draws: Tensor) -> Tensor:
        """Share of p(z|x) that an answer with these draws (S, B, latent) lacks, (B,)."""
        lacking = lacking_modes(self.heaviest, self.log_weights, draws)
        return torch.maximum(lacking, self.overlooked.to(lacking))

    def select(self, index: Tensor) -> "ModesFound":
        """The modes of some queries."""
        return ModesFound(
            self.heaviest.select(index),
            self.log_weights[:, index],
            self.z[:, index],
            self.log_joint[:, index],
            self.all_log_weights[:, index],
            self.overlooked[index],
        )

    @staticmethod
    def joined(parts: "Sequence[ModesFound]") -> "ModesFound":
        """The modes of several blocks of queries, one after the other."""
        return ModesFound(
            Modes.joined([part.heaviest for part in parts]),
            torch.cat([part.log_weights for part in parts], 1),
            torch.cat([part.z for part in parts], 1),
            torch.cat([part.log_joint for part in parts], 1),
            torch.cat([part.all_log_weights for part in parts], 1),
            torch.cat([part.overlooked for part in parts]),
        )


def _reached(log_weights: Tensor, climbs: Tensor) -> Tensor:
    """Share of the climbs that ended in modes that count, (B,); arguments as in `_overlooked`."""
    heavy = log_weights > log_weights.amax(0) - _LIGHT
    return torch.where(heavy, climbs, 0.0).mean(0)


def few_suffice(modes: Modes) -> Tensor:
    """Whether most of a few climbs reached modes that count, boolean (B,)."""
    return _reached(*modes.log_weights(modes.bulk)) > _MOST_REACHED


def _overlooked(log_weights: Tensor, climbs: Tensor) -> Tensor:
    """Share of p(z|x) that climbs may have overlooked, (B,), if most got stuck in light modes.

    If hardly any climb reached the modes that count, there may be others that none reached. The
    share of unseen basins is about the share of climbs that ended where no other did (Good, 1953).

    Args:
        log_weights: log of each mode's share, −inf for a mode found before, shape (K, B).
        climbs: Number of climbs that ended in it, shape (K, B).
    """
    reached = _reached(log_weights, climbs)
    return torch.where(reached < _FEW_REACHED, (climbs == 1).to(climbs).mean(0), 0.0)
