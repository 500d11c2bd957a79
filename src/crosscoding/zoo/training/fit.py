"""Trains the models of the zoo: plain VAEs as in Kingma & Welling (2014).

    ELBO(t) = E_{q(z|t)}[log p(t|z)] − KL[q(z|t) ‖ N(0, I)],   q(z|t) = N(μ(t), diag σ²(t))

Each step takes one draw of z per datum. The optimiser is Adam, whose learning rate decays to zero
along half a cosine. Every epoch has its own generator, seeded by the recipe's seed and the epoch's
number, so a run resumed from a checkpoint gives the same weights as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from crosscoding.likelihoods import Likelihood
from crosscoding.progress import Report, followed, silent
from crosscoding.zoo.training.checkpoints import load_checkpoint, save_checkpoint
from crosscoding.zoo.training.recipe import Recipe


def reconstruct(
    encoder: nn.Module, decoder: nn.Module, data: Tensor, *, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Decode a draw z = μ + σ ε from q(z|t), and compute KL[q(z|t) ‖ N(0, I)].

    Args:
        encoder, decoder: The networks.
        data: t, shape (B, *data).
        generator: Draws ε.
    Returns:
        Parameters of p(t|z), shape (B, *data), and nats, shape (B,), both float32.
    """
    mean, log_variance = encoder(data).float().chunk(2, dim=-1)
    noise = torch.randn(mean.shape, generator=generator)
    params = decoder(mean + (0.5 * log_variance).exp() * noise).float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    return params, divergence


def elbo(likelihood: Likelihood, data: Tensor, params: Tensor, divergence: Tensor) -> Tensor:
    """ELBO of each datum in nats, shape (B,), from the outputs of `reconstruct`."""
    return likelihood.log_prob(params, data).flatten(1).sum(-1) - divergence


class Training:
    """A VAE in training.

    Attributes:
        recipe: The model's recipe.
        encoder, decoder: The networks.
        epoch: Number of finished epochs.
        seconds: Their processor time.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        with torch.device("meta"):  # else torch draws the weights from its global generator
            encoder, decoder = recipe.networks()
        self.encoder, self.decoder = encoder.to_empty(device="cpu"), decoder.to_empty(device="cpu")
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        draw_weights(self.networks, generator=Generator().manual_seed(recipe.seed))
        for parameter in self.networks.parameters():
            if parameter.ndim == 4:  # filters; makes convolutions on CPU faster
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=recipe.learning_rate)
        self.epoch = 0
        self.seconds = 0.0

    def run_epoch(self, data: Tensor, report: Report = silent) -> float:
        """Train for one epoch on data from `Recipe.load`; returns the mean ELBO in nats."""
        recipe, start = self.recipe, time.process_time()
        generator = Generator().manual_seed(recipe.seed * 1_000_003 + self.epoch + 1)
        order = torch.randperm(len(data), generator=generator).split(recipe.batch_size)
        self.networks.train()
        total = 0.0
        for step, rows in enumerate(order):
            done = (self.epoch + step / len(order)) / recipe.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            batch = recipe.varied(recipe.prepared(data[rows]), generator=generator)
            total += self.step(batch, generator=generator)
            elbo_so_far = total / ((step + 1) * recipe.batch_size)
            what = f"epoch {self.epoch + 1} of {recipe.epochs}, ELBO {elbo_so_far:.2f} nats"
            report((self.epoch + (step + 1) / len(order)) / recipe.epochs, what)
        self.epoch += 1
        self.seconds += time.process_time() - start
        return total / len(data)

    def step(self, batch: Tensor, *, generator: Generator) -> float:
        """Take one optimiser step; returns the batch's summed ELBO in nats."""
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            params, divergence = reconstruct(self.encoder, self.decoder, batch, generator=generator)
        values = elbo(self.recipe.likelihood(params, batch), batch, params, divergence)
        self.optimizer.zero_grad(set_to_none=True)
        (-values.mean()).backward()
        self.optimizer.step()
        return values.sum().item()

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state atomically to a checkpoint in `folder`."""
        words = {"epoch": str(self.epoch), "seconds": f"{self.seconds:.3f}"}
        save_checkpoint(folder, self.networks, self.optimizer, words)

    def resume(self, folder: Path) -> bool:
        """Load the checkpoint in `folder`; returns False if there is none."""
        words = load_checkpoint(folder, self.networks, self.optimizer)
        if words is None:
            return False
        self.epoch, self.seconds = int(words["epoch"]), float(words.get("seconds", "0"))
        return True


def draw_weights(networks: nn.Module, *, generator: Generator) -> None:
    """Draw initial weights: uniform within ± 1/√n, with n the number of inputs of one output.

    Source: LeCun, Bottou, Orr & Müller (1998), as in PyTorch. Differs in: for a transposed
    convolution, n is the true number of inputs: maps times filter size over stride.
    """
    for layer in networks.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            bound = 1 / math.sqrt(_num_summed(layer))
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()  # ones and zeros


def _num_summed(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    summed = layer.in_channels * math.prod(layer.kernel_size)
    return summed / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else summed


def train(
    recipe: Recipe,
    data: Tensor,
    checkpoints: Path,
    *,
    on_epoch: Callable[[int, float], None] = lambda epoch, value: None,
    report: Report = silent,
    progress: bool = True,
) -> Training:
    """Train a model; resumes if an interrupted run left a checkpoint.

    Args:
        recipe: The model's recipe.
        data: Training data from `Recipe.load`, shape (N, *data).
        checkpoints: Folder of this run's checkpoint, which is written after every epoch.
        on_epoch: Called after each epoch with the number of epochs and their mean ELBO in nats.
        report, progress: As in `condition`.
    """
    training = Training(recipe)
    training.resume(checkpoints)
    with followed("training", report, progress) as track:
        while training.epoch < recipe.epochs:
            value = training.run_epoch(data, track)
            training.save(checkpoints)
            on_epoch(training.epoch, value)
    return training
