"""Models of every kind that can be saved, and the arguments to save them with."""

from itertools import pairwise

import torch
from problems import seeded
from torch import nn
from user_networks import Outer, Pair, Residual

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian, Mixed


def filled(network: nn.Module) -> nn.Module:
    """A network with weights that do not depend on the global generator."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))
    return network


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "layers": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5)),
    "one layer": lambda: cc.VAE(nn.Linear(2, 6), 2, Gaussian(0.5)),
    "nested": lambda: cc.VAE(nn.Sequential(mlp(2, 8), nn.Sequential(mlp(8, 6))), 2, Gaussian(0.5)),
    "double": lambda: cc.VAE(mlp(2, 8, 6).double(), 2, Gaussian(0.5)),
    "scales": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(torch.linspace(0.2, 0.9, 6))),
    "zeros and ones": lambda: cc.VAE(mlp(2, 8, 6), 2, Bernoulli()),
    "columns": lambda: cc.VAE(mlp(2, 8, 6), 2, Mixed([(Gaussian(0.3), 4), (Bernoulli(), 2)])),
    "encoder": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5), mlp(6, 8, 4)),
    "encoder of one's own": lambda: cc.VAE(mlp(2, 8, 6), 2, Gaussian(0.5), Pair()),
    "pictures": lambda: cc.VAE(
        nn.Sequential(
            *(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 4, 4, 2, 1)),
            *(nn.GroupNorm(2, 4), nn.PReLU(4), nn.Upsample(scale_factor=2), nn.Dropout(0.2)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3, groups=2), nn.PixelShuffle(2)),
        ),
        2,
        Gaussian(0.5),
        nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 4)),
    ),
    "class of one's own": lambda: cc.VAE(Residual(7), 2, Gaussian(0.5)),
    "both of one's own": lambda: cc.VAE(Residual(7).double(), 2, Gaussian(0.5), Pair().double()),
    "class in a class": lambda: cc.VAE(Outer.Inner(2, 6), 2, Gaussian(0.5)),
}
ARGUMENTS = {
    "encoder of one's own": {"encoder_arguments": {}},
    "class of one's own": {"decoder_arguments": {"hidden": 7}},
    "both of one's own": {
        "decoder_arguments": {"hidden": 7, "sizes": (2, 6)},
        "encoder_arguments": {},
    },
    "class in a class": {"decoder_arguments": {"in_features": 2, "out_features": 6}},
}
