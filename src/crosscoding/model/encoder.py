"""Encoders: q(z|t) = N(μ(t), diag σ²(t)) of complete data, trained along with the decoder.

Answers never depend on one. It only proposes where z may be, and lets `VAE.check` see more.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError
from crosscoding.model.trial import OutputError, Trial, frozen_copy


def tried_encoder(encoder: nn.Module, data: Tensor, latent_dim: int) -> nn.Module:
    """A frozen copy of an encoder, after a trial on data.

    Args:
        encoder: Module from t (N, *data) to mean and log-variance of q(z|t), side by side in one
            tensor (N, 2 latent) or as a tuple of two (N, latent).
        data: Some data of the model, shape (N, *data).
        latent_dim: Size of z.
    Raises:
        TypeError: encoder is not a module.
        ValueError: It does not fit data or latent_dim, or breaks a rule of `Trial`.
        NonFiniteError: It outputs NaN or infinity.
    """
    copied = frozen_copy(encoder, "encoder")
    hint = "it must take data of the shape that the decoder outputs"
    others = data[:1].expand_as(data)
    try:
        trial = Trial(copied, encoder_output, data, others, "encoder", hint)
    except OutputError as error:
        raise ValueError(str(error)) from None
    wanted = (len(data), 2 * latent_dim)
    if trial.output.shape != wanted:
        raise ValueError(
            f"expected encoder output of shape {wanted} for {len(data)} data, mean and "
            f"log-variance side by side, or a tuple of the two, got {tuple(trial.output.shape)}"
        )
    trial.check_finite(trial.output.isfinite())
    trial.check(data.dtype)
    return copied


def encode(encoder: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z|t), (N, latent) each, for data (N, *data), N ≥ 1.

    Raises:
        NonFiniteError: A mean or deviation is not finite, or a deviation is 0.
    """
    output = encoder_output(encoder, data.clone())  # an encoder may overwrite its input
    mean, log_variance = output.chunk(2, dim=-1)
    std = (0.5 * log_variance).exp()
    if not (mean.isfinite() & std.isfinite() & (std > 0)).all():
        raise NonFiniteError(
            "expected finite mean and log-variance from the encoder, got NaN or infinity, or a "
            "log-variance whose exponential overflows or is 0"
        )
    return mean, std


def encoder_output(encoder: nn.Module, data: Tensor) -> Tensor:
    """Mean and log-variance side by side.

    Raises:
        OutputError: The output is neither a tensor nor a tuple of tensors that fit together.
    """
    output = encoder(data)
    pieces = output if isinstance(output, (tuple, list)) else [output]
    shapes = {piece.shape[:-1] if isinstance(piece, Tensor) else None for piece in pieces}
    if len(shapes) != 1 or None in shapes or shapes == {torch.Size()}:
        raise OutputError(
            "expected mean and log-variance from the encoder, side by side in one tensor or as a "
            f"tuple of two, got {_in_words(output)}; wrap it in a module that returns these two"
        )
    return torch.cat(list(pieces), -1)


def _in_words(output: Any) -> str:
    """An encoder's output that cannot be used, for messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {', '.join(map(_in_words, output)) or 'nothing'}"
    fields = list(output) if isinstance(output, Mapping) else list(getattr(output, "__dict__", ()))
    names = f" of {', '.join(map(str, fields))}" if fields else ""
    return f"{type(output).__name__}{names}"
