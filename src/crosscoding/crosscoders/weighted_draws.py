"""Weighted draws of p(z|x), and their standardised form, from which families are fitted."""

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
        """From draws (S, B, dim) and their log weights (S, B); None: all equal."""
        points = draws.transpose(0, 1)
        if log_weights is None:
            weights = torch.full_like(points[..., 0], 1 / len(draws))
        else:
            weights = log_weights.mT.softmax(-1)
        mean = (weights.unsqueeze(1) @ points).squeeze(1)
        variance = (weights.unsqueeze(1) @ (points - mean.unsqueeze(1)).square()).squeeze(1)
        # if one draw has all the weight the variance is 0; a floor keeps it positive
        unweighted = (points - points.mean(1, keepdim=True)).square().mean(1)
        return cls(points, weights, mean, variance.maximum(FLOOR * unweighted).sqrt())

    @property
    def standard(self) -> Tensor:
        """The draws with mean 0 and standard deviation 1, shape (B, S, dim)."""
        return (self.points - self.mean.unsqueeze(1)) / self.scale.unsqueeze(1)
