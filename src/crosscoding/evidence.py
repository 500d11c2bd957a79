"""Evidence: which elements of a datum were observed, and with which values; and masks to try."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.errors import NonFiniteError
from crosscoding.isolation import isolated, isolated_class
from crosscoding.random import generator_from, uniform


@isolated_class
@dataclass(frozen=True, eq=False, init=False)
class Evidence:
    """Observed values x and where they are; everything else is the query y.

    Unobserved values are replaced by 0 on entry, so that whatever stood there (NaN included) can
    reach neither a density nor its gradient. Observed values are kept bit for bit.

    Arrays of NumPy are taken too, as CPU tensors of their own dtype; mind that this is mostly
    float64, and a model's is mostly float32: `values.astype("float32")`.

    Args:
        values: Data, shape (*batch, *data), floating point.
        mask: True = observed, boolean, broadcastable to the shape of values by the usual rule, from
            the last dimension: a mask for each of B colour images is (B, 1, height, width).

    Attributes:
        values: A tensor, 0 where nothing was observed.
        mask: A tensor of the same shape.

    Raises:
        TypeError: values or mask is no tensor or array, values not floating point, mask not
            boolean.
        ValueError: mask does not broadcast to values, or lies on another device, or values have
            none, on the meta device.
        NonFiniteError: an observed value is NaN or infinite.

    Example:
        >>> evidence = Evidence(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
        >>> evidence.num_observed
        tensor(2)
    """

    values: Tensor
    mask: Tensor

    def __init__(self, values: Tensor | np.ndarray, mask: Tensor | np.ndarray) -> None:
        values, mask = as_tensor(values, "values"), as_tensor(mask, "mask", "bool")
        if not values.is_floating_point():
            raise TypeError(
                f"expected values of a floating-point dtype, got {values.dtype}; "
                'convert them with values.float(), or an array of NumPy with .astype("float32")'
            )
        if mask.dtype != torch.bool:
            raise TypeError(
                f"expected a boolean mask (True = observed), got {mask.dtype}; "
                "write the condition out, for example mask = mask > 0"
            )
        if mask.device != values.device:
            raise ValueError(
                f"expected values and mask on one device, got {values.device} and {mask.device}; "
                "move one with .to(device)"
            )
        if values.is_meta:
            raise ValueError(
                "expected values that are numbers, got a tensor on the meta device, which holds "
                "none; make it outside of torch.device('meta')"
            )
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
        object.__setattr__(self, "values", torch.where(mask, values, 0.0))
        object.__setattr__(self, "mask", mask.clone())

    @classmethod
    def from_nan(cls, values: Tensor | np.ndarray) -> "Evidence":
        """Evidence from data in which NaN means: not observed."""
        values = as_tensor(values, "values")
        return cls(values, ~values.isnan())

    def __repr__(self) -> str:
        share = self.mask.to(torch.float32).mean().item() if self.mask.numel() else 0.0
        return f"Evidence(shape={tuple(self.values.shape)}, {share:.1%} observed)"

    @property
    def num_observed(self) -> Tensor:
        """Number of observed elements in all, a tensor of shape ()."""
        return self.mask.sum()

    def flatten(self, num_data_dims: int) -> "Evidence":
        """The same evidence with its batch dimensions made one, shape (B, *data)."""
        data_shape = self.values.shape[self.values.ndim - num_data_dims :]
        num_queries = self.values.shape[: self.values.ndim - num_data_dims].numel()
        shape = (num_queries, *data_shape)
        return Evidence(self.values.reshape(shape), self.mask.reshape(shape))

    def __getitem__(self, index: int | slice | Tensor) -> "Evidence":
        """Some entries of the batch, indexed along the first dimension."""
        return Evidence(self.values[index], self.mask[index])


def as_tensor(values: Tensor | np.ndarray, name: str, wanted: str = "float32") -> Tensor:
    """A tensor as it is; an array as a tensor of the same dtype that shares no memory with it.

    Args:
        values: A tensor or an array.
        name: What messages call it.
        wanted: The dtype, in NumPy's words, that messages name.
    Raises:
        TypeError: It is neither, is sparse or has a mask, or has a dtype that torch has not.
    """
    if isinstance(values, (np.ma.MaskedArray, torch.masked.MaskedTensor)):
        raise TypeError(
            f"expected {name} without a mask of its own, got a masked array; "
            "use array.data, and as evidence Evidence(array.data, ~np.ma.getmaskarray(array))"
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
            f"convert it with torch.as_tensor, or what pandas has with {of_pandas}"
        )
    try:
        # torch takes no other order of bytes than the machine's own
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("=")))
    except TypeError:
        raise TypeError(
            f"expected {name} of a dtype that torch has, got an array of {values.dtype}; convert "
            f'it with .astype("{wanted}"), or what pandas has with {of_pandas}'
        ) from None


@isolated
def random_mask(
    shape: Sequence[int], fraction: float, *, seed: int | Generator | None = None
) -> Tensor:
    """A mask that observes exactly round(fraction · size) elements, chosen at random.

    Args:
        shape: Shape of the mask.
        fraction: Share of elements to observe, 0 to 1.
        seed: Int ≥ 0 or generator.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}")
    size = torch.Size(shape).numel()
    like = torch.empty(0, dtype=torch.float32)
    noise = uniform((size,), generator=generator_from(seed), like=like)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[noise.argsort()[: round(fraction * size)]] = True
    return mask.reshape(tuple(shape))


@isolated
def rectangle_mask(
    shape: Sequence[int],
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Tensor:
    """A mask that observes a rectangle of an image, every channel of it.

    Args:
        shape: Shape of the image, (*channels, height, width).
        rows: First and last observed row, both included, from 0; None for all.
        columns: First and last observed column, both included, from 0; None for all.

    Example:
        >>> rectangle_mask((2, 3), columns=(0, 1))
        tensor([[ True,  True, False],
                [ True,  True, False]])
    """
    if len(shape) < 2:
        raise ValueError(f"expected the shape of an image, (*channels, height, width), got {shape}")
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for name, span, dim in (("rows", rows, -2), ("columns", columns, -1)):
        if span is None:
            continue
        first, last = span
        if not 0 <= first <= last < shape[dim]:
            raise ValueError(
                f"expected {name} within 0-{shape[dim] - 1}, first before last, got {first}-{last}"
            )
        inside = torch.zeros(shape[dim], dtype=torch.bool)
        inside[first : last + 1] = True
        mask &= inside[:, None] if dim == -2 else inside
    return mask


@isolated
def stroke_mask(
    shape: Sequence[int], points: Sequence[tuple[float, float]], width: float = 3.0
) -> Tensor:
    """A mask that observes what a brush touches on its way through the points.

    Args:
        shape: Shape of the image, (*channels, height, width).
        points: (row, column) of each corner of the stroke, at least one.
        width: Diameter of the brush in pixels.
    """
    if len(shape) < 2 or not points:
        raise ValueError("expected the shape of an image and at least one (row, column) point")
    height, breadth = shape[-2:]
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(breadth)).double()
    mask = torch.zeros(height * breadth, dtype=torch.bool)
    corners = torch.tensor([points[0], *points], dtype=torch.double)
    for start, end in pairwise(corners):
        along = end - start
        share = ((grid - start) @ along / along.square().sum().clamp_min(1e-12)).clamp(0, 1)
        distance = (grid - start - share[:, None] * along).norm(dim=-1)
        mask |= distance <= width / 2
    return mask.reshape(height, breadth).expand(tuple(shape)).clone()
