"""The cost of running a network, counted and not timed, so that no answer depends on speed."""

import copy
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
from crosscoding.priors import DiscretePrior, Prior
from crosscoding.priors.files import is_data

_PER_NUMBER = 2**5  # multiply-adds in the time it takes to read or write a number
_PER_STEP = (
    2**22
)  # multiply-adds in the time that the smallest operation takes to be counted and run
_VALUE_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Cost:
    """The cost of decoding one z.

    Attributes:
        operations: Multiply-adds in products, convolutions, attention and recurrent layers, and
            additions in pooling.
        values: Numbers that all steps together output: each is written to memory and read back.
        largest: Numbers in the largest output of a single step.
    """

    operations: float
    values: int
    largest: int = field(default=0, compare=False)


def cost_of(run: Callable[[Any], Any], z: Any) -> Cost:
    """The cost of a function at z, shape (1, latent)."""
    with counting() as cost:
        run(z)
    return cost()


@contextmanager
def counting() -> Iterator[Callable[[], Cost]]:
    """Yield a function that gives the cost of all that ran in this context; gradients are off."""
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with torch.no_grad(), counter, _ValueCounter() as values:
        yield lambda: Cost(counter.get_total_flops() / 2, values.total, values.largest)


def check_growth(network: nn.Module, shape: Sequence[int]) -> None:
    """Check that a network of known layers fits together and stays small, without running it.

    Shapes are followed on the meta device, which takes neither memory nor time.

    Args:
        network: A stack of known layers; any other network passes, as its cost is unknown.
        shape: Shape of one row of its input.
    Raises:
        ModelFormatError: A layer does not take the output of the one before it, or together they
            output more than `layers.MOST_VALUES` numbers or take more than
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
            if cost().values > layers.MOST_VALUES:  # including intermediate ones, such as padding
                raise ModelFormatError(
                    f"expected layers that output at most {layers.MOST_VALUES} numbers {where}"
                )
            if cost().operations > layers.MOST_OPERATIONS:
                raise ModelFormatError(
                    f"expected layers that take at most {layers.MOST_OPERATIONS} multiply-adds "
                    f"{where}"
                )


def check_prior_growth(prior: Prior) -> None:
    """`check_growth` for the networks of a prior that was saved as data.

    Raises:
        ModelFormatError: They do not fit together, or take too much.
    """
    if not is_data(prior) or not prior.networks() or prior.takes_given:
        return
    empty = copy.deepcopy(prior).to("meta")
    shape = prior.input_shape if isinstance(prior, DiscretePrior) else (prior.latent_dim,)
    row = torch.empty(1, *shape, device="meta")
    row = row.to(next((p.dtype for p in prior.parameters()), row.dtype))
    with counting() as cost:
        try:
            if isinstance(empty, DiscretePrior):
                empty.log_density(row)
            else:
                empty.from_noise(row)
        except Exception as error:  # layers have many ways to say that a shape does not fit
            raise ModelFormatError(
                f"expected a prior whose networks fit together: {first_line(error)}"
            ) from error
    if cost().values > layers.MOST_VALUES or cost().operations > layers.MOST_OPERATIONS:
        raise ModelFormatError(
            f"expected a prior whose networks output at most {layers.MOST_VALUES} numbers in at "
            f"most {layers.MOST_OPERATIONS} multiply-adds for one row, got more"
        )


class Limited(TorchDispatchMode):
    """A mode that stops a computation before its total cost exceeds a limit.

    Reading or writing a number counts as some multiply-adds, and so does every step. If the size of
    an output depends on values, as for `nonzero`, the size of the input is counted beforehand, and
    the output's actual size is added afterwards.

    Args:
        limit: The largest total cost.

    Raises:
        ModelFormatError: Before an operation that would exceed the limit, or after one that did.
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
            self._add(func, 0, Cost(0, _num_output(output)))
        return output

    def _add_beforehand(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Add an operation's cost, found on the meta device; False if that depends on values."""
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
                f"at most {self._limit.values} numbers of output, got more at {func}"
            )


class _ValueCounter(TorchDispatchMode):
    """Counts the numbers that operations output; a view of a tensor outputs none."""

    total = largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            num_output = _num_output(output)
            self.total, self.largest = self.total + num_output, max(self.largest, num_output)
        return output


def _num_output(output: Any) -> int:
    """How many numbers an operation has output."""
    parts = output if isinstance(output, (tuple, list)) else (output,)
    return sum(part.numel() for part in parts if isinstance(part, Tensor))


# FLOPs, two per multiply-add, of operations that torch's counter omits. It calls these functions
# with the shapes of the tensors.


def _pooling(
    num_dims: int, _: Any, window: Sequence[int], *rest: Any, out_shape: Any, **more: Any
) -> int:
    """Pooling over windows of `num_dims` dimensions."""
    num_output = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]  # or with indices
    seen = math.prod(window) if len(window) == num_dims else window[0] ** num_dims
    return 2 * num_output.numel() * seen


def _recurrent(steps: torch.Size, *weights: Any, **more: Any) -> int:
    """A recurrent layer: its weights for the input and for the state, at every step."""
    return 2 * steps[:2].numel() * (weights[0].numel() + weights[1].numel())


def _attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **more: Any
) -> int:
    """Attention: every query times every key, and the resulting weights times every value."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


_UNCOUNTED = {
    torch.ops.aten.avg_pool2d: partial(_pooling, 2),
    torch.ops.aten.avg_pool3d: partial(_pooling, 3),
    torch.ops.aten.max_pool2d_with_indices: partial(_pooling, 2),
    torch.ops.aten.max_pool3d_with_indices: partial(_pooling, 3),
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
