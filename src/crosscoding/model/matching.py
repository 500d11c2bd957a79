"""Whether data fit a model: shape, dtype and device. Nothing is cast or moved silently."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from crosscoding.arrays import as_tensor
from crosscoding.errors import NonFiniteError, and_more
from crosscoding.likelihoods import Likelihood
from crosscoding.likelihoods.decoder_output import on_half_as_many


class _Model(Protocol):
    """The part of a `VAE` that data must fit."""

    likelihood: Likelihood
    data_shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Named(Protocol):
    """The part of a `VAE` that names its elements."""

    data_shape: torch.Size

    def element_name(self, element: int) -> str: ...


def complete_data(vae: _Model, data: Tensor | np.ndarray) -> Tensor:
    """The data as a tensor (N, *data), N ≥ 1.

    Raises:
        TypeError: data is not a tensor or an array.
        ValueError: The data do not fit the model.
    """
    data = as_tensor(data, "data")
    check_matches(vae, data, "data", None)
    if data.ndim != 1 + len(vae.data_shape) or not len(data):
        wanted = ", ".join(["N", *map(str, vae.data_shape)])
        raise ValueError(f"expected data of shape ({wanted}) with N >= 1, got {tuple(data.shape)}")
    return data


def check_matches(
    vae: _Model, values: Tensor, name: str, batch_shape: Sequence[int] | None
) -> None:
    """Raise ValueError unless values are data of this model, on its device.

    Args:
        vae: The model.
        values: What should be of shape (*batch, *data), in the model's dtype.
        name: Their name in messages.
        batch_shape: The batch shape that they must have; None: any.
    """
    num_data_dims = len(vae.data_shape)
    batch = values.shape[: max(values.ndim - num_data_dims, 0)]
    wanted = "*batch" if batch_shape is None else ", ".join(map(str, batch_shape))
    shape = "(" + ", ".join(filter(None, [wanted, *map(str, vae.data_shape)])) + ")"
    if values.ndim < num_data_dims or values.shape[len(batch) :] != vae.data_shape:
        advice = on_half_as_many(vae.likelihood, vae.data_shape, values.shape)
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}{advice}")
    if batch_shape is not None and batch != tuple(batch_shape):
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}")
    check_dtype(values, name, vae.dtype)
    if values.device != vae.device:
        raise ValueError(
            f"expected {name} on the model's device {vae.device}, got {values.device}; "
            f"move with .to({str(vae.device)!r})"
        )


def check_complete(vae: _Named, truth: Tensor, unobserved: Tensor, first: int = 0) -> None:
    """Raise NonFiniteError unless unobserved elements of truth, both (*batch, *data), are finite.

    Args:
        vae: The model, whose names of elements messages use.
        truth: The data.
        unobserved: Which elements must be finite, boolean.
        first: Number of the first query, for messages.
    """
    wrong = (unobserved & ~truth.isfinite()).reshape(-1, math.prod(vae.data_shape))
    if not wrong.any():
        return
    query, element = wrong.nonzero()[0].tolist()
    more = and_more(int(wrong.sum()) - 1)
    raise NonFiniteError(
        "expected finite unobserved elements of truth, got NaN or infinity for "
        f"{vae.element_name(element)} of query {first + query}{more}; leave out rows that are not "
        "complete"
    )


def check_dtype(values: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless values have the model's dtype."""
    if values.dtype != dtype:
        of_numpy = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"expected {name} of the model's dtype {dtype}, got {values.dtype}; convert with "
            f'.to({dtype}), or a NumPy array with .astype("{of_numpy}")'
        )
