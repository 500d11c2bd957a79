"""Encoders: q(z|t) = N(μ(t), diag σ²(t)) of whole data, as a trained VAE brings it along.

Inference never rests on one. It proposes where z may be, and shows what the decoder can give.
"""

import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError
from crosscoding.frozen import Trial, frozen_copy


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
        NonFiniteError: It puts out NaN or infinity.
    """
    copied = frozen_copy(encoder, "encoder")
    hint = "it takes data shaped as the decoder's"
    others = data[:1].expand_as(data)
    trial = Trial(copied, lambda rows: encoder_output(copied, rows), data, others, "encoder", hint)
    wanted = (len(data), 2 * latent_dim)
    if trial.output.shape != wanted:
        raise ValueError(
            f"expected encoder output of shape {wanted} for {len(data)} data, mean and "
            f"log-variance side by side, or a tuple of the two, got {tuple(trial.output.shape)}"
        )
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
    """Mean and log-variance side by side."""
    output = encoder(data)
    output = torch.cat(output, -1) if isinstance(output, (tuple, list)) else output
    if not isinstance(output, Tensor):
        raise TypeError(f"expected a tensor from the encoder, got {type(output).__name__}")
    return output
