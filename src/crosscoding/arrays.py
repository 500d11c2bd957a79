"""Tensors from what users pass: tensors or NumPy arrays."""

import numpy as np
import torch
from torch import Tensor

Numbers = Tensor | np.ndarray | float


def as_tensor(values: Tensor | np.ndarray, name: str, wanted: str = "float32") -> Tensor:
    """A tensor as it is; an array as a tensor of the same dtype that shares no memory with it.

    Args:
        values: A tensor or an array.
        name: What messages call it.
        wanted: The dtype that messages recommend, as NumPy names it.
    Raises:
        TypeError: It is neither a tensor nor an array, is sparse or masked, or has a dtype that
            torch lacks.
    """
    if isinstance(values, (np.ma.MaskedArray, torch.masked.MaskedTensor)):
        raise TypeError(
            f"expected {name} without a mask of its own, got a masked array; "
            "pass array.data, or for evidence Evidence(array.data, ~np.ma.getmaskarray(array))"
        )
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_quantized:
            raise TypeError(
                f"expected {name} as a dense tensor, got a sparse, nested or quantised one; "
                "convert it with .to_dense(), .to_padded_tensor(...) or .dequantize()"
            )
        return values if type(values) is Tensor else values.as_subclass(Tensor)
    of_pandas = f'.to_numpy("{wanted}", na_value=np.nan)' if wanted != "bool" else ".to_numpy(bool)"
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"expected {name} to be a torch.Tensor or a NumPy array, got {type(values).__name__}; "
            f"convert it with torch.as_tensor, or a pandas object with {of_pandas}"
        )
    try:
        # torch accepts only the machine's own byte order
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("=")))
    except TypeError:
        raise TypeError(
            f"expected {name} of a dtype that torch has, got an array of {values.dtype}; convert "
            f'it with .astype("{wanted}"), or a pandas object with {of_pandas}'
        ) from None


def numbers_in(values: Tensor | np.ndarray, name: str, wanted: str = "float32") -> Tensor:
    """`as_tensor`, for values that will be read and so must not be on the meta device.

    Raises:
        ValueError: The tensor is on the meta device.
    """
    tensor = as_tensor(values, name, wanted)
    if tensor.is_meta:
        raise ValueError(
            f"expected {name} with numbers in it, got a tensor on the meta device, which holds "
            "none; create it outside torch.device('meta')"
        )
    return tensor


def check_values_and_mask(values: Tensor, mask: Tensor) -> None:
    """Raise TypeError or ValueError unless values are floats and mask is boolean, on one device."""
    if not values.is_floating_point():
        raise TypeError(
            f"expected values of a floating-point dtype, got {values.dtype}; "
            'convert them with values.float(), or a NumPy array with .astype("float32")'
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"expected a boolean mask (True = observed), got {mask.dtype}; "
            "write the condition explicitly, for example mask = mask > 0"
        )
    if mask.device != values.device:
        raise ValueError(
            f"expected values and mask on one device, got {values.device} and {mask.device}; "
            "move one with .to(device)"
        )
    numbers_in(values, "values")
