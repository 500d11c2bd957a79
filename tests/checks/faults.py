"""Correct models, and pieces that each introduce one fault."""

import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian

LATENT, SIZE = 2, 12


class Function(nn.Module):
    """A module made from a function of z and a network that is right."""

    def __init__(self, function) -> None:
        super().__init__()
        self.network = network()
        self.function = function

    def forward(self, z: Tensor):
        return self.function(self.network, z)


def network(size: int = SIZE, last: nn.Module | None = None) -> nn.Sequential:
    """A smooth decoder whose outputs are around 1 in size."""
    layers = [nn.Linear(LATENT, 16), nn.Tanh(), nn.Linear(16, size)]
    decoder = nn.Sequential(*layers, *([] if last is None else [last]))
    generator = seeded(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return decoder


def wrapped(function, likelihood=None) -> cc.VAE:
    """The model whose decoder is function(network, z)."""
    return cc.VAE(Function(function), LATENT, likelihood or Gaussian(0.3))


def right(scale: float = 0.3) -> cc.VAE:
    """A model without a fault."""
    return cc.VAE(network(), LATENT, Gaussian(scale))


def drawn(vae: cc.VAE, num: int = 200) -> Tensor:
    """Data as it draws them."""
    return vae.sample_prior(num, seed=5)


def status(vae: cc.VAE, name: str, data: Tensor | None = None, **options) -> str:
    return vae.check(data, **options)[name].status
