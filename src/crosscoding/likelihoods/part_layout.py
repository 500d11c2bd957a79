"""Where the parts of `Mixed` are: in data and a decoder's output, and in both once flattened."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.mixed_heads import Part


@dataclass(frozen=True, eq=False)
class PartLayout:
    """Splits data and parameters by part, and joins what was computed for each part.

    Args:
        pairs: Each part with its number of columns.
        dim: Which dimension of unflattened data holds the columns, counted from the last, < 0.
        order: The parts' elements in flattened data, one part after the other, (E,); None: the
            data are already in this order.
        output_order: The same for their parameters in flattened output.
    """

    pairs: tuple[Part, ...]
    dim: int
    order: Tensor | None = None
    output_order: Tensor | None = None

    @property
    def columns(self) -> list[int]:
        """The number of columns of each part."""
        return [num for _, num in self.pairs]

    @property
    def outputs(self) -> list[int]:
        """The number of parameters of each part."""
        return [num * math.prod(part.param_shape) for part, num in self.pairs]

    # ---- unflattened -----------------------------------------------------------------------------

    def columns_of_parts(self, data: Tensor) -> tuple[Tensor, ...]:
        """Unflattened data by part, each (*others, columns)."""
        return data.movedim(self.dim, -1).split(self.columns, -1)

    def params_of_parts(self, params: Tensor) -> list[tuple[Likelihood, Tensor]]:
        """Each part with its share of a decoder's unflattened output."""
        pieces = params.movedim(self.dim, -1).split(self.outputs, -1)
        return [
            (part, own.unflatten(-1, (num, *part.param_shape)))
            for (part, num), own in zip(self.pairs, pieces, strict=True)
        ]

    def places(
        self, data_shape: Sequence[int], device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """For each part, the indices of its elements and parameters in flattened data and output.

        Shapes (*others, columns) and (*others, columns, *param_shape), where others is the data's
        shape without the columns.
        """
        shapes = [list(data_shape), list(data_shape)]
        shapes[1][self.dim] = sum(self.outputs)
        elements, outputs = (
            torch.arange(math.prod(shape), device=device)
            .reshape(shape)
            .movedim(self.dim, -1)
            .split(sizes, -1)
            for shape, sizes in zip(shapes, (self.columns, self.outputs), strict=True)
        )
        return [
            (own, params.unflatten(-1, (num, *part.param_shape)))
            for (part, num), own, params in zip(self.pairs, elements, outputs, strict=True)
        ]

    # ---- flattened -------------------------------------------------------------------------------

    def in_order_of(self, places: list[tuple[Tensor, Tensor]]) -> "PartLayout":
        """The layout of data that were flattened, given what `places` returned for their shape."""
        orders = (torch.cat([p.flatten() for p in pieces]) for pieces in zip(*places, strict=True))
        return PartLayout(self.pairs, self.dim, *orders)

    def with_pairs(self, pairs: tuple[Part, ...]) -> "PartLayout":
        """The same layout for other parts, such as the same ones with other settings."""
        return replace(self, pairs=pairs)

    def split_values(self, values: Tensor) -> Sequence[Tensor]:
        """Flat data, (*shape, E), by part."""
        values = values if self.order is None else values[..., self.order]
        return values.split(self.columns, -1)

    def split(self, params: Tensor, *values: Tensor) -> list[tuple[Any, ...]]:
        """Each part with its parameters (*sample, E, *param_shape) and its share of flat data."""
        params = params if self.output_order is None else params[..., self.output_order]
        pieces = params.split(self.outputs, -1)
        return [
            (part, own.unflatten(-1, (num, *part.param_shape)), *data)
            for (part, num), own, *data in zip(
                self.pairs, pieces, *map(self.split_values, values), strict=True
            )
        ]

    def joined(self, pieces: Sequence[Tensor]) -> Tensor:
        """Flat data, (*shape, E), from those of the parts."""
        return _in_order(torch.cat(list(pieces), -1), self.order)

    def joined_outputs(self, pieces: Sequence[Tensor]) -> Tensor:
        """Flat parameters, or tensors of their shape, from those of the parts."""
        flat = [
            piece.flatten(piece.ndim - 1 - len(part.param_shape))
            for (part, _), piece in zip(self.pairs, pieces, strict=True)
        ]
        return _in_order(torch.cat(flat, -1), self.output_order)

    def within_parts(self, elements: Tensor) -> list[Tensor]:
        """Elements (*B, E'), given part after part, split into indices within each part."""
        places = elements if self.order is None else self.order.argsort()[elements]
        ends = torch.tensor(self.columns, device=places.device).cumsum(0)
        numbers = self.columns  # if there is no query
        if places.numel():
            part = torch.bucketize(places.flatten()[: places.shape[-1]], ends, right=True)
            numbers = torch.bincount(part, minlength=len(ends)).tolist()
        starts = [0, *ends[:-1].tolist()]
        pieces = places.split(numbers, -1)
        return [piece - start for piece, start in zip(pieces, starts, strict=True)]


def _in_order(joined: Tensor, order: Tensor | None) -> Tensor:
    return joined if order is None else joined[..., order.argsort()]
