"""Trained families as models to condition: prior, decoder and likelihood."""

import torch
from torch import Tensor, nn

from crosscoding.likelihoods import Bernoulli
from crosscoding.model.vae import VAE
from crosscoding.priors import Bernoulli as BinaryPrior
from crosscoding.priors import Categorical, Hierarchical
from crosscoding.zoo.training.families.base import DATA_SHAPE, Family
from crosscoding.zoo.training.families.continuous import Ladder, Plain
from crosscoding.zoo.training.families.discrete import BinaryPairs, Codes


def as_vae(family: Family) -> VAE:
    """The generative part of a trained family, as a model whose decoder is a stack of layers.

    The codebook of a VQ-VAE is merged into the decoder's first layer. The masked network of its
    prior becomes a plain one, with zeros in place of the masked weights.

    Raises:
        TypeError: It is of an unknown family.
    """
    layers = [*_layers(family.decoder), nn.Unflatten(1, DATA_SHAPE)]
    if isinstance(family, Plain):
        return VAE(nn.Sequential(*layers), family.latent_dim, Bernoulli())
    if isinstance(family, Ladder):
        networks = list(reversed(family.down))
        sizes = family.levels[::-1]
        prior = Hierarchical(sizes, networks, next_only=True, last_only=True)
        return VAE(nn.Sequential(*layers), family.latent_dim, Bernoulli(), prior=prior)
    if isinstance(family, BinaryPairs):
        num_first, dim = family.prior.sizes[0], family.latent_dim
        pairs = torch.zeros(dim, dim)
        pairs[:num_first, num_first:] = family.prior.pairs.detach()
        own = BinaryPrior(family.prior.logits.detach(), pairs + pairs.mT)
        return VAE(nn.Sequential(*layers), dim, Bernoulli(), prior=own)
    if isinstance(family, Codes):
        layers[0] = _looking_up(layers[0], family.codes)
        network = _unmasked(family)
        codes = Categorical(family.num_codes, family.places, network=network)
        decoder = nn.Sequential(nn.Flatten(), *layers)
        return VAE(decoder, family.places, Bernoulli(), prior=codes)
    raise TypeError(f"expected a trained family, got {type(family).__name__}")


def _layers(network: nn.Module) -> list[nn.Module]:
    return list(network.children())


@torch.no_grad()
def _looking_up(layer: nn.Module, codes: Tensor) -> nn.Linear:
    """Turn a linear layer of concatenated code vectors into one of concatenated one-hot rows."""
    assert isinstance(layer, nn.Linear)
    of_place = layer.weight.unflatten(1, (-1, codes.shape[1]))  # (width, D, size)
    weight = (of_place @ codes.mT).flatten(1)
    looked = nn.Linear(weight.shape[1], weight.shape[0])
    looked.weight.copy_(weight)
    assert layer.bias is not None
    looked.bias.copy_(layer.bias)
    return looked


@torch.no_grad()
def _unmasked(family: Codes) -> nn.Sequential:
    """The masked network of the prior as a stack of common layers."""
    masked = family.prior
    before, after = masked.masks()
    first = nn.Linear(masked.first.in_features, masked.first.out_features)
    second = nn.Linear(masked.second.in_features, masked.second.out_features)
    first.weight.copy_(masked.first.weight * before)
    first.bias.copy_(masked.first.bias)
    second.weight.copy_(masked.second.weight * after)
    second.bias.copy_(masked.second.bias)
    shape = (family.places, family.num_codes)
    return nn.Sequential(nn.Flatten(), first, nn.ELU(), second, nn.Unflatten(1, shape))
