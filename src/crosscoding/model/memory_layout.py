"""Convolutions in the memory layout that is fastest on most processors: channels last.

oneDNN then needs no reordering between layers: on two cores, a float32 decode of faces of 64 x 64
pixels takes 312 µs instead of 522, and one of digits of 32 x 32 pixels 75 instead of 115 (two
decoders of others, batches of 2,048). A single convolution, or a `LayerNorm` over images between
convolutions, would be slower by up to a half, so decoders with these are left alone.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosscoding.model.foreign_random import watched
from crosscoding.model.recognition import same_output

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_FEWEST = 2


@torch.no_grad()
def use_channels_last(
    network: nn.Module, run: Callable[[nn.Module], Tensor], output: Tensor
) -> bool:
    """Put the weights of a network's convolutions in that layout, if a copy then runs as before.

    A network may rely on the other layout: `view` does not flatten images with channels last.

    Args:
        network: A module that may be changed, in whatever layout.
        run: Runs a module like it.
        output: What that gave for the network itself.
    Returns:
        Whether the layout was changed.
    """
    if output.device.type != "cpu" or not _gains(network):
        return False
    with watched(network):
        try:
            tried = copy.deepcopy(network)
            set_layout(tried, torch.channels_last)
            same = same_output(run(tried), output)
        except Exception:  # a user's module may raise anything
            same = False
    if same:
        set_layout(network, torch.channels_last)
    return same


def set_layout(network: nn.Module, layout: torch.memory_format) -> None:
    """Put the weights of a network's convolutions in a layout, in place."""
    for module in _convolutions(network):
        module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _gains(network: nn.Module) -> bool:
    of_images = any(
        isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 3
        for module in network.modules()
    )
    return len(_convolutions(network)) >= _FEWEST and not of_images


def _convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    """The convolutions of images whose weights are plain parameters."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _CONVOLUTIONS)
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    ]
