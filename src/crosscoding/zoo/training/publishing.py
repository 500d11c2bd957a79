"""Turns a finished training into a model of the zoo: coordinates, statistics, scale, figures, card.

coordinates  of z, in which draws from the prior match the data (`latent_moments`)
statistics   of batch norm in eval mode: those of training data under the final weights
scale        σ² = E_q[mean squared residual], which maximises the ELBO of training data
figures      the ELBO of held-out data under the published weights

Models of faces take all of these steps, models of digits only the last.
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

_BLOCK = 250  # data per pass without gradients
_NUM_KNOWN = 2000  # training data from which statistics and scale are computed
_NUM_MATCHED = 8000  # training data for the coordinates of z, whose many moments need more


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
        encoder, decoder: The networks, usually in eval mode.
        likelihood: p(t|z), given the decoder's output.
        data: Shape (N, *data), N ≥ 2, ready for the networks.
        num_draws: Draws of z per datum.
        seed: Of these draws.
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
    """Estimate the statistics that batch norm uses in eval mode, under the current weights.

    The running averages from training lag behind the weights. Here each layer gets the plain
    average over all data: first the encoder's layers, then the decoder's, at draws from q(z|t).
    Leaves both networks in eval mode.

    Args:
        encoder, decoder: The networks.
        data: Shape (N, *data), ready for the networks.
        seed: Of the draws of z.
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
    """Within the block, batch norm accumulates plain averages; afterwards, sets eval mode."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to ask for a plain average
    network.train()
    yield
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def publish(training: Training, data: Tensor, test_data: Tensor, folder: Path) -> dict[str, Any]:
    """Write a trained VAE as a model of the zoo, with its card; returns the card.

    Args:
        training: Finished. Its networks are left in eval mode, with the published weights.
        data: Training data from `Recipe.load`.
        test_data: Held-out data.
        folder: Where to write: a new folder, or one that holds a model.
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
        raise ValueError("expected a decoder that is a stack of common layers, got another module")
    tensors = parts[0] | prefixed(dict(encoder.state_dict()), "encoder")
    if recipe.half:
        tensors = {name: halved(tensor) for name, tensor in tensors.items()}
    description = parts[1] | {"encoder": describe(encoder), "card": card}
    write_folder(folder, "vae", (tensors, description))
    return card


@torch.no_grad()
def _fitting_likelihood(training: Training, data: Tensor) -> Likelihood:
    """The recipe's likelihood for all data together, with one draw of z each."""
    generator = Generator().manual_seed(training.recipe.seed)
    networks = training.encoder, training.decoder
    passed = [reconstruct(*networks, block, generator=generator) for block in data.split(_BLOCK)]
    return training.recipe.likelihood(torch.cat([params for params, _ in passed]), data)


@torch.no_grad()
def round_to_half(networks: nn.Module) -> None:
    """Round the weights of linear and convolutional layers to half precision."""
    for parameter in networks.parameters():
        parameter.copy_(halved(parameter))


def halved(tensor: Tensor) -> Tensor:
    """Convert matrices and filters to half precision; biases and batch norm stay in float32."""
    return tensor.half() if tensor.ndim >= 2 and tensor.is_floating_point() else tensor
