"""What the bank shows about p(z|x): its best points, and where climbs may start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.methods.cascade.budget import (
    FEW_PARTICLES,
    LEAST_CLIMBS,
    distance_from_prior,
)
from crosscoding.methods.cascade.handover import HandedOn
from crosscoding.methods.laplace import spread_over
from crosscoding.methods.numerics.resampling import next_temperature, taken
from crosscoding.target.base import Target

# Points of the bank that are kept for each query. Half of it moves log p(x) by 0.003 nats on
# mnist-20d, and double of it by nothing.
_NUM_BEST = 256


@dataclass(eq=False)
class BestOfBank:
    """The N points of the bank with the highest p(x|z) for each query.

    Args:
        z: Shape (N, B, latent), best first.
        log_likelihood: log p(x|z) in nats, shape (N, B).
        starts: Points to climb from, the best one first, shape (16, B, latent).
        log_size: log of the number of points in the bank.
    """

    z: Tensor
    log_likelihood: Tensor
    starts: Tensor
    log_size: float

    @classmethod
    def of(cls, points: Tensor, log_likelihood: Tensor, starts: Tensor) -> "BestOfBank":
        """From a bank's points, (N, latent) or (N, B, latent), and log p(x|z) there, (N, B).

        `starts` are the indices of the points to climb from, (16, B).
        """
        num = min(_NUM_BEST, len(log_likelihood))
        best, index = log_likelihood.mT.contiguous().topk(num, -1)
        z, starts = (
            points[chosen] if points.ndim == 2 else taken(points, chosen)
            for chosen in (index.mT, starts)
        )
        return cls(z, best.mT, starts, math.log(len(log_likelihood)))

    @classmethod
    def nothing(cls, target: Target) -> "BestOfBank":
        """No points, for the queries of a flat target."""
        none = target.like.new_zeros(0, target.num_queries)
        nowhere = target.like.new_zeros(0, target.num_queries, target.latent_dim)
        return cls(nowhere, none, nowhere, 0.0)

    def select(self, index: Tensor) -> "BestOfBank":
        """The points of some queries."""
        return BestOfBank(
            self.z[:, index], self.log_likelihood[:, index], self.starts[:, index], self.log_size
        )

    @staticmethod
    def joined(parts: "Sequence[BestOfBank]") -> "BestOfBank":
        """The points of several blocks of queries, one after the other."""
        z = torch.cat([part.z for part in parts], 1)
        log_likelihood = torch.cat([part.log_likelihood for part in parts], 1)
        starts = torch.cat([part.starts for part in parts], 1)
        return BestOfBank(z, log_likelihood, starts, parts[0].log_size)


class BankPoints:
    """The best points of the bank for the queries that needed them so far.

    Attributes:
        distance: Approximate number of temperatures from the prior to p(z|x), shape (B,); 0 where
            that is not known yet.
    """

    def __init__(self, like: Tensor) -> None:
        self.distance = torch.zeros_like(like)
        self._kept: HandedOn[BestOfBank] = HandedOn(like)

    def put(self, rows: Tensor, target: Target, generator: Generator) -> None:
        """Look at the bank for these queries."""
        self.keep(rows, *target.log_likelihood_of_bank(), generator)

    def keep(
        self, rows: Tensor, points: Tensor, log_likelihood: Tensor, generator: Generator
    ) -> None:
        """Keep the distance and the best of points (N, [B,] latent) with log p(x|z), (N, B)."""
        cold, ess = torch.zeros_like(log_likelihood[0]), float(FEW_PARTICLES)
        temperature = next_temperature(log_likelihood, cold, ess)
        self.distance[rows] = distance_from_prior(temperature, points.shape[-1])
        starts = spread_over(log_likelihood, temperature, LEAST_CLIMBS, generator=generator)
        self._kept.put(rows, BestOfBank.of(points, log_likelihood, starts))

    def of(self, target: Target, rows: Tensor, generator: Generator) -> BestOfBank:
        """The points for these queries; looks at the bank for queries that it has not seen yet."""
        if len(new := (~self._kept.has(rows)).nonzero()[:, 0]):
            self.put(rows[new], target.select(new), generator)
        return self._kept.of(rows)
