"""Whether numbers that should be logits look like probabilities.

Many logits do not all lie between 0 and 1 by chance. A few may, and then the autograd graph shows
whether they come straight from a sigmoid or a softmax.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_FEW = 8  # fewer logits may all lie in [0, 1] by chance; test_doubts.py counts how often
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
"""Operations that return their input, in another shape or dtype."""


def look_like_probabilities(numbers: Tensor) -> bool:
    """Whether a decoder's output at several z, (B, …), is probabilities rather than logits."""
    inside = bool(((numbers >= 0) & (numbers <= 1)).all()) and bool(numbers.any())
    return inside and (numbers[0].numel() >= _FEW or _squashed(numbers))


def _squashed(numbers: Tensor) -> bool:
    """Whether all numbers come straight from a function into [0, 1]; False without a graph."""
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
