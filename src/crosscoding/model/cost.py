"""What one evaluation of a network takes: counted, not timed: no answer depends on speed."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from crosscoding.errors import ModelFormatError, first_line
from crosscoding.persistence import layers

_PER_NUMBER = 2**5  # multiply-adds in the time that a number takes to memory or back
_PER_STEP = 2**22  # and in that of the smallest operation, with what is counted of it
_VALUE_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Cost:
    """What decoding one z takes.

    Attributes:
        operations: Multiply-adds, of products, convolutions, attention and recurrent layers, and
            additions of pooling.
        values: Numbers that all steps output together, which go to memory and back.
        largest: Numbers that the step outputs that outputs most.
    """

    operations: float
    values: int
    largest: int = field(default=0, compare=False)


def cost_of(run: Callable[[Any], Any], z: Any) -> Cost:
    """What a function of z, shape (1, latent), takes."""
    with counting() as cost:
        run(z)
    return cost()


@contextmanager
def counting() -> Iterator[Callable[[], Cost]]:
    """Gives a function that tells what was run so far in this context, without gradients."""
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with torch.no_grad(), counter, _ValueCounter() as values:
        yield lambda: Cost(counter.get_total_flops() / 2, values.total, values.largest)


def check_growth(network: nn.Module, shape: Sequence[int]) -> None:
    """Follow a row's shape through known layers, without memory for what they output, or time.

    Args:
        network: A stack of known layers; what other networks do cannot be known beforehand.
        shape: Of one row of its input.
    Raises:
        ModelFormatError: A layer does not take the output of the one before it, or together they
            output more than `layers.MOST_VALUES` numbers, or take more than
            `layers.MOST_OPERATIONS` multiply-adds.
    """
    description = layers.describe(network) or []
    steps, row = layers.build(description), torch.empty(1, *shape, device="meta")
    with counting() as cost:
        for index, layer in enumerate(steps):
            try:
                row = layer(row)
            except Exception as error:  # layers have many ways to say that a shape does not fit
                raise ModelFormatError(
                    f"expected a layer {index} that takes shape {tuple(row.shape[1:])}, "
                    f"got {layers.short(description[index])}: {first_line(error)}"
                ) from error
            where = f"for one row, got more at layer {index}, {layers.short(description[index])}"
            if cost().values > layers.MOST_VALUES:  # with what a layer outputs within, as padding
                raise ModelFormatError(
                    f"expected layers that output at most {layers.MOST_VALUES} numbers {where}"
                )
            if cost().operations > layers.MOST_OPERATIONS:
                raise ModelFormatError(
                    f"expected layers that take at most {layers.MOST_OPERATIONS} multiply-adds "
                    f"{where}"
                )


class Limited(TorchDispatchMode):
    """Lets operations run as long as all together take no more than a limit: it looks before each.

    Here a number that is read or written counts as some multiply-adds, and so does every step.
    What is output where that depends on values, as of `nonzero`, counts as what is read, and once
    more, as what it is, when it is there.

    Args:
        limit: What they may take.

    Raises:
        ModelFormatError: In place of an operation that would take more, or after one that did.
    """

    def __init__(self, limit: Cost) -> None:
        super().__init__()
        self._limit = limit
        self._operations, self._values = 0.0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        known = self._add_beforehand(func, args, kwargs)
        output = func(*args, **kwargs)
        if not known:
            self._add(func, 0, Cost(0, _put_out(output)))
        return output

    def _add_beforehand(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Count an operation by what it does to tensors without memory; whether that is known."""
        read = sum(t.numel() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        empty = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if any(argument.name == "device" for argument in func._schema.arguments):
            empty[1]["device"] = torch.device("meta")
        try:
            cost = cost_of(lambda given: func(*given[0], **given[1]), empty)
        except Exception:
            if _VALUE_DEPENDENT.isdisjoint(func.tags):
                raise
            self._add(func, read, Cost(0, read))
            return False
        self._add(func, read, cost)
        return True

    def _add(self, func: Any, read: int, cost: Cost) -> None:
        self._values += cost.values
        self._operations += cost.operations + _PER_NUMBER * (read + cost.values) + _PER_STEP
        if self._values > self._limit.values or self._operations > self._limit.operations:
            raise ModelFormatError(
                f"expected at most {self._limit.operations:.0f} multiply-adds for one row, and "
                f"{self._limit.values} numbers that are output, got more at {func}"
            )


class _ValueCounter(TorchDispatchMode):
    """Counts the numbers that operations output; a view of a tensor outputs none."""

    total = largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            put_out = _put_out(output)
            self.total, self.largest = self.total + put_out, max(self.largest, put_out)
        return output


def _put_out(output: Any) -> int:
    """How many numbers an operation output."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    return sum(part.numel() for part in parts if isinstance(part, Tensor))


# Twice the multiply-adds of operations that torch leaves out; it calls with shapes for tensors.


def _pooling(
    num_dims: int, _: Any, window: Sequence[int], *rest: Any, out_shape: Any, **more: Any
) -> int:
    """Of windows of so many dimensions."""
    put_out = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]  # or with indices
    seen = math.prod(window) if len(window) == num_dims else window[0] ** num_dims
    return 2 * put_out.numel() * seen


def _recurrent(steps: torch.Size, *weights: Any, **more: Any) -> int:
    """Of a recurrent layer: of its weights for inputs and for what it keeps, at every step."""
    return 2 * steps[:2].numel() * (weights[0].numel() + weights[1].numel())


def _attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **more: Any
) -> int:
    """Of attention: every query by every key, and the weights of that by every value."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


_UNCOUNTED = {
    torch.ops.aten.avg_pool2d: partial(_pooling, 2),
    torch.ops.aten.avg_pool3d: partial(_pooling, 3),
    torch.ops.aten.max_pool2d_with_indices: partial(_pooling, 2),
    torch.ops.aten.max_pool3d_with_indices: partial(_pooling, 3),
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
