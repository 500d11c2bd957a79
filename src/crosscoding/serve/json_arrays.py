"""Arrays in JSON: nested lists with null for NaN, or base64 of their bytes."""

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

Encoding = Literal["list", "base64"]
_DTYPES = ("float32", "float64", "uint8", "bool")
_MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Packed:
    """The bytes of an array in base64: little-endian, row by row. NaN means missing.

    Args:
        base64: The bytes.
        dtype: "float32", "float64", "uint8" or "bool".
        shape: The shape.
    """

    base64: str
    dtype: str
    shape: Sequence[int]

    def unpacked(self, name: str) -> np.ndarray:
        """The array.

        Raises:
            ValueError: The bytes are not what dtype and shape say. The message begins with `name`.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"{name}: expected a dtype among {', '.join(_DTYPES)}, got {self.dtype!r}"
            )
        if len(self.shape) > _MOST_DIMENSIONS or any(size < 0 for size in self.shape):
            raise ValueError(f"{name}: expected a shape of sizes >= 0, got {list(self.shape)}")
        try:
            content = base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{name}: expected base64, got {error}") from None
        dtype = np.dtype(self.dtype).newbyteorder("<")
        wanted = math.prod(self.shape) * dtype.itemsize
        if len(content) != wanted:
            raise ValueError(
                f"{name}: expected {wanted} bytes for {self.dtype} of shape {list(self.shape)}, "
                f"got {len(content)}"
            )
        return np.frombuffer(content, dtype).reshape(self.shape)


def array_of(name: str, given: Any) -> np.ndarray:
    """Nested lists of numbers and nulls as float64, or a `Packed` array in its dtype.

    Raises:
        ValueError: Lists are ragged, or an entry is not a number. The message begins with `name`.
    """
    if isinstance(given, Packed):
        return given.unpacked(name)
    try:
        found = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: expected nested lists of one shape, of numbers and nulls"
        ) from None
    if np.isinf(found).any():
        raise ValueError(f"{name}: expected finite numbers, got an infinite one")
    return found


def mask_of(name: str, given: Any) -> np.ndarray:
    """Nested lists of booleans, or a `Packed` array of dtype bool or uint8, as booleans.

    Raises:
        ValueError: It is anything else. The message begins with `name`.
    """
    found = given.unpacked(name) if isinstance(given, Packed) else _lists(name, given)
    if found.dtype not in (np.dtype(bool), np.dtype("uint8")):
        raise ValueError(f"{name}: expected true and false, got {found.dtype}")
    return found.astype(bool)


def _lists(name: str, given: Any) -> np.ndarray:
    try:
        return np.array(given)
    except ValueError:
        raise ValueError(f"{name}: expected nested lists of one shape") from None


def listed(tensor: Tensor) -> Any:
    """A tensor as nested lists, with null for NaN and infinity."""
    array = tensor.detach().cpu().numpy()
    if np.isfinite(array).all():
        return array.tolist()
    found = array.astype(object)
    found[~np.isfinite(array)] = None
    return found.tolist()


def packed(tensor: Tensor) -> dict[str, Any]:
    """A tensor as the JSON form of `Packed`, float32 or float64."""
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        "base64": base64.b64encode(content).decode("ascii"),
        "dtype": str(array.dtype),
        "shape": list(array.shape),
    }


def encoded(tensor: Tensor, encoding: Encoding) -> Any:
    """A tensor in one of the two forms."""
    return packed(tensor) if encoding == "base64" else listed(tensor)


def number(value: float) -> float | None:
    """A number, or null for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
