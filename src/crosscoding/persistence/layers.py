"""Networks as plain data: a stack of common layers to JSON and back, without loading code.

A description is a list of [layer name, arguments]. Only the layers in `_ARGUMENTS` are known; any
other module has no description, and `importable` refers to its class instead.
"""

import inspect
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from crosscoding.errors import ModelFormatError, first_line

MOST_VALUES = 2**28
"""Largest total number of values that all layers may output for one row of input."""
MOST_OPERATIONS = 2**43
"""Largest total of multiply-adds for one row: minutes of a processor core.

The decoder of Stable Diffusion takes a seventh of it for a picture of 512 x 512 pixels.
"""
_MOST_LAYERS = 1000

# The constructor arguments that are saved for each layer; all others must have their defaults.
_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "bias", "padding_mode"),
)
_TRANSPOSED = (*_CONVOLUTION, "output_padding")
_BATCH_NORM = ("num_features", "eps", "affine")
_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "AdaptiveAvgPool2d": ("output_size",),
    "AvgPool1d": _POOLING,
    "AvgPool2d": _POOLING,
    "BatchNorm1d": _BATCH_NORM,
    "BatchNorm2d": _BATCH_NORM,
    "Conv1d": _CONVOLUTION,
    "Conv2d": _CONVOLUTION,
    "ConvTranspose1d": _TRANSPOSED,
    "ConvTranspose2d": _TRANSPOSED,
    "Dropout": ("p",),
    "Dropout2d": ("p",),
    "ELU": ("alpha",),
    "Flatten": ("start_dim", "end_dim"),
    "GELU": ("approximate",),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Hardsigmoid": (),
    "Hardswish": (),
    "Hardtanh": ("min_val", "max_val"),
    "Identity": (),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
    "LeakyReLU": ("negative_slope",),
    "Linear": ("in_features", "out_features", "bias"),
    "LogSigmoid": (),
    "LogSoftmax": ("dim",),
    "MaxPool1d": (*_POOLING, "dilation"),
    "MaxPool2d": (*_POOLING, "dilation"),
    "Mish": (),
    "PReLU": ("num_parameters",),
    "PixelShuffle": ("upscale_factor",),
    "ReLU": (),
    "ReLU6": (),
    "ReflectionPad2d": ("padding",),
    "ReplicationPad2d": ("padding",),
    "SELU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Softmax": ("dim",),
    "Softplus": ("beta", "threshold"),
    "Tanh": (),
    "Unflatten": ("dim", "unflattened_size"),
    "Upsample": ("size", "scale_factor", "mode", "align_corners"),
    "ZeroPad2d": ("padding",),
}
_WITHOUT_EFFECT = {"inplace", "momentum", "init"}  # on the output of a trained layer

Description = list[list[Any]]


def describe(network: nn.Module) -> Description | None:
    """The layers of a network as data, or None if it is not a stack of known layers."""
    layers = _layers(network)
    return None if any(map(_is_strange, layers)) else [_entry(layer) for layer in layers]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a describable network, by their names in the network that `build` makes."""
    return {
        f"{index}.{name}": tensor
        for index, layer in enumerate(_layers(network))
        for name, tensor in layer.state_dict().items()
    }


def flat_stack(network: nn.Module) -> nn.Sequential:
    """The same layers, not copies, as the stack that `build` makes of their description."""
    return nn.Sequential(*_layers(network))


def build(description: Description) -> nn.Sequential:
    """The network of a description, in eval mode, before its weights are loaded.

    Raises:
        ModelFormatError: A layer is unknown or does not take its arguments.
    """
    if not isinstance(description, Sequence) or isinstance(description, str):
        raise ModelFormatError(f"expected a list of layers, got {type(description).__name__}")
    if len(description) > _MOST_LAYERS:
        raise ModelFormatError(f"expected at most {_MOST_LAYERS} layers, got {len(description)}")
    return nn.Sequential(*map(_layer, description)).eval()


def check_shapes(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that these are the shapes of a network's weights, with none missing or left over.

    Raises:
        ModelFormatError: A weight is missing, left over or of another shape; names the first.
    """
    wanted = {
        name: tuple(shapes.get(name, ())) if is_lazy(tensor) else tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
    }
    for name in [*wanted, *sorted(shapes.keys() - wanted)]:
        there = tuple(shapes[name]) if name in shapes else "nothing"
        expected = wanted.get(name, "nothing")
        if there != expected:
            raise ModelFormatError(f"expected {expected} for weight {name!r}, got {there}")


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load all of a network's weights; buffers that are not saved take their dtype.

    Raises:
        ModelFormatError: As in `check_shapes`, or the dtype is not that of weights.
    """
    check_shapes(network, {name: tensor.shape for name, tensor in weights.items()})
    like = next((tensor for tensor in weights.values() if tensor.is_floating_point()), None)
    try:
        if like is not None:
            network.to(like.dtype)  # for buffers that are not saved
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        said = first_line(error)
        raise ModelFormatError(f"expected weights of a floating-point dtype: {said}") from error


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a nested stack, in order."""
    if type(network) is nn.Sequential and not _has_hooks(network):
        return [layer for child in network for layer in _layers(child)]
    return [network]


def _is_strange(layer: nn.Module) -> bool:
    """Whether a layer is unknown, or has a setting that its description would lose."""
    kind = type(layer)
    name = kind.__name__
    if kind is not getattr(nn, name, None) or name not in _ARGUMENTS or _has_hooks(layer):
        return True
    defaults = _defaults(kind, inspect.signature(kind).parameters)
    others = defaults.keys() - _WITHOUT_EFFECT - set(_ARGUMENTS[name])
    return any(_setting(layer, key, defaults[key]) != defaults[key] for key in others)


def _defaults(kind: type[nn.Module], keys: Iterable[str]) -> dict[str, Any]:
    """The defaults of a layer's constructor arguments."""
    parameters = inspect.signature(kind).parameters
    return {key: parameters[key].default for key in keys}


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module runs code besides its class's, such as spectral norm's hook."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _entry(layer: nn.Module) -> list[Any]:
    name = type(layer).__name__
    return [name, {key: _setting(layer, key) for key in _ARGUMENTS[name]}]


def _setting(layer: nn.Module, key: str, default: Any = None) -> Any:
    """A constructor argument of a layer, which layers keep as an attribute of the same name."""
    if key == "bias":  # without weights, the setting is not visible
        return layer.bias is not None or layer.weight is None
    return getattr(layer, key, default)


def _layer(entry: Any) -> nn.Module:
    if not (isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], dict)):
        raise ModelFormatError(f"expected [layer name, arguments], got {short(entry)}")
    name, arguments = entry
    if not isinstance(name, str) or name not in _ARGUMENTS:
        raise ModelFormatError(f"expected a known layer, such as Linear, got {short(name)}")
    if not set(arguments) <= set(_ARGUMENTS[name]):
        known = ", ".join(_ARGUMENTS[name]) or "nothing"
        raise ModelFormatError(f"expected {known} for layer {name}, got {short(arguments)}")
    try:
        kind = getattr(nn, name)
        plain = {key: _plain(value) for key, value in arguments.items()}
        for key, default in _defaults(kind, arguments).items():
            if isinstance(default, bool) and not isinstance(plain[key], bool):
                raise TypeError(f"expected true or false for {key}")
        with torch.device("meta"):  # the weights are replaced: no memory, no random numbers
            return kind(**plain)
    except Exception as error:  # layers raise many errors for wrong arguments
        raise ModelFormatError(f"cannot build layer {short(entry)}: {first_line(error)}") from error


def _plain(value: Any) -> Any:
    """A layer's argument from JSON: null, a string, a finite number, or a list of these."""
    if isinstance(value, list):
        return tuple(map(_plain, value))
    if isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"expected a finite number, a string or a list of them, got {value}")
    return value


_shorten = reprlib.Repr()
_shorten.maxdict = 20


def short(entry: Any) -> str:
    """An entry, shortened for a message."""
    return _shorten.repr(entry)
