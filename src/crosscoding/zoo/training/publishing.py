"""From a finished training to a model of the zoo: coordinates, statistics, scale, figures, card.

coordinates  of z, in which draws of the prior lie where data do (`matching`)
statistics   of batch norm: of training data under the final weights, for eval mode
scale        σ² = E_q[mean squared residual], which makes the ELBO of training data largest
figures      the ELBO of data that were not trained on, under the weights as they are published

Faces have all of these, digits the last.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from crosscoding.likelihoods import Likelihood
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import prefixed, write_folder
from crosscoding.persistence.layers import describe
from crosscoding.zoo.training.fit import Training, elbo, reconstruct
from crosscoding.zoo.training.latent_moments import match_prior

_BLOCK = 250  # data a pass without gradients
_NUM_KNOWN = 2000  # training data that statistics and scale are worked out from
_NUM_MATCHED = 8000  # and the coordinates of z: moments of many dimensions take more


@torch.no_grad()
def evaluate(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood,
    data: Tensor,
    *,
    num_draws: int = 16,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean ELBO over data in nats, and its standard error over the data.

    Args:
        encoder, decoder: The networks, in eval mode if they are to be judged as they are used.
        likelihood: p(t|z), given what the decoder outputs.
        data: Shape (N, *data), N ≥ 2, as the networks take them.
        num_draws: Draws of z a datum.
        seed: Decides them.
    """
    generator = Generator().manual_seed(seed)
    total = torch.zeros(len(data))
    for _ in range(num_draws):
        for rows in torch.arange(len(data)).split(_BLOCK):
            params, divergence = reconstruct(encoder, decoder, data[rows], generator=generator)
            total[rows] += elbo(likelihood, data[rows], params, divergence)
    per_datum = (total / num_draws).double()
    return per_datum.mean().item(), per_datum.std().item() / math.sqrt(len(data))


@torch.no_grad()
def settle_batch_norm(encoder: nn.Module, decoder: nn.Module, data: Tensor, *, seed: int) -> None:
    """Estimate what batch norm uses in eval mode, with the weights as they are now.

    Running averages of training lag behind the weights. Here each layer gets the plain average
    over all data; the encoder's first, then the decoder's, at draws of q(z|t). Both are left in
    eval mode.

    Args:
        encoder, decoder: The networks.
        data: Shape (N, *data), as the networks take them.
        seed: Decides the draws of z.
    """
    generator = Generator().manual_seed(seed)
    with _averaging(encoder):
        for block in data.split(_BLOCK):
            encoder(block)
    with _averaging(decoder):
        for block in data.split(_BLOCK):
            reconstruct(encoder, decoder, block, generator=generator)


@contextmanager
def _averaging(network: nn.Module) -> Iterator[None]:
    """Batch norm in training mode, its statistics plain averages from here on; then eval mode."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    network.train()
    yield
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def publish(training: Training, data: Tensor, test_data: Tensor, folder: Path) -> dict[str, Any]:
    """Write a trained VAE as a model of the zoo, with its card; returns the card.

    Args:
        training: Finished; its networks are left in eval mode, their weights as published.
        data: What it was trained on, as `Recipe.load` gives them.
        test_data: What it was not trained on.
        folder: Where to write; new, or a model's.
    """
    recipe, encoder, decoder = training.recipe, training.encoder, training.decoder
    known = recipe.prepared(data[:_NUM_KNOWN])
    if recipe.matched:
        settle_batch_norm(encoder, decoder, known, seed=recipe.seed)
        match_prior(encoder, decoder, recipe.prepared(data[:_NUM_MATCHED]))
    if recipe.half:
        round_to_half(training.networks)
    settle_batch_norm(encoder, decoder, known, seed=recipe.seed)
    likelihood = _fitting_likelihood(training, known)
    value, error = evaluate(encoder, decoder, likelihood, recipe.prepared(test_data))
    card = {
        **recipe.about,
        "recipe": asdict(recipe),
        "training_cpu_seconds": round(training.seconds),
        "test_elbo_nats": round(value, 2),
        "test_elbo_standard_error": round(error, 2),
    }
    parts = VAE(decoder, recipe.latent_dim, likelihood).to_parts()
    if parts is None:
        raise ValueError("expected a decoder that is a stack of common layers")
    tensors = parts[0] | prefixed(dict(encoder.state_dict()), "encoder")
    if recipe.half:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    description = parts[1] | {"encoder": describe(encoder), "card": card}
    write_folder(folder, "vae", (tensors, description))
    return card


@torch.no_grad()
def _fitting_likelihood(training: Training, data: Tensor) -> Likelihood:
    """The recipe's likelihood for all of data at once, one draw of z each."""
    generator = Generator().manual_seed(training.recipe.seed)
    networks = training.encoder, training.decoder
    passed = [reconstruct(*networks, block, generator=generator) for block in data.split(_BLOCK)]
    return training.recipe.likelihood(torch.cat([params for params, _ in passed]), data)


@torch.no_grad()
def round_to_half(networks: nn.Module) -> None:
    """Round the weights of products and convolutions to what half precision can hold."""
    for parameter in networks.parameters():
        parameter.copy_(_halved(parameter))


def _halved(tensor: Tensor) -> Tensor:
    """A matrix or filter in half precision; biases and batch norm, which are small, as they are."""
    return tensor.half() if tensor.ndim >= 2 and tensor.is_floating_point() else tensor
