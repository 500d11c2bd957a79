"""Gradients that outputs of weight 0 cannot turn into NaN.

In a backward pass, a weight of 0 times an infinite derivative is NaN, and that NaN spreads to every
component. Here the product is 0, so the gradient is what it would be without that output.
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
    """function(z) and the gradient of its weighted sum, both without an autograd graph.

    Args:
        function: Any function that torch can differentiate.
        z: Points.
        weights: Maps function(z) to its weights, of the same shape.
    Raises:
        ValueError: function(z) has no gradient.
    """
    both = _gradient(function, z, weights, nullcontext())
    return _gradient(function, z, weights, _ZeroWins()) if both[1].isnan().any() else both


@torch.enable_grad()
def _gradient(function: Function, z: Tensor, weights: Function, backwards: Any) -> list[Tensor]:
    z = z.detach().requires_grad_()
    value = function(z)
    if not value.requires_grad:
        raise ValueError(
            "expected a decoder that torch can differentiate, got one whose output has no gradient "
            "with respect to z; remove detach() and no_grad() from its code"
        )
    of_value = weights(value.detach())
    with backwards:
        (slope,) = torch.autograd.grad(value, z, of_value)
    return [value.detach(), slope]


class _ZeroWins(TorchDispatchMode):
    """A mode in which 0 times anything is 0, and so is the result of any step on a gradient of 0.

    Each step of a backward pass is a product with the gradient, or an operation with the gradient
    as its first argument.
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
    """0 in place of NaN wherever the factor is 0, if its shape broadcasts to the output's."""
    try:
        none = (factor == 0).expand_as(output)
    except RuntimeError:
        return output
    return torch.where(none & output.isnan(), 0.0, output)
