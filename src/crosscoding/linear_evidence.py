"""Linear evidence: known sums of elements, A t = b, with or without noise.

It is a part of `Evidence`. `Evidence.linear` makes it by `linear_evidence`, which checks it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.arrays import Numbers
from crosscoding.errors import NonFiniteError
from crosscoding.uncertain_values import noise_of


@dataclass(frozen=True, eq=False)
class LinearEvidence:
    """A t = b + noise, for each query of a batch.

    Args:
        operator: A, shape (m, *data), or (*batch, m, *data) with one for each query.
        values: b, shape (*batch, m); NaN where a query lacks a number.
        noise: Standard deviation of the noise in b, shape of values; 0 where b is exact.
        is_shared: Whether the operator has no batch dimensions.
    """

    operator: Tensor
    values: Tensor
    noise: Tensor
    is_shared: bool

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of queries."""
        return self.values.shape[:-1]

    @property
    def data_shape(self) -> torch.Size:
        """Shape of a datum."""
        return self.operator.shape[1 if self.is_shared else self.values.ndim :]

    def flatten(self) -> "LinearEvidence":
        """The same with its batch dimensions merged into one."""
        num, count = self.batch_shape.numel(), self.values.shape[-1]
        values, noise = self.values.reshape(num, count), self.noise.reshape(num, count)
        operator = self.operator
        if not self.is_shared:
            operator = operator.reshape(num, count, *self.data_shape)
        return LinearEvidence(operator, values, noise, self.is_shared)

    def expand(self, batch_shape: torch.Size) -> "LinearEvidence":
        """The same for a larger batch."""
        shape = (*batch_shape, self.values.shape[-1])
        operator = self.operator
        if not self.is_shared:
            operator = operator.expand(*shape, *self.data_shape)
        values, noise = self.values.expand(shape), self.noise.expand(shape)
        return LinearEvidence(operator, values, noise, self.is_shared)

    def __getitem__(self, index: int | slice | Tensor) -> "LinearEvidence":
        """Entries of the batch, indexed along the first dimension."""
        operator = self.operator if self.is_shared else self.operator[index]
        return LinearEvidence(operator, self.values[index], self.noise[index], self.is_shared)


def linear_evidence(operator: Tensor, values: Tensor, noise: Numbers) -> LinearEvidence:
    """Linear evidence, checked; raises what `Evidence.linear` raises."""
    for name, tensor in (("operator", operator), ("values", values)):
        if not tensor.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {tensor.dtype}")
    if operator.dtype != values.dtype or operator.device != values.device:
        raise ValueError(
            "expected operator and values of one dtype and on one device, got "
            f"{operator.dtype} on {operator.device} and {values.dtype} on {values.device}"
        )
    num = values.ndim
    own = num > 1 and operator.ndim > num and operator.shape[:num] == values.shape
    fits = own or (operator.ndim > 1 and num and operator.shape[0] == values.shape[-1])
    if not fits:
        raise ValueError(
            "expected an operator of shape (m, *data) or (*batch, m, *data) and values of shape "
            f"(*batch, m), got {tuple(operator.shape)} and {tuple(values.shape)}"
        )
    if not operator.isfinite().all() or values.isinf().any():
        raise NonFiniteError(
            "expected finite coefficients, and values that are finite or, where unknown, NaN"
        )
    values, noise = values.detach(), noise_of(noise, values.detach())
    size = operator.detach().flatten(num if own else 1).abs().sum(-1) + values.nan_to_num(0.0).abs()
    noise = torch.where(noise < torch.finfo(values.dtype).eps * size, 0.0, noise)
    return LinearEvidence(operator.detach(), values, noise, not own)
