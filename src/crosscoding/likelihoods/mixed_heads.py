"""The heads of a decoder for `Mixed`, one per part: which dimensions are columns, which are others.

A head has the shape that its part would have alone, (B, *before, columns, *after, *param_shape), or
is a tuple that the part alone would accept. Other unambiguous shapes are accepted too: parameters
in place of the columns, like classes in (B, classes, height, width); a single column without a
dimension of its own, (B, *after); and one-hot columns of a table by variable, (B, variables,
classes). All heads must agree on *before and *after.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from crosscoding.errors import counted
from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.categories import Categorical
from crosscoding.likelihoods.location_dispersion import LocationDispersion

Part = tuple[Likelihood, int]
Head = Tensor | Sequence[Tensor]
Others = tuple[tuple[int, ...], tuple[int, ...]]
"""The sizes of the dimensions before the columns, starting with the batch, and of those after."""


def in_columns(parts: Sequence[Part], dim: int, heads: Sequence[Head]) -> list[Tensor]:
    """Each head with its parameters along `dim`, (B, *before, columns · parameters, *after).

    Raises:
        ValueError: A head does not fit its part, or does not fit the other heads.
    """
    if len(heads) != len(parts):
        raise ValueError(
            f"expected one tensor from the decoder for each of {counted(len(parts), 'part')}, "
            f"got {len(heads)}"
        )
    found, common = [], set[Others]()
    for index, ((part, num), head) in enumerate(zip(parts, heads, strict=True)):
        name = f"part {index}, {counted(num, 'column')} of {type(part).__name__}"
        readings = _readings(part, num, dim, head, name)
        if index and not common & readings.keys():
            raise ValueError(
                f"expected tensors of the same shape except for columns and parameters, got "
                f"{shapes(head)} for {name}, and {shapes(heads[0])} for part 0"
            )
        common = common & readings.keys() if index else set(readings)
        found.append(readings)
    others = min(
        common, key=lambda key: len(key[0])
    )  # read a dimension of 1 as columns if it can be
    return [readings[others] for readings in found]


def shapes(output: Tensor | Sequence[Head]) -> str:
    """The shapes of a decoder's output in words; a nested tuple is put in brackets."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    return ", ".join(
        shapes(piece) if isinstance(piece, Tensor) else f"({shapes(piece)})" for piece in output
    )


def _readings(part: Likelihood, num: int, dim: int, head: Head, name: str) -> dict[Others, Tensor]:
    """All ways to read a head, by the sizes of its dimensions other than the columns."""
    stacked = not isinstance(head, Tensor)
    try:
        params = part.join(head) if stacked else head
    except ValueError as error:
        raise ValueError(f"for {name}: {error}") from error
    own = len(part.param_shape)
    core, after = params.ndim - own, -1 - dim
    found = []
    if params.shape[core:] == part.param_shape:
        if core > -dim and params.shape[dim - own] == num:
            found.append(_beside(params, dim, own))
        if num == 1 and core == 1 + after and (stacked or not own):
            found.append(_beside(params.unsqueeze(1), dim, own))
    in_place = own and not stacked and not (isinstance(part, LocationDispersion) and num > 1)
    if in_place and params.ndim > -dim and params.shape[dim] == num * math.prod(part.param_shape):
        found.append(params)
    if after == 0 and params.ndim > 2 and params.shape[-2:] == _variables(part, num):
        found.append(params.flatten(-2))
    if not found:
        raise ValueError(
            f"expected {_expected(part, num, after)} from the decoder for {name}, "
            f"got {shapes(params)}"
        )
    return {_others(tensor, dim): tensor for tensor in found}


def _variables(part: Likelihood, num: int) -> tuple[int, ...]:
    """Sizes (variables, classes) of one-hot columns in two dimensions; () for other columns."""
    if isinstance(part, Categorical) and part.one_hot:
        return num // part.num_classes, part.num_classes
    return ()


def _beside(params: Tensor, dim: int, own: int) -> Tensor:
    """Parameters with their own last dimension, if any, merged into that of the columns."""
    return params.movedim(-1, dim).flatten(dim - 1, dim) if own else params


def _others(params: Tensor, dim: int) -> Others:
    shape = tuple(params.shape)
    return shape[:dim], shape[params.ndim + dim + 1 :]


def _expected(part: Likelihood, num: int, after: int) -> str:
    """The shapes that a head may have, in words."""
    rest = {0: [], 1: ["length"], 2: ["height", "width"]}.get(after, ["*after"])
    own = [str(size) for size in part.param_shape]
    wanted = [["B", str(num), *rest, *own]]
    if own and (num == 1 or not isinstance(part, LocationDispersion)):
        wanted.append(["B", str(num * math.prod(part.param_shape)), *rest])
    if num == 1 and not own:
        wanted.append(["B", *rest])
    if after == 0 and (variables := _variables(part, num)):
        wanted.append(["B", *map(str, variables)])
    words = " or ".join(f"({', '.join(sizes)}{',' * (len(sizes) == 1)})" for sizes in wanted)
    if isinstance(part, LocationDispersion) and own:
        words += f", or a tuple of {own[0]} of shape ({', '.join(['B', str(num), *rest])}),"
    return f"shape {words}"


def columns_named(start: int, num: int) -> str:
    """Adjacent columns in words: "column 4", "columns 2 to 3"."""
    return f"column {start}" if num == 1 else f"columns {start} to {start + num - 1}"
