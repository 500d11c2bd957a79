"""Decoding of the observed elements alone: for each query, its own rows of the decoder's head.

With 5 to 25 % of an image observed, most of a decoder's last layer makes elements that p(x|z) does
not look at. Where the decoder has a `Head`, a query keeps the rows of what it observes; queries
that observe the same elements share them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from crosscoding.heads import Head
from crosscoding.vae import VAE

_MOST_OBSERVED = 0.5  # share of the elements above which one product with all of them is faster
_MAX_BYTES = 512 * 2**20
_POINTS_AT_ONCE = 128
_CACHE_BYTES = 8 * 2**20
_TILE, _TILES_AT_ONCE = 128, 256


class ObservedRows:
    """log p(x|z) of B queries from the rows of their observed elements, E of them at most.

    Attributes:
        elements: Which elements, shape (R, E), R = B or, for a shared mask, 1; queries with fewer
            are filled up with elements that do not count.
        values: x, shape (B, E).
        mask: Which of them count, shape (R, E).
        likelihood: For these elements.
    """

    def __init__(self, vae: VAE, head: Head, values: Tensor, mask: Tensor) -> None:
        rows = mask[:1] if (mask == mask[:1]).all() else mask
        most = int(rows.sum(1).max())
        # Stable, so that the elements of a query are in order whatever stands beside it.
        self.elements = rows.to(torch.int8).sort(dim=1, descending=True, stable=True)[1][:, :most]
        self.mask = rows.gather(1, self.elements)
        self.values = values.gather(1, self.elements.expand(len(values), -1))
        self._head = head
        self._num_params = vae.params_size // vae.data_size
        by_element = (-1, self._num_params)
        weight = head.weight.unflatten(0, by_element)[self.elements].flatten(1, 2)
        self._weight = weight.mT.contiguous()
        self._bias = head.bias.unflatten(0, by_element)[self.elements].flatten(1)
        self._counts = self.mask.sum(1)
        self.likelihood = vae.flat_likelihood.of_elements(self.elements)

    @classmethod
    def where_faster(cls, vae: VAE, values: Tensor, mask: Tensor) -> "ObservedRows | None":
        """The rows of these queries, or None where decoding all elements is as good.

        Args:
            vae: The model.
            values, mask: Evidence, shape (B, data_size).
        """
        if vae.head is None or len(mask) == 0:
            return None
        most = int(mask.sum(1).max())
        row_bytes = vae.head.weight[0].numel() * values.element_size()
        size = len(mask) * most * row_bytes * (vae.params_size // vae.data_size)
        if not 0 < most <= _MOST_OBSERVED * vae.data_size or size > _MAX_BYTES:
            return None
        return cls(vae, vae.head, values, mask)

    def select(self, index: Tensor | slice) -> "ObservedRows":
        """The rows of some queries."""
        chosen = object.__new__(ObservedRows)
        vars(chosen).update(vars(self))
        chosen.values = self.values[index]
        if len(self.elements) > 1 or len(self.values) == 1:
            for name in ("elements", "mask", "_weight", "_bias", "_counts"):
                setattr(chosen, name, getattr(self, name)[index])
            chosen.likelihood = self.likelihood.select(index)
        return chosen

    def params(self, z: Tensor) -> Tensor:
        """The decoder's output for the observed elements.

        Args:
            z: Shape (*sample, B, latent).
        Returns:
            Shape (S, B, E, *param_shape).
        """
        shape = (z.shape[:-2].numel(), z.shape[-2], self._width)
        hidden = self._head.trunk(z.reshape(-1, z.shape[-1])).reshape(shape)
        if len(self.elements) == 1:
            output = F.linear(hidden, self._weight[0].mT, self._bias[0])
        else:
            product = torch.baddbmm(self._bias[:, None], hidden.transpose(0, 1), self._weight)
            output = product.transpose(0, 1)
        output = self._head.activation(output)
        return output.unflatten(-1, (-1, *self.likelihood.param_shape))

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z) in nats: z (*sample, B, latent) -> (*sample, B).

        Piece by piece, so that what a piece works on stays in the processor's cache: some queries
        that observe about as many elements, if they come in that order, and some of their points.
        """
        flat = z.reshape(z.shape[:-2].numel(), *z.shape[-2:])
        size = len(flat) if torch.is_grad_enabled() and z.requires_grad else _POINTS_AT_ONCE
        results = []
        for rows, part in self.pieces():
            likelihood, values, mask = part.likelihood, part.values, part.mask
            pieces = [
                likelihood.masked_log_prob(part.params(points), values, mask)
                for points in flat[:, rows].split(max(size, 1))
            ]
            results.append(torch.cat(pieces))
        return torch.cat(results, dim=1).reshape(z.shape[:-1])

    def pieces(self) -> Iterator[tuple[slice, "ObservedRows"]]:
        """Some queries after the other, without the elements that none of them observes."""
        if len(self.elements) <= 1:
            yield slice(None), self
            return
        widest = max(self._width, self._bias.shape[1])
        row_bytes = _POINTS_AT_ONCE * widest * self.values.element_size()
        size = max(_CACHE_BYTES // row_bytes, 1)
        for start in range(0, len(self.values), size):
            rows = slice(start, start + size)
            yield rows, self.select(rows)._trimmed()

    def _trimmed(self) -> "ObservedRows":
        """Without the elements that no query here observes."""
        most = int(self._counts.max())
        if most == self.elements.shape[1]:
            return self
        part = object.__new__(ObservedRows)
        vars(part).update(vars(self))
        for name in ("elements", "mask", "values"):
            setattr(part, name, getattr(self, name)[..., :most])
        for name in ("_weight", "_bias"):
            setattr(part, name, getattr(self, name)[..., : most * self._num_params])
        part.likelihood = self.likelihood.trimmed(most)
        return part

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        """log p(x|z) in nats of query[i] at z[i]: z (N, latent), query (N,) -> (N,).

        The points of a query are laid out in tiles, the last one filled up, so that its rows are
        fetched once a tile.
        """
        if not len(z):
            return z.new_empty(0)
        order = query.argsort(stable=True)
        counts = torch.bincount(query, minlength=len(self.values))
        tiles = (counts + _TILE - 1) // _TILE
        first_tile, first_point = tiles.cumsum(0) - tiles, counts.cumsum(0) - counts
        owner = query[order]
        place = first_tile[owner] * _TILE + torch.arange(len(z), device=z.device)
        place = place - first_point[owner]
        laid_out = z.new_zeros(int(tiles.sum()) * _TILE, z.shape[-1])
        laid_out[place] = z[order]
        of_tile = torch.repeat_interleave(tiles)
        points = laid_out.unflatten(0, (-1, _TILE))
        tiled = [
            self.select(of_tile[start : start + _TILES_AT_ONCE]).log_likelihood(
                points[start : start + _TILES_AT_ONCE].transpose(0, 1)
            )
            for start in range(0, len(points), _TILES_AT_ONCE)
        ]
        result = z.new_empty(len(z))
        result[order] = torch.cat([part.mT.flatten() for part in tiled])[place]
        return result

    @property
    def _width(self) -> int:
        return self._weight.shape[-2]
