"""Evidence: which elements of a datum were observed, and their values."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscoding.covariates import Covariates, flattened, mapped
from crosscoding.errors import NonFiniteError
from crosscoding.isolation import isolated_class


@isolated_class
@dataclass(frozen=True, eq=False, init=False)
class Evidence:
    """Observed values x and where they are; everything else is the query y.

    Unobserved values are replaced by 0 on entry, so that whatever stood there (NaN included) can
    reach neither a density nor its gradient. Observed values are kept bit for bit.

    NumPy arrays become CPU tensors of the same dtype. That is usually float64, while a model is
    usually float32: pass `values.astype("float32")`.

    Args:
        values: Data, shape (*batch, *data), floating point.
        mask: True = observed, boolean, broadcastable to the shape of values. Broadcasting starts
            from the last dimension: one mask for each of B colour images is (B, 1, height, width).
        given: Covariates of each query, for a model whose decoder takes them beside z, such as
            labels: a tensor of shape (*batch, *covariates), or a dict or tuple of tensors.

    Attributes:
        values: The values as a tensor, 0 where nothing was observed.
        mask: The mask as a tensor of the same shape.
        given: The covariates as tensors, or None.

    Raises:
        TypeError: values or mask is not a tensor or an array, values are not floating point, or
            mask is not boolean.
        ValueError: mask does not broadcast to values or is on another device, or values are on the
            meta device, which holds no numbers.
        NonFiniteError: An observed value is NaN or infinite.

    Example:
        >>> evidence = Evidence(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
        >>> evidence.num_observed
        tensor(2)
    """

    values: Tensor
    mask: Tensor
    given: Covariates

    def __init__(
        self, values: Tensor | np.ndarray, mask: Tensor | np.ndarray, *, given: Covariates = None
    ) -> None:
        values, mask = as_tensor(values, "values"), as_tensor(mask, "mask", "bool")
        _check_kinds(values, mask)
        try:
            mask = mask.expand(values.shape)
        except RuntimeError:
            raise ValueError(
                f"expected a mask that broadcasts to the values' shape {tuple(values.shape)}, "
                f"got {tuple(mask.shape)}"
            ) from None
        values = values.detach()
        bad = mask & ~values.isfinite()
        if bad.any():
            raise NonFiniteError(
                f"expected finite observed values, got {int(bad.sum())} NaN or infinite, first at "
                f"index {tuple(bad.nonzero()[0].tolist())}; mark missing values as unobserved, "
                "for example with Evidence.from_nan(values)"
            )
        given = mapped(lambda part: as_tensor(part, "covariates").detach().clone(), given)
        self._set(torch.where(mask, values, 0.0), mask.clone(), given)

    def _set(self, values: Tensor, mask: Tensor, given: Covariates) -> "Evidence":
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "given", given)
        return self

    @classmethod
    def _of_checked(cls, values: Tensor, mask: Tensor, given: Covariates) -> "Evidence":
        """Evidence made of parts of other evidence, which was checked already."""
        return object.__new__(cls)._set(values, mask, given)

    @classmethod
    def from_nan(cls, values: Tensor | np.ndarray, *, given: Covariates = None) -> "Evidence":
        """Evidence from data in which NaN means: not observed."""
        values = as_tensor(values, "values")
        return cls(values, ~values.isnan(), given=given)

    def __repr__(self) -> str:
        share = self.mask.to(torch.float32).mean().item() if self.mask.numel() else 0.0
        return f"Evidence(shape={tuple(self.values.shape)}, {share:.1%} observed)"

    @property
    def num_observed(self) -> Tensor:
        """Total number of observed elements, a tensor of shape ()."""
        return self.mask.sum()

    def flatten(self, num_data_dims: int) -> "Evidence":
        """The same evidence with its batch dimensions merged into one, shape (B, *data)."""
        data_shape = self.values.shape[self.values.ndim - num_data_dims :]
        num_queries = self.values.shape[: self.values.ndim - num_data_dims].numel()
        shape = (num_queries, *data_shape)
        given = flattened(self.given, self.values.ndim - num_data_dims)
        return Evidence._of_checked(self.values.reshape(shape), self.mask.reshape(shape), given)

    def __getitem__(self, index: int | slice | Tensor) -> "Evidence":
        """Entries of the batch, indexed along the first dimension."""
        given = mapped(lambda tensor: tensor[index], self.given)
        return Evidence._of_checked(self.values[index], self.mask[index], given)


def _check_kinds(values: Tensor, mask: Tensor) -> None:
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
    if values.is_meta:
        raise ValueError(
            "expected values that are numbers, got a tensor on the meta device, which holds "
            "none; create it outside torch.device('meta')"
        )


def as_tensor(values: Tensor | np.ndarray, name: str, wanted: str = "float32") -> Tensor:
    """A tensor unchanged; an array as a tensor of the same dtype that shares no memory with it.

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
