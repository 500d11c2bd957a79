"""What each stage of a method did for each query."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage of a method did.

    Attributes:
        name: Name of the stage.
        decodes: Decoder evaluations for each query, shape (*batch,); 0 where it did not run.
        seconds: Each query's share of its wall-clock time, shape (*batch,).
    """

    name: str
    decodes: Tensor
    seconds: Tensor
