"""Networks that take the observed elements of a datum, and the mask that says which they are.

The features are, side by side: a number for each element, 0 where it is not observed; ones at the
observed elements; and, where elements are classes, a one at each observed class.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.errors import ModelFormatError
from crosscoding.persistence import layers

_FIELDS = {"layers", "elements", "classes"}


class MaskedNetwork(nn.Module):
    """A stack of layers that takes values and a mask, and is saved as data.

    Args:
        stack: Layers from the features (B, 2 E + C) to an output (B, P). Pictures begin with
            `nn.Unflatten(1, (2 * channels, height, width))`.
        shift, scale: What is subtracted from each element, and what it is then divided by, (E,),
            before asinh, which compresses heavy tails.
        source, code: The element and the value of each class that has a feature, (C,).
    """

    def __init__(
        self, stack: nn.Sequential, shift: Tensor, scale: Tensor, source: Tensor, code: Tensor
    ) -> None:
        super().__init__()
        self.stack = stack
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.register_buffer("source", source)
        self.register_buffer("code", code)

    shift: Tensor
    scale: Tensor
    source: Tensor
    code: Tensor

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Numbers (B, P) for values and mask, both (B, *data)."""
        return self.stack(self.features(values, mask))

    def features(self, values: Tensor, mask: Tensor) -> Tensor:
        """What the layers see, (B, 2 E + C)."""
        values, seen = values.flatten(1), mask.flatten(1)
        numbers = torch.where(seen, ((values - self.shift) / self.scale).asinh(), 0.0)
        classes = seen[:, self.source] & (values[:, self.source] == self.code)
        return torch.cat([numbers, seen.to(values), classes.to(values)], 1)

    def describe(self) -> dict[str, Any] | None:
        """The network as data, from which `empty` makes it; None if a layer is not known."""
        known = layers.describe(self.stack)
        if known is None:
            return None
        return {"layers": known, "elements": len(self.shift), "classes": len(self.source)}

    @staticmethod
    def empty(description: Mapping[str, Any]) -> "MaskedNetwork":
        """The network of a description, before its weights are loaded.

        Raises:
            ModelFormatError: The description is malformed.
        """
        sizes = [description.get(name) for name in ("elements", "classes")]
        if description.keys() != _FIELDS or not all(map(_is_size, sizes)):
            raise ModelFormatError(f"expected a masked network, got {layers.short(description)}")
        elements, classes = description["elements"], description["classes"]
        with torch.device("meta"):
            shift, scale, code = torch.empty(elements), torch.empty(elements), torch.empty(classes)
            source = torch.empty(classes, dtype=torch.long)
            stack = layers.build(description["layers"])
            return MaskedNetwork(stack, shift, scale, source, code).eval()


def _is_size(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and 0 <= value <= layers.MOST_VALUES
