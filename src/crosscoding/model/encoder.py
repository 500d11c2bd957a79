"""Encoders: q(z|t) = N(μ(t), diag σ²(t)) of complete data, as a trained VAE brings it along.

Inference never rests on one. It proposes where z may be, and shows what the decoder can give.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError
from crosscoding.model.trial import OutputError, Trial, frozen_copy


def tried_encoder(encoder: nn.Module, data: Tensor, latent_dim: int) -> nn.Module:
    """A frozen copy of an encoder, which has been tried on data.

    Args:
        encoder: Module from t (N, *data) to mean and log-variance of q(z|t), side by side in one
            tensor (N, 2 latent) or as a tuple of two (N, latent).
        data: Some data of the model's, shape (N, *data).
        latent_dim: Size of z.
    Raises:
        TypeError: encoder is no module.
        ValueError: It does not fit data or latent_dim, or breaks a rule of `Trial`.
        NonFiniteError: It outputs NaN or infinity.
    """
    copied = frozen_copy(encoder, "encoder")
    hint = "it takes data shaped as the decoder's"
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
        NonFiniteError: One of them is not finite, or a deviation 0.
    """
    mean, log_variance = encoder_output(encoder, data.clone()).chunk(
        2, dim=-1
    )  # it may write over them
    std = (0.5 * log_variance).exp()
    if not (mean.isfinite() & std.isfinite() & (std > 0)).all():
        raise NonFiniteError(
            "expected finite mean and log-variance from the encoder, got NaN or infinity, or a "
            "log-variance beyond what exp can take"
        )
    return mean, std


def encoder_output(encoder: nn.Module, data: Tensor) -> Tensor:
    """Mean and log-variance side by side.

    Raises:
        OutputError: The encoder outputs neither a tensor nor a tuple of tensors that fit.
    """
    output = encoder(data)
    pieces = output if isinstance(output, (tuple, list)) else [output]
    shapes = {piece.shape[:-1] if isinstance(piece, Tensor) else None for piece in pieces}
    if len(shapes) != 1 or None in shapes or shapes == {torch.Size()}:
        raise OutputError(
            "expected mean and log-variance from the encoder, side by side in one tensor or as a "
            f"tuple of two, got {_in_words(output)}; wrap it in a module that picks out these two"
        )
    return torch.cat(list(pieces), -1)


def _in_words(output: Any) -> str:
    """What an encoder outputs that cannot be taken, for messages."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {', '.join(map(_in_words, output)) or 'nothing'}"
    fields = list(output) if isinstance(output, Mapping) else list(getattr(output, "__dict__", ()))
    names = f" of {', '.join(map(str, fields))}" if fields else ""
    return f"{type(output).__name__}{names}"
