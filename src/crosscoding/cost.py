"""What one evaluation of a decoder takes: counted, not timed: no answer depends on speed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What decoding one z takes.

    Attributes:
        operations: Multiply-adds, of products and convolutions.
        values: Numbers that all steps put out together, which go to memory and back.
    """

    operations: float
    values: int


@torch.no_grad()
def cost_of(run: Callable[[Tensor], Any], z: Tensor) -> Cost:
    """What a function of z, shape (1, latent), takes."""
    with FlopCounterMode(display=False) as operations, _ValueCounter() as values:
        run(z)
    return Cost(operations.get_total_flops() / 2, values.total)


class _ValueCounter(TorchDispatchMode):
    """Counts the numbers that operations put out; a view of a tensor puts out none."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            parts = output if isinstance(output, (tuple, list)) else (output,)
            self.total += sum(part.numel() for part in parts if isinstance(part, Tensor))
        return output
