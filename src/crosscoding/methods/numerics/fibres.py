"""p(z|x) along a few directions: each plane through a given point is a query of its own.

z = u + V v,   p(v, x | u) = N(v; 0, I) p(x | u + V v)
"""

import torch
from torch import Generator, Tensor

from crosscoding.target.base import Target


class Fibres(Target):
    """A flat target of v, with a query for each pair of a point u and a query of a target.

    Args:
        target: p(z, x) with the prior N(0, I), of batch shape (B,).
        points: u, orthogonal to the directions, shape (S, B, latent).
        directions: V, columns orthonormal or 0, shape (B, latent, K).
    """

    def __init__(self, target: Target, points: Tensor, directions: Tensor) -> None:
        query = torch.arange(target.num_queries, device=points.device).repeat(len(points))
        self._target, self._directions = target.select(query), directions[query]
        self._points = points.flatten(0, 1)
        self.latent_dim, self.batch_shape = directions.shape[-1], self._target.batch_shape
        self.like, self.index, self.clock = target.like, self._target.index, target.clock
        self.ends_with_prior = target.ends_with_prior

    def at(self, v: Tensor) -> Tensor:
        """z = u + V v, from shape (*sample, S B, K) to (*sample, S B, latent)."""
        return self._points + along(self._directions, v)

    def log_likelihood(self, z: Tensor, *, checked: bool = True) -> Tensor:
        return self._target.log_likelihood(self.at(z), checked=checked)

    def curvature(self, z: Tensor) -> Tensor:
        there = self.at(z)
        columns = [
            self._target.curvature_along(there, direction.expand_as(there))
            for direction in self._directions.unbind(-1)
        ]
        bend = self._directions.mT.double() @ torch.stack(columns, -1)
        unused = ~self._directions.any(1)  # where v has its prior
        return 0.5 * (bend + bend.mT) + torch.diag_embed(unused.to(bend))

    @property
    def curvature_decodes(self) -> Tensor:
        return self._directions.any(1).sum(-1)  # a query may have fewer directions than others

    def curvature_along(self, z: Tensor, directions: Tensor) -> Tensor:
        return (self.curvature(z) @ directions.double()[..., None])[..., 0]

    def log_likelihood_of_bank(self) -> tuple[Tensor, Tensor]:
        points = self.draw_prior(self.bank_points, generator=Generator().manual_seed(0))
        return points, self.pairwise_log_likelihood(points)

    def pairwise_log_likelihood(self, z: Tensor) -> Tensor:
        return self.log_likelihood(z[:, None].expand(-1, self.num_queries, -1))

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        return self.select(query).log_likelihood(z[None])[0]

    def flatten(self) -> "Fibres":
        return self

    def select(self, index: Tensor) -> "Fibres":
        chosen = object.__new__(Fibres)
        vars(chosen).update(vars(self))
        chosen._target, chosen._points = self._target.select(index), self._points[index]
        chosen._directions = self._directions[index]
        chosen.batch_shape, chosen.index = chosen._target.batch_shape, chosen._target.index
        return chosen

    def is_common(self, z: Tensor) -> Tensor:
        # The target itself checks log p(x|z), and in one plane all gradients may well be NaN.
        return torch.zeros_like(z[..., 0], dtype=torch.bool)

    @property
    def query_bytes(self) -> int:
        return self._target.query_bytes

    @property
    def operations(self) -> float:
        return self._target.operations


def along(directions: Tensor, parts: Tensor) -> Tensor:
    """Directions (*B, latent, K) times coordinates (*sample, *B, K): (*sample, *B, latent)."""
    return (directions @ parts[..., None])[..., 0]


def across(directions: Tensor, z: Tensor) -> Tensor:
    """Coordinates of z (*sample, *B, latent) along directions (*B, latent, K): (*sample, *B, K)."""
    return (directions.mT @ z[..., None])[..., 0]
