"""How the models of the zoo are trained: the plain VAE of Kingma & Welling (2014).

    ELBO(t) = E_{q(z|t)}[log p(t|z)] − KL[q(z|t) ‖ N(0, I)],   q(z|t) = N(μ(t), diag σ²(t))

One draw of z a datum and step, Adam, a learning rate that falls to zero along half a cosine. Every
epoch draws from a generator of its own, seeded by the recipe's seed and the epoch's number, so that
a run resumed from a checkpoint gives the same weights as one that was never interrupted.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from crosscoding.likelihoods import Likelihood
from crosscoding.progress import Report, followed, silent
from crosscoding.zoo.training.recipe import Recipe

_CHECKPOINT = "checkpoint.safetensors"


def reconstruct(
    encoder: nn.Module, decoder: nn.Module, data: Tensor, *, generator: Generator
) -> tuple[Tensor, Tensor]:
    """What the decoder outputs at a draw z = μ + σ ε of q(z|t), and KL[q(z|t) ‖ N(0, I)].

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
    """ELBO of each datum in nats, shape (B,), from what `reconstruct` gave for it."""
    return likelihood.log_prob(params, data).flatten(1).sum(-1) - divergence


class Training:
    """A VAE in training.

    Attributes:
        recipe: What is trained.
        encoder, decoder: The networks.
        epoch: Epochs done.
        seconds: Processor time that they took.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        with torch.device("meta"):  # torch would draw the first weights from its global generator
            encoder, decoder = recipe.networks()
        self.encoder, self.decoder = encoder.to_empty(device="cpu"), decoder.to_empty(device="cpu")
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        draw_weights(self.networks, generator=Generator().manual_seed(recipe.seed))
        for parameter in self.networks.parameters():
            if parameter.ndim == 4:  # filters: convolutions on CPU are faster so
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=recipe.learning_rate)
        self.epoch = 0
        self.seconds = 0.0

    def run_epoch(self, data: Tensor, report: Report = silent) -> float:
        """One pass over the data, as `Recipe.load` gives them; returns the mean ELBO in nats."""
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
        """One step of the optimiser; returns the sum of the batch's ELBO in nats."""
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
        """Write weights and optimiser state, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"network.{k}": v for k, v in self.networks.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        written = folder / f"{_CHECKPOINT}.part"
        metadata = {"epoch": str(self.epoch), "seconds": f"{self.seconds:.3f}"}
        save_file({k: v.contiguous() for k, v in tensors.items()}, written, metadata=metadata)
        written.replace(folder / _CHECKPOINT)

    def resume(self, folder: Path) -> bool:
        """Take up the checkpoint in folder; False where there is none."""
        path = folder / _CHECKPOINT
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
        self.seconds = float(header["__metadata__"].get("seconds", "0"))
        return True


def draw_weights(networks: nn.Module, *, generator: Generator) -> None:
    """First weights: uniform within ± 1/√n, n the inputs that one output sums over.

    Source: LeCun, Bottou, Orr & Müller (1998), as PyTorch has it. Differs in: of a transposed
    convolution n is what one output really sums over, maps times filter over stride.
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
    """Train by the recipe, taking up what an earlier, interrupted run left in `checkpoints`.

    Args:
        recipe: What to train.
        data: Training data as `Recipe.load` gives them, shape (N, *data).
        checkpoints: Folder that holds this run's checkpoint, written after every epoch.
        on_epoch: Called with the number of epochs done and the mean training ELBO in nats.
        report, progress: As in `condition`.
    """
    training = Training(recipe)
    training.resume(checkpoints)
    with followed("training", report, progress) as told:
        while training.epoch < recipe.epochs:
            value = training.run_epoch(data, told)
            training.save(checkpoints)
            on_epoch(training.epoch, value)
    return training
