"""Covariates: what a decoder takes beside z, such as a label; a row for each query.

They are a tensor, or a dict, tuple or list of tensors, all with the same leading batch dimensions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

Covariates = Any
"""A tensor, or a dict, tuple or list of tensors."""


def mapped(function: Callable[[Tensor], Tensor], given: Covariates) -> Covariates:
    """The same structure with a function applied to each tensor."""
    return tree_map(function, given)


def tensors(given: Covariates) -> list[Tensor]:
    """All tensors of covariates, in order."""
    return tree_leaves(given)


def same_structure(given: Covariates, other: Covariates) -> bool:
    """Whether two covariates are nested in the same way."""
    return tree_flatten(given)[1] == tree_flatten(other)[1]


def number_of_rows(given: Covariates) -> int:
    """Number of rows of flat covariates."""
    return len(tensors(given)[0])


def tiled(given: Covariates, num: int) -> Covariates:
    """`num` rows, the given ones in turn."""
    rows = number_of_rows(given)
    if num == rows:
        return given
    return mapped(lambda t: t[torch.arange(num, device=t.device) % rows], given)
