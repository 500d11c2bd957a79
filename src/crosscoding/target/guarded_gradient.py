"""Gradients in which what does not count has no say.

Going backwards through a network, 0 times the infinite derivative of an output that does not count
would be NaN, and NaN would spread to all. Here it is 0, as the gradient without that output has it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[[Tensor], Tensor]

_PRODUCTS = {torch.ops.aten.mul}
_SUMS = {torch.ops.aten.add, torch.ops.aten.add_}


def gradient(function: Function, z: Tensor, weights: Function = torch.ones_like) -> list[Tensor]:
    """function(z) and the gradient of its weighted sum, shape of z, both without a graph.

    Args:
        function: Whatever torch can differentiate.
        z: Points.
        weights: Of what function gives, given that: of its shape.
    Raises:
        ValueError: What function gives has no gradient.
    """
    both = _gradient(function, z, weights, nullcontext())
    return _gradient(function, z, weights, _ZeroWins()) if both[1].isnan().any() else both


@torch.enable_grad()
def _gradient(function: Function, z: Tensor, weights: Function, backwards: Any) -> list[Tensor]:
    z = z.detach().requires_grad_()
    value = function(z)
    if not value.requires_grad:
        raise ValueError(
            "expected a decoder that torch can differentiate by z, got one whose output has no "
            "gradient; remove detach() and no_grad() from it"
        )
    of_value = weights(value.detach())
    with backwards:
        (slope,) = torch.autograd.grad(value, z, of_value)
    return [value.detach(), slope]


class _ZeroWins(TorchDispatchMode):
    """While it lasts, 0 times anything is 0, and so is what any step makes of a gradient of 0.

    A step backwards is a product with the gradient, or an operation whose first argument it is.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.is_view or func.overloadpacket in _SUMS or not isinstance(output, Tensor):
            return output
        for factor in args[: 2 if func.overloadpacket in _PRODUCTS else 1]:
            if isinstance(factor, Tensor) and output.isnan().any():
                output = _zero_where(output, factor)
        return output


def _zero_where(output: Tensor, factor: Tensor) -> Tensor:
    """0 in place of NaN where the factor is 0, if it belongs to the output element by element."""
    try:
        none = (factor == 0).expand_as(output)
    except RuntimeError:
        return output
    return torch.where(none & output.isnan(), 0.0, output)
