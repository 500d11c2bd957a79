"""The networks of the models in the zoo, described by plain data so that a card can hold them."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them and nothing after the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_decoder(latent_dim: int, hidden: Sequence[int], data_shape: Sequence[int]) -> nn.Sequential:
    """z (B, latent) -> logits (B, *data)."""
    network = mlp((latent_dim, *hidden, prod(data_shape)))
    return nn.Sequential(*network, nn.Unflatten(1, tuple(data_shape)))


def mlp_encoder(data_shape: Sequence[int], hidden: Sequence[int], latent_dim: int) -> nn.Sequential:
    """t (B, *data) -> mean and log-variance of q(z|t), one after the other, shape (B, 2 latent)."""
    return nn.Sequential(nn.Flatten(), *mlp((prod(data_shape), *hidden, 2 * latent_dim)))
