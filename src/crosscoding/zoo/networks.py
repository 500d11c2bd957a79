"""The networks of the zoo's models: stacks of common layers, which a model's card can describe."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU in between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_decoder(latent_dim: int, hidden: Sequence[int], data_shape: Sequence[int]) -> nn.Sequential:
    """z (B, latent) -> logits (B, *data)."""
    network = mlp((latent_dim, *hidden, prod(data_shape)))
    return nn.Sequential(*network, nn.Unflatten(1, tuple(data_shape)))


def mlp_encoder(data_shape: Sequence[int], hidden: Sequence[int], latent_dim: int) -> nn.Sequential:
    """t (B, *data) -> mean and log-variance of q(z|t), concatenated, shape (B, 2 latent)."""
    return nn.Sequential(nn.Flatten(), *mlp((prod(data_shape), *hidden, 2 * latent_dim)))


def conv_decoder(
    latent_dim: int, channels: Sequence[int], data_shape: Sequence[int], kernel_size: int
) -> nn.Sequential:
    """z (B, latent) -> means between −1 and 1, shape (B, *data).

    Args:
        latent_dim: Size of z.
        channels: Input maps of each transposed convolution. The first takes the output of a linear
            layer; each doubles the side, and the last outputs the channels of the data.
        data_shape: (channels, side, side); the side can be halved once per convolution.
        kernel_size: Side of the filters, odd.
    """
    depth, side = data_shape[0], smallest_side(data_shape, len(channels))
    layers: list[nn.Module] = [
        nn.Linear(latent_dim, channels[0] * side**2, bias=False),
        nn.Unflatten(1, (channels[0], side, side)),
    ]
    sizes = (kernel_size, 2, kernel_size // 2, 1)  # filter, stride, padding, output padding
    for maps_in, maps_out in pairwise(channels):
        layers += [nn.BatchNorm2d(maps_in), nn.ReLU()]
        layers += [nn.ConvTranspose2d(maps_in, maps_out, *sizes, bias=False)]
    layers += [nn.BatchNorm2d(channels[-1]), nn.ReLU()]
    layers += [nn.ConvTranspose2d(channels[-1], depth, *sizes), nn.Tanh()]
    return nn.Sequential(*layers)


def conv_encoder(
    data_shape: Sequence[int], channels: Sequence[int], latent_dim: int, kernel_size: int
) -> nn.Sequential:
    """t (B, *data) -> mean and log-variance of q(z|t), concatenated, shape (B, 2 latent).

    Args:
        data_shape: (channels, side, side); the side can be halved once per convolution.
        channels: Output maps of each convolution; each halves the side.
        latent_dim: Size of z.
        kernel_size: Side of the filters, odd.
    """
    layers: list[nn.Module] = []
    sizes = (kernel_size, 2, kernel_size // 2)  # filter, stride, padding
    for maps_in, maps_out in pairwise((data_shape[0], *channels)):
        layers += [nn.Conv2d(maps_in, maps_out, *sizes, bias=False)]
        layers += [nn.BatchNorm2d(maps_out), nn.ReLU()]
    features = channels[-1] * smallest_side(data_shape, len(channels)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 2 * latent_dim))


def smallest_side(data_shape: Sequence[int], num_halvings: int) -> int:
    """The side of a square image after `num_halvings` halvings.

    Raises:
        ValueError: The image is not square, or its side cannot be halved that many times.
    """
    *_, height, width = data_shape
    side = height >> num_halvings
    if height != width or side << num_halvings != height or side < 1:
        raise ValueError(
            f"expected square images whose side can be halved {num_halvings} times, "
            f"got {height} x {width}"
        )
    return side
