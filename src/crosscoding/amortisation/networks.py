"""Networks for amortised cross-coders, chosen by the shape of the data."""

import math

import torch
from torch import Generator, Tensor, nn

from crosscoding.crosscoders import Crosscoder
from crosscoding.crosscoders.packed_numbers import num_numbers
from crosscoding.likelihoods import Likelihood, Mixed
from crosscoding.model.masked_network import MaskedNetwork
from crosscoding.model.vae import VAE

_WIDE, _NARROW = 1024, 512  # units of the first layer for data of many elements; of other layers
_MOST_PIXELS = 2048  # pixels times channels up to which fully connected layers are affordable
_MOST_CLASSES = 64  # per element that get a feature of their own
_SMALL = 0.1  # factor on the last layer's initial weights: q(z|x) starts close to the prior
_APART = 0.3  # standard deviation of a mixture's initial means, in prior standard deviations


def default_network(
    vae: VAE, crosscoder: Crosscoder, data: Tensor, generator: Generator
) -> nn.Module:
    """A network for a model, with new weights.

    Rows of a table and small pictures go through fully connected layers; large pictures go through
    convolutions first.

    Args:
        vae: The model, in noise coordinates.
        crosscoder: The family whose numbers it outputs.
        data: Draws from the model, (N, *data), from which elements get their scales.
        generator: For the weights.
    """
    flat = data.flatten(1)
    shift, scale = _standard(flat)
    source, code = _classes(vae.flat_likelihood, flat)
    num_features, num_out = 2 * flat.shape[1] + len(source), num_numbers(crosscoder, vae.latent_dim)
    with torch.device("meta"):  # else torch draws the weights from its global generator
        stack = nn.Sequential(*_layers(vae.data_shape, num_features, len(source), num_out))
    stack.to_empty(device="cpu")
    for layer in stack:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _draw(layer, generator)
    last = stack[-1]
    assert isinstance(last, nn.Linear)
    _start_at_prior(last, crosscoder, vae.latent_dim, generator)
    network = MaskedNetwork(stack, shift, scale, source, code)
    return network.to(dtype=vae.dtype, device=vae.device)


def _layers(
    shape: torch.Size, num_features: int, num_classes: int, num_out: int
) -> list[nn.Module]:
    size, layers = shape.numel(), list[nn.Module]()
    if len(shape) in (2, 3) and size > _MOST_PIXELS and not num_classes:
        channels = 1 if len(shape) == 2 else shape[0]
        height, width = shape[-2:]
        layers.append(nn.Unflatten(1, (2 * channels, height, width)))
        before = 2 * channels
        for after in (32, 64, 128):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
            before, height, width = after, height // 2, width // 2
        layers.append(nn.Flatten())
        num_features = before * height * width
    else:
        wide = _WIDE if size > _NARROW else _NARROW
        layers += [nn.Linear(num_features, wide), nn.SiLU()]
        num_features = wide
    return [
        *layers,
        nn.Linear(num_features, _NARROW),
        nn.SiLU(),
        nn.Linear(_NARROW, _NARROW),
        nn.SiLU(),
        nn.Linear(_NARROW, num_out),
    ]


def _standard(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scale of each element, (E,); the scale is from the quartiles if these differ."""
    low, middle, high = flat.double().quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.double, device=flat.device), 0
    )
    scale = (high - low) / 1.35
    deviation = flat.double().std(0)
    scale = torch.where(scale > 0, scale, torch.where(deviation > 0, deviation, 1.0))
    return middle.to(flat), scale.to(flat)


def _classes(likelihood: Likelihood, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Element and value of each class that occurs among draws, (C,) each."""
    parts = likelihood.pairs if isinstance(likelihood, Mixed) else [(likelihood, flat.shape[1])]
    sources, codes, start = [], [], 0
    for part, num in parts:
        for element in range(start, start + num if part.kind == "classes" else start):
            values = flat[:, element].unique()[:_MOST_CLASSES]
            sources.append(torch.full_like(values, element, dtype=torch.long))
            codes.append(values)
        start += num
    none = flat.new_zeros(0)
    return torch.cat([none.long(), *sources]), torch.cat([none, *codes])


def _draw(layer: nn.Linear | nn.Conv2d, generator: Generator) -> None:
    """Draw initial weights, uniform within ± √(3/n) for n inputs, which keeps the variance."""
    num = layer.weight[0].numel()
    nn.init.uniform_(layer.weight, -math.sqrt(3 / num), math.sqrt(3 / num), generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def _start_at_prior(
    last: nn.Linear, crosscoder: Crosscoder, dim: int, generator: Generator
) -> None:
    """Make the initial output close to the parameters of N(0, I), with components a bit apart."""
    last.weight.mul_(_SMALL)
    num = getattr(crosscoder, "components", 1)
    if num > 1:
        means = _APART * torch.randn(num * dim, generator=generator)
        last.bias[num : num + num * dim] = means
