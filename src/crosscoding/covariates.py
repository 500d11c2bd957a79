"""Covariates: what a decoder takes in addition to z, such as a label; one row per query.

They are a tensor, or a dict, tuple or list of tensors, all with the same leading batch dimensions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from crosscoding.errors import ModelFormatError

Covariates = Any
"""A tensor, or a dict, tuple or list of tensors; None where a decoder takes none."""


def mapped(function: Callable[[Tensor], Tensor], given: Covariates) -> Covariates:
    """The same structure with a function applied to each tensor."""
    return None if given is None else tree_map(function, given)


def tensors(given: Covariates) -> list[Tensor]:
    """All tensors of covariates, in order."""
    return [] if given is None else tree_leaves(given)


def agreed(one: Covariates, other: Covariates) -> Covariates:
    """The covariates of two pieces of evidence, of which one may have none.

    Raises:
        ValueError: Both have covariates, and these differ.
    """
    if one is None or other is None:
        return other if one is None else one
    alike = tree_flatten(one)[1] == tree_flatten(other)[1]
    if not alike or not all(map(torch.equal, tensors(one), tensors(other))):
        raise ValueError("expected evidence with the same covariates, or only one with any")
    return one


def number_of_rows(given: Covariates) -> int:
    """Number of rows of covariates with one batch dimension."""
    return len(tensors(given)[0])


def tiled(given: Covariates, num: int) -> Covariates:
    """`num` rows: the given ones, repeated in order."""

    def of_tensor(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(num, device=tensor.device) % len(tensor)]

    return mapped(of_tensor, given)


def batch_shape(given: Covariates, examples: Covariates) -> torch.Size:
    """The batch dimensions of covariates, which the model's examples, with one, must match.

    Raises:
        ValueError: The covariates differ from the examples in structure, dtype, device or shape.
    """
    if tree_flatten(given)[1] != tree_flatten(examples)[1]:
        raise ValueError(
            f"expected covariates nested as in the model's examples, {_in_words(examples)}, got "
            f"{_in_words(given)}"
        )
    shapes = set()
    for own, example in zip(tensors(given), tensors(examples), strict=True):
        if not isinstance(own, Tensor) or own.dtype != example.dtype:
            got = own.dtype if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(
                f"expected covariates of {example.dtype}, like the model's examples, got {got}"
            )
        if own.device != example.device:
            raise ValueError(
                f"expected covariates on the model's device {example.device}, got {own.device}"
            )
        event, num_batch_dims = example.shape[1:], own.ndim - (example.ndim - 1)
        if num_batch_dims < 0 or own.shape[num_batch_dims:] != event:
            wanted = ", ".join(["*batch", *map(str, event)])
            raise ValueError(
                f"expected covariates of shape ({wanted}), like the model's examples, got "
                f"{tuple(own.shape)}"
            )
        shapes.add(own.shape[:num_batch_dims])
    if len(shapes) != 1:
        both = " and ".join(str(tuple(shape)) for shape in sorted(shapes))
        raise ValueError(f"expected covariates with one batch shape, got {both}")
    return shapes.pop()


def flattened(given: Covariates, num_batch_dims: int) -> Covariates:
    """Covariates with their batch dimensions merged into one."""

    def of_tensor(tensor: Tensor) -> Tensor:
        batch = tensor.shape[:num_batch_dims]
        return tensor.reshape(batch.numel(), *tensor.shape[num_batch_dims:])

    return mapped(of_tensor, given)


def distinct(given: Covariates) -> tuple[Covariates, Tensor]:
    """The distinct rows in order of first appearance, and which of them each row is, (N,)."""
    table = _as_table(given)
    _, inverse = table.unique(dim=0, return_inverse=True)
    places = torch.arange(len(table), device=table.device)
    first = torch.full_like(places, len(table)).scatter_reduce(0, inverse, places, "amin")
    first = first[: int(inverse.max()) + 1]
    order = first.argsort()
    return mapped(lambda t: t[first[order]], given), order.argsort()[inverse]


def places_among(given: Covariates, known: Covariates) -> Tensor:
    """The first row of `known` that equals each row, (N,); −1 where none does."""
    table, others = _as_table(given), _as_table(known)
    places = torch.full((len(table),), -1, device=table.device)
    for index in range(len(others) - 1, -1, -1):
        places = torch.where((table == others[index]).all(1), index, places)
    return places


def check_covariates(given: Covariates, device: torch.device) -> None:
    """Raise ValueError unless covariates are finite and on this device."""
    for tensor in tensors(given):
        if tensor.device != device:
            raise ValueError(
                f"expected covariates on the model's device {device}, got {tensor.device}"
            )
        if not tensor.isfinite().all():
            raise ValueError("expected finite covariates, got NaN or infinity")


def to_parts(given: Covariates) -> tuple[dict[str, Tensor], Any]:
    """Covariates as numbered tensors, and their nesting as JSON, with numbers for the tensors.

    Raises:
        TypeError: They are nested in something other than tuples, lists and dicts, or a dict has
            a key that is not a string.
    """
    found: list[Tensor] = []

    def of(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
            return len(found) - 1
        if isinstance(part, dict) and all(isinstance(key, str) for key in part):
            return {key: of(value) for key, value in part.items()}
        if type(part) in (tuple, list):
            return [type(part).__name__, *map(of, part)]
        raise TypeError(
            "expected covariates in tensors, tuples, lists, and dicts with strings as keys, got "
            f"{type(part).__name__}"
        )

    layout = of(given)
    return {str(index): tensor for index, tensor in enumerate(found)}, layout


def from_parts(parts: Mapping[str, Tensor], layout: Any) -> Covariates:
    """The covariates that `to_parts` described; None for a layout of None.

    Raises:
        ModelFormatError: The layout is malformed, or does not name every tensor once.
    """
    unused = set(parts)

    def of(part: Any) -> Any:
        if type(part) is int and str(part) in unused:
            unused.remove(str(part))
            return parts[str(part)]
        if isinstance(part, dict):
            return {key: of(value) for key, value in part.items()}
        if isinstance(part, list) and part and part[0] in ("tuple", "list"):
            nested = [of(value) for value in part[1:]]
            return tuple(nested) if part[0] == "tuple" else nested
        raise ModelFormatError(
            f"expected a description of how covariates are nested, got {part!r:.80}"
        )

    given = None if layout is None else of(layout)
    if unused:
        raise ModelFormatError(
            f"expected no covariates but those described, got {min(unused)[:80]!r}"
        )
    return given


def _as_table(given: Covariates) -> Tensor:
    """All numbers of each row side by side, in double, (N, C)."""
    rows = [tensor.reshape(len(tensor), tensor.shape[1:].numel()) for tensor in tensors(given)]
    return torch.cat([part.double() for part in rows], 1)


def _in_words(given: Covariates) -> str:
    if isinstance(given, dict):
        return f"a dict of {', '.join(map(repr, given))}"
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {len(given)}"
    return "a tensor" if isinstance(given, Tensor) else type(given).__name__
