"""Decoders of z and a label, the same with a fixed label, and evidence with labels.

Import as `from labelled_decoders import …`.
"""

import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian

NUM_LABELS = 3
# Kept points are as many for each label as for the model with that label fixed, and the queries of
# a call share their noise, so answers differ only by rounding in products of other sizes; it is in
# double, as chains and fits amplify it.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


class Labelled(nn.Module):
    """A decoder of z and a label."""

    def __init__(self, latent_dim: int = 2) -> None:
        super().__init__()
        self.names = nn.Embedding(NUM_LABELS, 3)
        self.first, self.last = nn.Linear(latent_dim + 3, 12), nn.Linear(12, 8)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))

        self.double()

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.last(self.first(torch.cat([z, self.names(label)], -1)).tanh())


class Fixed(nn.Module):
    """A decoder of z alone, with the covariates fixed."""

    def __init__(self, decoder: nn.Module, given: Tensor) -> None:
        super().__init__()
        self.decoder, self.given = decoder, given

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z, self.given.expand(len(z), *self.given.shape))


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
MASK = torch.rand(6, 8, generator=seeded(5)) < 0.5


def labelled(**more) -> cc.VAE:
    more = {"given": torch.arange(NUM_LABELS)} | more
    return cc.VAE(Labelled(), 2, Gaussian(0.4), **more)


def fixed(label: int, **more) -> cc.VAE:
    return cc.VAE(Fixed(Labelled(), torch.tensor(label)), 2, Gaussian(0.4), **more)


DATA = labelled().sample_prior(6, seed=1, given=LABELS)
EVIDENCE = cc.Evidence(DATA, MASK, given=LABELS)
