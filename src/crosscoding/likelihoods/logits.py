"""Whether a decoder's numbers are hardly logits, but probabilities.

Many logits do not all lie between 0 and 1 by chance. A few may; then the autograd graph tells
whether they come straight out of a sigmoid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_FEW = 8  # elements, below which logits may all lie in [0, 1] by chance, as test_doubts.py counts
_INTO_0_TO_1 = {"Sigmoid", "Hardsigmoid", "Softmax"}
_UNCHANGED = {
    *(
        "Alias",
        "AsStrided",
        "Cat",
        "Clamp",
        "Clone",
        "Expand",
        "Permute",
        "Reshape",
        "ReshapeAlias",
    ),
    *("Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "T", "ToCopy", "Transpose"),
    *("Unbind", "UnsafeSplit", "UnsafeView", "Unsqueeze", "View"),
}
"""Operations that give the numbers they are given, in another shape or dtype."""


def hardly_logits(numbers: Tensor) -> bool:
    """Whether numbers that should be logits, (B, …) at several z, are probabilities instead."""
    inside = bool(((numbers >= 0) & (numbers <= 1)).all()) and bool(numbers.any())
    return inside and (numbers[0].numel() >= _FEW or _squashed(numbers))


def _squashed(numbers: Tensor) -> bool:
    """Whether all come straight out of a function into [0, 1]; False where they have no graph."""
    if not numbers.requires_grad or numbers.grad_fn is None:
        return False
    ends, seen, left = [], set[Any](), [numbers.grad_fn]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        operation = node.name().split("Backward")[0]
        if operation in _INTO_0_TO_1:
            ends.append(GradientEdge(node, 0))
        elif operation in _UNCHANGED:
            left += [inner for inner, _ in node.next_functions if inner is not None]
    if not ends:
        return False
    total = numbers.double().sum()
    found = torch.autograd.grad(total, ends, retain_graph=True, allow_unused=True)
    return sum(slope.double().sum().item() for slope in found if slope is not None) == len(
        numbers.flatten()
    )
