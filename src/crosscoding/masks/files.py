"""Distributions of masks as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.masks.distributions import (
    Given,
    Halves,
    MaskDistribution,
    Mixed,
    Mixture,
    Rectangles,
    Shares,
)

_KINDS = {kind.__name__: kind for kind in (Shares, Rectangles, Halves, Mixed)}


def to_json(distribution: MaskDistribution) -> dict[str, Any] | None:
    """A distribution as JSON; None if it is of the user's own class."""
    kind = type(distribution)
    if isinstance(distribution, Mixture) and kind is Mixture:
        parts = [to_json(part) for part in distribution.parts]
        known = None not in parts
        return {"parts": parts, "weights": list(distribution.weights)} if known else None
    if isinstance(distribution, Given) and kind is Given:
        rows = np.packbits(distribution.masks.flatten(1).numpy(), axis=1)
        shape = list(distribution.masks.shape[1:])
        return {"shape": shape, "masks": [row.tobytes().hex() for row in rows]}
    return {"kind": kind.__name__, **vars(distribution)} if kind in _KINDS.values() else None


def from_json(entry: Mapping[str, Any]) -> MaskDistribution:
    """What `to_json` returned.

    Raises:
        LookupError, TypeError, ValueError: It is malformed.
    """
    if "parts" in entry:
        parts = tuple(from_json(part) for part in entry["parts"])
        return Mixture(parts, tuple(map(float, entry["weights"])))
    if "masks" in entry:
        return Given(torch.stack([_mask(row, entry["shape"]) for row in entry["masks"]]))
    settings = {name: value for name, value in entry.items() if name != "kind"}
    if not all(isinstance(value, float | int) for value in settings.values()):
        raise TypeError(f"expected numbers, got {settings!r:.80}")
    return _KINDS[entry["kind"]](**settings)


def _mask(row: str, shape: list[int]) -> Tensor:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8), count=math.prod(shape))
    return torch.from_numpy(bits).bool().reshape(shape)
