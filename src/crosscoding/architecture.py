"""Networks as plain data: a stack of common layers to JSON and back, so that no code is loaded.

A description is a list of [layer name, arguments]. Only the layers named in `_ARGUMENTS` exist; a
module of any other kind has no description, and its owner passes it anew where it is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.errors import ModelFormatError

# The constructor arguments of each layer; every one is kept as an attribute of the same name.
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "BatchNorm1d": ("num_features", "eps"),
    "BatchNorm2d": ("num_features", "eps"),
    "Conv2d": _CONVOLUTION,
    "ConvTranspose2d": (*_CONVOLUTION, "output_padding"),
    "ELU": ("alpha",),
    "Flatten": ("start_dim", "end_dim"),
    "GELU": ("approximate",),
    "LeakyReLU": ("negative_slope",),
    "Linear": ("in_features", "out_features"),
    "ReLU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Softplus": ("beta", "threshold"),
    "Tanh": (),
    "Unflatten": ("dim", "unflattened_size"),
    "Upsample": ("scale_factor", "mode"),
}
_PLAIN_CONVOLUTION = {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}

Description = list[list[Any]]


def describe(module: nn.Module) -> Description | None:
    """The layers of a module as data, or None if it is more than a stack of known layers."""
    if type(module) is nn.Sequential:
        parts = [describe(child) for child in module]
        if any(part is None for part in parts) or _has_hooks(module):
            return None
        return [layer for part in parts if part is not None for layer in part]
    name = type(module).__name__
    if type(module) is not getattr(nn, name, None) or name not in _ARGUMENTS:
        return None
    if _has_other_settings(module):
        return None
    arguments = {key: getattr(module, key) for key in _ARGUMENTS[name]}
    if "in_features" in arguments or "in_channels" in arguments:
        arguments["bias"] = module.bias is not None
    return [[name, arguments]]


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module that has a description, by the names they have in what is built."""
    return {
        f"{index}.{name}": tensor
        for index, layer in enumerate(_layers(module))
        for name, tensor in layer.state_dict().items()
    }


def build(description: Description) -> nn.Sequential:
    """The network of a description, with weights yet to be loaded.

    Raises:
        ModelFormatError: A layer is unknown, or its arguments are not what it takes.
    """
    if not isinstance(description, Sequence):
        raise ModelFormatError(f"expected a list of layers, got {type(description).__name__}")
    layers: list[nn.Module] = []
    for entry in description:
        if not (isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], dict)):
            raise ModelFormatError(f"expected [layer name, arguments], got {entry!r}")
        name, arguments = entry
        known = isinstance(name, str) and name in _ARGUMENTS
        if not known or not set(arguments) <= {*_ARGUMENTS[name], "bias"}:
            raise ModelFormatError(
                f"expected one of {', '.join(_ARGUMENTS)} and its arguments, got {entry!r}"
            )
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        try:
            with torch.device("meta"):  # no memory and no random numbers for what is replaced
                layers.append(getattr(nn, name)(**plain))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelFormatError(f"cannot build layer {entry!r}: {error}") from error
    return nn.Sequential(*layers)


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module its weights, in their dtype, every one and no others.

    Raises:
        ModelFormatError: A tensor is missing, left over or of another shape; the first is named.
    """
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        there = tuple(weights[name].shape) if name in weights else "nothing"
        expected = tuple(wanted[name].shape) if name in wanted else "nothing"
        if there != expected:
            raise ModelFormatError(f"expected {expected} for weight {name!r}, got {there}")
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelFormatError(f"expected weights of a floating-point dtype: {error}") from error


def _has_other_settings(module: nn.Module) -> bool:
    """Whether a layer has a setting that its description would lose."""
    if _has_hooks(module):
        return True
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return any(getattr(module, key) != value for key, value in _PLAIN_CONVOLUTION.items())
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return not (module.affine and module.track_running_stats)
    if isinstance(module, nn.Upsample):
        return (
            module.scale_factor is None
            or module.align_corners is not None
            or bool(module.recompute_scale_factor)
        )
    return False


def _has_hooks(module: nn.Module) -> bool:
    """Whether something else runs along with the module, as spectral norm's hook does."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a stack of stacks, in order."""
    if type(module) is nn.Sequential:
        return [layer for child in module for layer in _layers(child)]
    return [module]
