"""Autoencoders of diffusers: z ~ N(0, I), scaled as diffusion models scale it, to pixels.

    decoder(z) = D(z s / c + m)

c is the configuration's `scaling_factor`, m its `latents_mean` or `shift_factor` (0 if it has
neither) and s its `latents_std` (1 if it has none). With them, latents of pictures have about mean
0 and variance 1, element by element. They are far from independent, however, so draws from N(0, I)
decode to mere texture: the true prior is the diffusion model, which is not used here. The evidence
must be more informative to make up for this.

The encoder of an `AutoencoderKL` is kept; its mean and deviation are converted to coordinates of z.

`AutoencoderTiny` (TAESD) is trained on scaled latents, c = 1 and m = 0. Its encoder outputs a point
without a deviation and is left out.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.adapters.libraries import library
from crosscoding.errors import ModelFormatError, first_line
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Gaussian
from crosscoding.model.vae import VAE
from crosscoding.persistence.pickles import refuse_pickle

_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@isolated
def from_diffusers(
    model: nn.Module | str | Path,
    size: int | tuple[int, int],
    *,
    scale: float | Tensor = 0.1,
    with_encoder: bool = True,
) -> VAE:
    """The `VAE` of an `AutoencoderKL` or `AutoencoderTiny`, for pictures of one size.

    Pixels are in [-1, 1], as in diffusers; the decoder's output is not clamped. z is the flattened
    latent of shape latent_channels x height / f x width / f, where f is 8 for most models: a
    picture of 256 x 256 pixels has 4 x 32 x 32 = 4,096 latent dimensions.

    Args:
        model: A model in float32, or a folder that `save_pretrained` wrote with safetensors.
        size: Height and width of the pictures in pixels, or one number for both.
        scale: Scale of the Gaussian noise on pixels. Training defines none; `calibrate_scale`
            finds it.
        with_encoder: Whether to keep the encoder of an `AutoencoderKL`, for `VAE.encode`. It is
            tried on five pictures, which takes a moment if they are large.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: model is of another class.
        ValueError: size is not a multiple of f; or `VAE` refuses the decoder or the encoder.
        ModelFormatError: The folder holds no autoencoder of these classes, or pickled weights.
    """
    diffusers = library("diffusers", "diffusers")
    classes = tuple(getattr(diffusers, name) for name in _CLASSES)
    given: Any = model
    if isinstance(model, (str, Path)):
        given = _loaded(diffusers, Path(model))
    if not isinstance(given, classes):
        raise TypeError(f"expected {' or '.join(_CLASSES)}, got {type(given).__name__}")
    shape = given.config.latent_channels, *_latent_size(given.config, size)
    unscaled = _Unscaled(given.config, like=next(given.parameters()))
    decoder = nn.Sequential(
        nn.Unflatten(1, shape),
        unscaled,
        getattr(given, "post_quant_conv", None) or nn.Identity(),
        given.decoder,
    )
    encoder = None
    if with_encoder and isinstance(given, diffusers.AutoencoderKL):
        encoder = _Encoder(given, unscaled)
    return VAE(_forward_differentiable(decoder), math.prod(shape), Gaussian(scale), encoder)


def _loaded(diffusers: Any, folder: Path) -> nn.Module:
    """The model in a folder, from JSON and safetensors, so that no code is run."""
    advice = "load it with from_pretrained, then save_pretrained(folder, safe_serialization=True)"
    refuse_pickle(folder, advice)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFormatError(f"expected a folder that save_pretrained wrote, got {folder}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, quantized = config["_class_name"], "quantization_config" in config
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFormatError(f"expected a diffusers configuration in {path}") from error
    if name not in _CLASSES or quantized:
        found = f"{name}, quantized" if quantized else name
        raise ModelFormatError(f"expected {' or '.join(_CLASSES)} in {path}, got {found}")
    if not (folder / _WEIGHTS).is_file():  # an index of several files could name a pickle
        for weights in sorted(folder.iterdir()):
            refuse_pickle(weights, advice)
        raise ModelFormatError(
            f"expected weights in safetensors, in one file {_WEIGHTS} in {folder}"
        )
    kind = getattr(diffusers, name)
    _check_numbers(kind, config, folder)
    try:
        model, told = kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise ModelFormatError(f"expected weights in safetensors in {folder}: {error}") from error
    if wrong := [str(each) for kind in told.values() for each in kind]:
        raise ModelFormatError(
            f"expected the weights of {name} in {folder}, but {wrong[0]} is missing, left over or "
            f"of another shape{f', with {len(wrong) - 1} more' * (len(wrong) > 1)}"
        )
    return model


def _check_numbers(kind: Any, config: Any, folder: Path) -> None:
    """Raise ModelFormatError if a configuration has more weights than the file can hold.

    The weights are counted without being allocated; in a file, each takes at least a byte.
    """
    try:
        with torch.device("meta"):
            num = sum(weight.numel() for weight in kind.from_config(config).parameters())
    except Exception as error:  # the library's modules raise many kinds
        raise ModelFormatError(
            f"expected a configuration that {kind.__name__} takes in {folder}: {first_line(error)}"
        ) from error
    size = (folder / _WEIGHTS).stat().st_size
    if num > size:
        raise ModelFormatError(
            f"expected the {num} weights of its configuration in {folder}, got a file of {size} "
            f"bytes in {_WEIGHTS}"
        )


def _latent_size(config: Any, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the latents for pictures of a size."""
    if "upsampling_scaling_factor" in config:
        factor = config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)
    else:
        factor = 2 ** (len(config.block_out_channels) - 1)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(f"expected a size in multiples of {factor} pixels, got {size}")
    return height // factor, width // factor


class _Unscaled(nn.Module):
    """From z ~ N(0, I) to the latents that the decoder takes, z s / c + m."""

    std: Tensor
    mean: Tensor

    def __init__(self, config: Any, like: Tensor) -> None:
        super().__init__()
        std, mean = config.get("latents_std"), config.get("latents_mean")
        if std is None or mean is None:
            std, mean = [1.0], [config.get("shift_factor") or 0.0]
        std = like.new_tensor(std) / (config.get("scaling_factor") or 1.0)
        self.register_buffer("std", std[:, None, None])
        self.register_buffer("mean", like.new_tensor(mean)[:, None, None])

    def forward(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean


class _Encoder(nn.Module):
    """From pixels to the mean and log variance of z, by the encoder of an `AutoencoderKL`."""

    def __init__(self, model: Any, unscaled: _Unscaled) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = getattr(model, "quant_conv", None) or nn.Identity()
        self.unscaled = unscaled

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        mean = (mean - self.unscaled.mean) / self.unscaled.std
        log_variance = log_variance.clamp(-30.0, 20.0)  # as diffusers does
        return mean.flatten(1), (log_variance - self.unscaled.std.square().log()).flatten(1)


def _forward_differentiable(decoder: nn.Module) -> nn.Module:
    """A copy that forward-mode differentiation can handle.

    torch has no forward-mode derivative of fused attention, nor of a group norm whose input is not
    contiguous, as after attention.
    """
    processing = library("diffusers.models.attention_processor", "diffusers")
    decoder = copy.deepcopy(decoder)
    module: Any
    for module in decoder.modules():
        if isinstance(module, processing.Attention):
            module.set_processor(processing.AttnProcessor())
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_contiguous)
    return decoder


def _contiguous(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
