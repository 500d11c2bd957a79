"""log p(x|z) of queries, from the decoder's output for their observed elements.

Unobserved elements are left out before any arithmetic: they may be infinite or NaN, and vectorised
operations may round a number differently depending on its place in a tensor. So answers equal, bit
for bit, those of a decoder without these elements.

With 5 to 25 % of an image observed, most of a decoder's last layer computes elements that p(x|z)
does not need. If the decoder has a `Head`, each query keeps only the rows of its observed elements,
and queries with the same mask share them. Otherwise all elements are decoded.

All work, including gradients, is done in pieces: each fits the processor's cache, and memory is
bounded.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from crosscoding.clock import UNLIMITED, Clock
from crosscoding.likelihoods import Likelihood
from crosscoding.model.bound import selected
from crosscoding.model.last_layer import Head
from crosscoding.model.vae import VAE
from crosscoding.target.jacobian import pushed_forward, with_jacobian
from crosscoding.target.observed_gradient import WithGradient
from crosscoding.target.partial_evidence import PartialEvidence

_MOST_OBSERVED = 0.5  # share of the elements above which running the whole layer is faster
_MAX_BYTES = 512 * 2**20
_POINTS_AT_ONCE = 128
_CACHE_BYTES = 8 * 2**20
_PIECE_BYTES = 32 * 2**20  # outputs of all steps in decoding a piece, together
_PER_ELEMENT = 8  # about how many numbers a likelihood's steps output per decoded parameter
_TILE, _TILES_AT_ONCE = 128, 256
_LANES = 64  # a multiple of the vector length of every processor


class Observed:
    """log p(x|z) of B queries from their observed elements, at most E per query.

    Attributes:
        elements: Indices of the elements, shape (R, E), with R = B, or 1 for a shared mask. Queries
            with fewer observed elements are padded with unobserved ones.
        values: x, shape (B, E).
        mask: Which of the elements the evidence needs, shape (R, E).
        exact: Which of them have an exact value, shape (R, E).
        partial: What is known besides exact values; None if nothing is.
        likelihood: The likelihood of these elements.
        clock: Ticked before every piece is decoded.
    """

    likelihood: Likelihood
    clock: Clock = UNLIMITED
    _by_query: tuple[str, ...] = ("elements", "mask", "exact", "_outputs", "_counts")

    def __init__(
        self, vae: VAE, values: Tensor, mask: Tensor, partial: PartialEvidence | None = None
    ) -> None:
        self._vae, likelihood = vae, vae.flat_likelihood
        used = mask if partial is None else mask | partial.used
        shared = bool((mask == mask[:1]).all()) and bool((used == used[:1]).all())
        rows, exact = (used[:1], mask[:1]) if shared else (used, mask)
        self.elements = likelihood.elements_in(rows)
        self.values = values.gather(1, self.elements.expand(len(values), -1))
        self.mask = rows.gather(1, self.elements)
        self.exact = exact.gather(1, self.elements)
        self.likelihood = likelihood.of_elements(self.elements)
        self._outputs = likelihood.outputs_of(self.elements)
        self.partial = partial and partial.within(self._outputs, vae.params_size)
        everything = torch.arange(vae.params_size, device=values.device)
        self._is_whole = torch.equal(self._outputs, everything[None])
        self._counts = self.mask.sum(1)
        self._all_count = bool(self.mask.all())
        self._has_exact = bool(self.exact.any())

    @staticmethod
    def of(
        vae: VAE,
        values: Tensor,
        mask: Tensor,
        clock: Clock = UNLIMITED,
        partial: PartialEvidence | None = None,
    ) -> "Observed":
        """The faster class for these queries; values and mask have shape (B, data_size)."""
        found = ObservedRows.where_faster(vae, values, mask, clock, partial)
        return (found or Observed(vae, values, mask, partial)).timed(clock)

    def timed(self, clock: Clock) -> "Observed":
        """The same with this clock."""
        chosen = self._copy()
        chosen.clock = clock
        return chosen

    def select(self, index: Tensor | slice) -> "Observed":
        """Some of the queries."""
        chosen = self._copy()
        chosen.values = self.values[index]
        chosen.partial = self.partial and self.partial.select(index)
        chosen._vae = selected(self._vae, index)
        if len(self.elements) > 1 or len(self.values) == 1:
            for name in self._by_query:
                setattr(chosen, name, getattr(self, name)[index])
            chosen.likelihood = self.likelihood.select(index)
        return chosen

    def params(self, z: Tensor) -> Tensor:
        """The decoder's output for these elements.

        Args:
            z: Shape (*sample, B, latent).
        Returns:
            Shape (S, B, E, *param_shape).
        Raises:
            OutOfTime: The clock has run out.
        """
        self.clock.tick()
        params = self._vae.decode_flat(z.reshape(z.shape[:-2].numel(), *z.shape[-2:])).flatten(2)
        if self._is_whole:
            pass
        elif len(self.elements) == 1:
            params = params.index_select(2, self._outputs[0])
        else:
            params = params.gather(2, self._outputs.expand(len(params), -1, -1))
        return self._counted(params)

    def with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`params` at z (S, B, latent), and their derivatives, (latent, S, B, E, *param_shape)."""
        return with_jacobian(self.params, z)

    def _counted(self, params: Tensor, other: float = 1.0) -> Tensor:
        """Flattened parameters of these elements in the shape that the likelihood takes."""
        own = self.likelihood.param_shape
        shape = (params.shape[-1] // math.prod(own), *own)
        params = params.contiguous().unflatten(-1, shape)
        return params if self._all_count else self.likelihood.only(params, self.mask, other)

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z) in nats: z (*sample, B, latent) -> (*sample, B)."""
        if torch.is_grad_enabled() and z.requires_grad:
            return WithGradient.apply(z, self)  # pyright: ignore[reportReturnType]
        return self.in_pieces(z, lambda part, points: part.at(points))

    def at(self, points: Tensor) -> Tensor:
        """log p(x|z) in one piece: points (S, B, latent) -> (S, B)."""
        return self.log_prob(self.params(points))

    def log_prob(self, params: Tensor) -> Tensor:
        """log p(x|z) given what `params` returned, (S, B, E, *param_shape) -> (S, B)."""
        if self.partial is None:
            return self.likelihood.masked_log_prob(params, self.values, self.exact)
        result = self.partial.log_prob(params.flatten(2))
        if not self._has_exact:
            return result
        return result + self.likelihood.masked_log_prob(params, self.values, self.exact)

    def curvature_product(self, params: Tensor, tangents: Tensor) -> Tensor:
        """F v of the evidence: params as from `params`, v (*more, *params.shape).

        F is the Fisher matrix, or the likelihood's substitute for it.
        """
        if self.partial is None:
            return self.likelihood.curvature_product(params, tangents, self.exact)
        num = params.ndim - 2
        result = self.partial.fisher_product(params.flatten(2), tangents.flatten(-num))
        result = result.reshape(tangents.shape)
        if not self._has_exact:
            return result
        return result + self.likelihood.curvature_product(params, tangents, self.exact)

    def lost(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The share of points at which an observed element is lost, and the one lost most often.

        An element is lost where `Likelihood.lost` says so.

        Args:
            z: Shape (S, B, latent).
        Returns:
            The share, and the element's index in a flattened datum, both of shape (B,).
        """
        shares, elements = [z.new_zeros(0)], [z.new_zeros(0, dtype=torch.long)]
        for rows, part in self.pieces(len(z)):
            of_element = torch.zeros_like(part.values)
            of_query = z.new_zeros(len(part.values))
            for some in part.slices(len(z)):
                params = part.params(z[some, rows])
                lost = part.likelihood.lost(params, part.values) & part.exact
                of_query += lost.any(-1).sum(0)
                of_element += lost.sum(0)
            shares.append(of_query / max(len(z), 1))
            elements.append(part.element(of_element.argmax(1)))
        return torch.cat(shares), torch.cat(elements)

    def element(self, place: Tensor) -> Tensor:
        """The datum's element that is at a place among each query's elements, (B,) -> (B,)."""
        return self.elements.expand(len(place), -1).gather(1, place[:, None])[:, 0]

    def in_pieces(
        self,
        z: Tensor,
        function: Callable[["Observed", Tensor], Tensor],
        *,
        decodes_of_one: int = 1,
    ) -> Tensor:
        """Evaluate a function at z (*sample, B, latent) in pieces: shape (*sample, B, *event).

        Args:
            z: Latent points.
            function: Takes some queries and their points, (S', B', latent); returns (S', B',
                *event).
            decodes_of_one: How many decodes per point the function has in memory.
        """
        flat = z.reshape(z.shape[:-2].numel(), *z.shape[-2:])
        results = []
        for rows, part in self.pieces(len(flat) * decodes_of_one):
            slices = part.slices(len(flat), decodes_of_one)
            results.append(torch.cat([function(part, flat[some, rows]) for some in slices]))
        result = torch.cat(results, dim=1)
        return result.reshape(*z.shape[:-1], *result.shape[2:])

    def pieces(self, num_points: int) -> Iterator[tuple[slice, "Observed"]]:
        """Pieces of a few queries each, sized for `num_points` points per query.

        A piece leaves out elements that none of its queries observes.
        """
        size = _whole(self.points_at_once // min(max(num_points, 1), _POINTS_AT_ONCE))
        for start in range(0, max(len(self.values), 1), size):
            rows = slice(start, start + size)
            yield rows, self.select(rows)._trimmed()

    def slices(self, num_points: int, decodes_of_one: int = 1) -> Iterator[slice]:
        """Slices of `num_points` points per query, each as large as a piece may be."""
        size = _whole(self.points_at_once // (max(len(self.values), 1) * decodes_of_one))
        kind = f"{decodes_of_one} decodes of {len(self.values)}"
        return self.clock.slices(num_points, size, kind)

    @property
    def outputs(self) -> Tensor:
        """The places in the decoder's flattened output of what `params` returns.

        Shape (R, params_size).
        """
        return self._outputs

    @property
    def params_size(self) -> int:
        """How many parameters `params` returns for one point of a query."""
        return self._outputs.shape[-1]

    @property
    def points_at_once(self) -> int:
        """How many points, of all queries together, make up a piece."""
        numbers = self._vae.cost.values + _PER_ELEMENT * self._vae.params_size
        piece = self.clock.piece_bytes(_PIECE_BYTES)
        return max(piece // (numbers * self._vae.dtype.itemsize), 1)

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        """log p(x|z) in nats of query[i] at z[i]: z (N, latent), query (N,) -> (N,)."""
        slices = self.clock.slices(len(z), self.points_at_once, "points of their own")
        return torch.cat([self.select(query[some]).at(z[some][None])[0] for some in slices])

    def _trimmed(self) -> "Observed":
        """Without the elements that no query here observes."""
        most = int(self._counts.amax()) if len(self._counts) else 0
        if not 0 < most < self.elements.shape[1] or not self.likelihood.by_element:
            return self
        part, outputs = self._copy(), self.params_size // self.elements.shape[1] * most
        for name in ("elements", "mask", "exact", "values"):
            setattr(part, name, getattr(self, name)[..., :most])
        part._outputs = self._outputs[..., :outputs]
        part.likelihood = self.likelihood.trimmed(most)
        return part

    def _copy(self):
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied


class ObservedRows(Observed):
    """`Observed` with only the needed rows of the last layer; other elements are not decoded."""

    _by_query = (*Observed._by_query, "_weight", "_bias")

    def __init__(
        self,
        vae: VAE,
        head: Head,
        values: Tensor,
        mask: Tensor,
        partial: PartialEvidence | None = None,
    ) -> None:
        super().__init__(vae, values, mask, partial)
        self._weight = head.weight[self._outputs].mT.contiguous()
        self._bias = head.bias[self._outputs]

    @classmethod
    def where_faster(
        cls,
        vae: VAE,
        values: Tensor,
        mask: Tensor,
        clock: Clock = UNLIMITED,
        partial: PartialEvidence | None = None,
    ) -> "ObservedRows | None":
        if vae.head is None:
            return None
        most = _most_observed(mask if partial is None else mask | partial.used)
        row_bytes = vae.head.weight[0].numel() * values.element_size()
        size = len(mask) * most * row_bytes * (vae.params_size // vae.data_size)
        few = 0 < most <= _MOST_OBSERVED * vae.data_size
        if not few or size > clock.piece_bytes(_MAX_BYTES):
            return None
        return cls(vae, vae.head, values, mask, partial)

    def params(self, z: Tensor) -> Tensor:
        self.clock.tick()
        return self._counted(self._head.activation(self._linear(self._hidden(z), self._bias)))

    def with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.clock.tick()
        hidden, slopes = with_jacobian(self._hidden, z)
        output = self._linear(hidden, self._bias)
        tangents = self._linear(slopes.flatten(0, 1), torch.zeros_like(self._bias))
        tangents = tangents.unflatten(0, (-1, len(z)))
        if self._head.activations:
            tangents = pushed_forward(self._head.activation, output, tangents)
        params = self._counted(self._head.activation(output))
        return params, self._counted(tangents, 0.0)

    def _hidden(self, z: Tensor) -> Tensor:
        """What the last layer takes: z (*sample, B, latent) -> (S, B, H)."""
        shape = (z.shape[:-2].numel(), z.shape[-2], self._width)
        return self._head.trunk(z.reshape(-1, z.shape[-1])).reshape(shape)

    def _linear(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """The last layer's rows for these elements: (S, B, H) -> (S, B, E)."""
        if len(self.elements) == 1:
            return F.linear(hidden, self._weight[0].mT, bias[0])
        return torch.baddbmm(bias[:, None], hidden.transpose(0, 1), self._weight).transpose(0, 1)

    @property
    def points_at_once(self) -> int:
        widest = max(self._width, self._bias.shape[1])
        cache = self.clock.piece_bytes(_CACHE_BYTES)
        return max(cache // (widest * self.values.element_size()), _POINTS_AT_ONCE)

    def _trimmed(self) -> "ObservedRows":
        part = super()._trimmed()
        assert isinstance(part, ObservedRows)
        for name in ("_weight", "_bias"):
            setattr(part, name, getattr(self, name)[..., : part.params_size])
        return part

    def log_likelihood_at(self, z: Tensor, query: Tensor) -> Tensor:
        """log p(x|z) in nats of query[i] at z[i]: z (N, latent), query (N,) -> (N,).

        The points of each query are arranged in tiles, the last one padded, so that the query's
        rows are fetched only once per tile.
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
    def _head(self) -> Head:
        assert self._vae.head is not None
        return self._vae.head

    @property
    def _width(self) -> int:
        return self._weight.shape[-2]


def _most_observed(mask: Tensor) -> int:
    """The largest number of observed elements in a row of mask (B, E); 0 without queries."""
    return int(mask.sum(1).max()) if len(mask) else 0


def _whole(num: int) -> int:
    """`num` rounded down to whole vectors, so that pieces round as all points at once would."""
    return max(num - num % _LANES if num > _LANES else num, 1)
