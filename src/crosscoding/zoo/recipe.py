"""How the models of the zoo were trained: the plain VAE of Kingma & Welling (2014).

    ELBO(t) = E_{q(z|t)}[log p(t|z)] − KL[q(z|t) ‖ N(0, I)],   q(z|t) = N(μ(t), diag σ²(t))

One draw of z a datum and step, Adam, a learning rate that falls to zero along half a cosine. Every
epoch draws from a generator of its own, seeded by the recipe's seed and the epoch's number, so that
a run resumed from a checkpoint gives the same weights as one that was never interrupted.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from crosscoding.architecture import describe
from crosscoding.likelihoods import Bernoulli
from crosscoding.storage import prefixed, write_folder
from crosscoding.vae import VAE
from crosscoding.zoo.networks import mlp_decoder, mlp_encoder


@dataclass(frozen=True)
class Recipe:
    """A model of the zoo and all that decides its weights.

    Args:
        latent_dim: Size of z.
        hidden: Width of each hidden layer of the decoder; the encoder mirrors it.
        epochs: Passes over the 60,000 training digits.
        batch_size: Digits a step.
        learning_rate: Adam's, at the start.
        seed: Decides the initial weights, the order of the digits and the draws of z.
    """

    latent_dim: int
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    data_shape: tuple[int, ...] = (28, 28)


RECIPES = {
    "mnist-2d": Recipe(latent_dim=2, hidden=(64,), epochs=300, learning_rate=3e-3, seed=1),
    "mnist-20d": Recipe(latent_dim=20, hidden=(400,), epochs=120),
}


def load_digits(folder: Path, split: str) -> Tensor:
    """MNIST digits, black and white: pixels above 127 are 1. Shape (N, 28, 28), float32.

    Args:
        folder: Holds `mnist.npz` with `train_images` and `test_images`, uint8, (N, 28, 28).
        split: "train" or "test".
    """
    path = Path(folder) / "mnist.npz"
    if not path.is_file():
        raise ValueError(f"expected MNIST in {path}, and there is no such file; name its folder")
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[f"{split}_images"] > 127).float()


def elbo(encoder: nn.Module, decoder: nn.Module, data: Tensor, noise: Tensor) -> Tensor:
    """ELBO of each datum in nats, shape (B,), from one draw z = μ + σ ε; noise ε is (B, latent)."""
    mean, log_variance = encoder(data).chunk(2, dim=-1)
    logits = decoder(mean + (0.5 * log_variance).exp() * noise)
    log_likelihood = -F.binary_cross_entropy_with_logits(logits, data, reduction="none")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    return log_likelihood.flatten(1).sum(-1) - divergence


@torch.no_grad()
def evaluate(
    encoder: nn.Module, decoder: nn.Module, data: Tensor, *, num_draws: int = 16, seed: int = 0
) -> tuple[float, float]:
    """Mean ELBO over data in nats, and its standard error over the data."""
    generator = torch.Generator().manual_seed(seed)
    latent_dim = encoder(data[:1]).shape[-1] // 2
    total = torch.zeros(len(data))
    for _ in range(num_draws):
        for rows in torch.arange(len(data)).split(1000):
            noise = torch.randn(len(rows), latent_dim, generator=generator)
            total[rows] += elbo(encoder, decoder, data[rows], noise)
    per_datum = (total / num_draws).double()
    return per_datum.mean().item(), per_datum.std().item() / math.sqrt(len(data))


class Training:
    """A VAE in training: its networks, optimiser and the number of epochs done."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        with torch.device("meta"):  # torch would draw the first weights from its global generator
            encoder = mlp_encoder(recipe.data_shape, recipe.hidden[::-1], recipe.latent_dim)
            decoder = mlp_decoder(recipe.latent_dim, recipe.hidden, recipe.data_shape)
        self.encoder, self.decoder = encoder.to_empty(device="cpu"), decoder.to_empty(device="cpu")
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        for layer in self.networks.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=recipe.learning_rate)
        self.epoch = 0

    def run_epoch(self, data: Tensor) -> float:
        """One pass over the data; returns the mean training ELBO in nats."""
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.epoch + 1)
        order = torch.randperm(len(data), generator=generator).split(recipe.batch_size)
        total = 0.0
        for step, rows in enumerate(order):
            done = (self.epoch + step / len(order)) / recipe.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            noise = torch.randn(len(rows), recipe.latent_dim, generator=generator)
            values = elbo(self.encoder, self.decoder, data[rows], noise)
            self.optimizer.zero_grad(set_to_none=True)
            (-values.mean()).backward()
            self.optimizer.step()
            total += values.sum().item()
        self.epoch += 1
        return total / len(data)

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"network.{k}": v for k, v in self.networks.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        written = folder / "checkpoint.safetensors.part"
        save_file(tensors, written, metadata={"epoch": str(self.epoch)})
        written.replace(folder / "checkpoint.safetensors")

    def resume(self, folder: Path) -> bool:
        """Take up the checkpoint in folder; False where there is none."""
        path = folder / "checkpoint.safetensors"
        if not path.is_file():
            return False
        tensors = load_file(path)
        self.networks.load_state_dict(
            {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        self.epoch = int(header["__metadata__"]["epoch"])
        return True


def train(
    recipe: Recipe,
    data: Tensor,
    checkpoints: Path,
    *,
    on_epoch: Callable[[int, float], None] = lambda epoch, value: None,
) -> Training:
    """Train by the recipe, taking up what an earlier, interrupted run left in `checkpoints`.

    Args:
        recipe: What to train.
        data: Training data, shape (N, *data), zeros and ones.
        checkpoints: Folder that holds this run's checkpoint, written after every epoch.
        on_epoch: Called with the number of epochs done and the mean training ELBO in nats.
    """
    training = Training(recipe)
    training.resume(checkpoints)
    while training.epoch < recipe.epochs:
        value = training.run_epoch(data)
        training.save(checkpoints)
        on_epoch(training.epoch, value)
    return training


def publish(training: Training, test_data: Tensor, folder: Path) -> dict[str, Any]:
    """Write a trained VAE as a model of the zoo, with its card; returns the card."""
    recipe = training.recipe
    test_elbo, error = evaluate(training.encoder, training.decoder, test_data)
    card = {
        "data": "MNIST, 60,000 training digits, 28 x 28, pixels above 127 are 1",
        "data_licence": "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        "weights_licence": "MIT",
        "recipe": asdict(recipe),
        "test_elbo_nats": round(test_elbo, 2),
        "test_elbo_standard_error": round(error, 2),
    }
    vae = VAE(training.decoder, recipe.latent_dim, Bernoulli())
    parts = vae.to_parts()
    if parts is None:
        raise ValueError("expected a decoder that is a stack of common layers")
    tensors = parts[0] | prefixed(dict(training.encoder.state_dict()), "encoder")
    description = parts[1] | {"encoder": describe(training.encoder), "card": card}
    write_folder(folder, "vae", (tensors, description))
    return card
