"""Networks within priors: how their layers are kept, and how their outputs are read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.persistence import layers


def stacked(network: nn.Module, name: str) -> nn.Module:
    """A network of known layers as one flat stack, as it is saved; any other one unchanged.

    Raises:
        TypeError: It is not a module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected {name} to be a torch.nn.Module, got {type(network).__name__}; wrap a "
            "function in a module with a forward method"
        )
    return network if layers.describe(network) is None else layers.flat_stack(network)


class Function(nn.Module):
    """A function as a module, which has no weights and is not saved."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, given: Any) -> Tensor:
        return self.function(given)


def mean_and_scale(output: Any, dim: int, name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (*sample, dim) each, from a network's output.

    Args:
        output: Mean and log-variance, side by side in one tensor or as a tuple of the two.
        dim: Size of each.
        name: The network's name in messages.
    Raises:
        ValueError: The output is something else.
    """
    pieces = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    if all(isinstance(piece, Tensor) for piece in pieces) and len(pieces) in (1, 2):
        joined = torch.cat(pieces, -1) if len(pieces) == 2 else pieces[0]
        if joined.shape[-1:] == (2 * dim,):
            mean, log_variance = joined.chunk(2, -1)
            return mean, (0.5 * log_variance).exp()
    got = ", ".join(
        str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in pieces
    )
    raise ValueError(
        f"expected mean and log-variance of {dim} numbers each from {name}, side by side or as a "
        f"tuple of two, got {got}"
    )
