"""The best points of the bank for each query, by which later stages check their answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.methods.numerics.resampling import taken

_NUM_BEST = 256  # points of the bank that are kept for each query


@dataclass(eq=False)
class BestOfBank:
    """The N points of the bank with the highest p(x|z) for each query.

    Args:
        z: Shape (N, B, latent), best first.
        log_likelihood: log p(x|z) in nats, shape (N, B).
        log_size: log of the number of points in the bank.
    """

    z: Tensor
    log_likelihood: Tensor
    log_size: float

    @classmethod
    def of(cls, points: Tensor, log_likelihood: Tensor) -> "BestOfBank":
        """From a bank's points, (N, latent) or (N, B, latent), and log p(x|z) there, (N, B)."""
        num = min(_NUM_BEST, len(log_likelihood))
        best, index = log_likelihood.mT.contiguous().topk(num, -1)
        z = points[index.mT] if points.ndim == 2 else taken(points, index.mT)
        return cls(z, best.mT, math.log(len(log_likelihood)))

    def select(self, index: Tensor) -> "BestOfBank":
        """The points of some queries."""
        return BestOfBank(self.z[:, index], self.log_likelihood[:, index], self.log_size)

    @staticmethod
    def joined(parts: "Sequence[BestOfBank]") -> "BestOfBank":
        """The points of several blocks of queries, one after the other."""
        z = torch.cat([part.z for part in parts], 1)
        log_likelihood = torch.cat([part.log_likelihood for part in parts], 1)
        return BestOfBank(z, log_likelihood, parts[0].log_size)
