"""Draws of p(z|x) with weights, as fits to draws take them: moved and scaled to be about round."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.crosscoders.covariance_estimates import FLOOR


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """Draws of each query, z = mean + scale · standard.

    Args:
        points: z, shape (B, S, dim).
        weights: Their weights, which sum to 1 over S, shape (B, S).
        mean, scale: Weighted mean and standard deviation, shape (B, dim), scale > 0.
    """

    points: Tensor
    weights: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, draws: Tensor, log_weights: Tensor | None) -> "WeightedDraws":
        """Of draws (S, B, dim) and the logarithms of their weights (S, B); None: all equal."""
        points = draws.transpose(0, 1)
        if log_weights is None:
            weights = torch.full_like(points[..., 0], 1 / len(draws))
        else:
            weights = log_weights.mT.softmax(-1)
        mean = (weights.unsqueeze(1) @ points).squeeze(1)
        variance = (weights.unsqueeze(1) @ (points - mean.unsqueeze(1)).square()).squeeze(1)
        # where one draw has all the weight there is no variance; a floor keeps it above 0
        unweighted = (points - points.mean(1, keepdim=True)).square().mean(1)
        return cls(points, weights, mean, variance.maximum(FLOOR * unweighted).sqrt())

    @property
    def standard(self) -> Tensor:
        """The draws in units of their own spread, shape (B, S, dim)."""
        return (self.points - self.mean.unsqueeze(1)) / self.scale.unsqueeze(1)
