"""Parameters of a cross-coder as the numbers that a network outputs: one row for each query.

The parameters follow each other in the order of `Crosscoder.start`. Only the entries of a lower
triangular factor below its diagonal are included, row by row.
"""

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.base import Crosscoder, Params

_TRIANGULAR = "lower"  # the parameter whose strict lower triangle alone is used


def num_numbers(crosscoder: Crosscoder, dim: int) -> int:
    """How many numbers a query's parameters take."""
    return sum(count for _, _, count in _layout(crosscoder, dim))


def unpacked_numbers(crosscoder: Crosscoder, numbers: Tensor, dim: int) -> Params:
    """The parameters ψ, each of shape (B, …), from numbers (B, num_numbers)."""
    layout = _layout(crosscoder, dim)
    pieces = numbers.split([count for _, _, count in layout], dim=1)
    params = {}
    for (name, shape, _), piece in zip(layout, pieces, strict=True):
        if name == _TRIANGULAR:
            row, column = torch.tril_indices(dim, dim, -1, device=numbers.device)
            whole = numbers.new_zeros(len(numbers), *shape)
            below = piece.reshape(len(numbers), *shape[:-2], len(row))
            whole[..., row, column] = below
            params[name] = whole
        else:
            params[name] = piece.reshape(len(numbers), *shape)
    return params


def _layout(crosscoder: Crosscoder, dim: int) -> list[tuple[str, torch.Size, int]]:
    """Name, shape of one query, and count of numbers of each parameter."""
    ones = torch.ones(1, dim)
    params = crosscoder.start(ones, ones, generator=Generator())
    layout = []
    for name, tensor in params.items():
        shape = tensor.shape[1:]
        below = shape[:-2].numel() * dim * (dim - 1) // 2
        layout.append((name, shape, below if name == _TRIANGULAR else shape.numel()))
    return layout
