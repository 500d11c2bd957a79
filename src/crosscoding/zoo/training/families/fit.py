"""Trains a family by its recipe, resumes interrupted runs, and gives the test bound.

    log p(t) ≥ log 1/k Σ_i w_i,   averaged over test data

The checkpoint holds weights and optimiser state. Every epoch has its own generator, so a resumed
run gives the same weights as an uninterrupted one.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from crosscoding.zoo.training.checkpoints import load_checkpoint, save_checkpoint
from crosscoding.zoo.training.families.recipes import FamilyRecipe
from crosscoding.zoo.training.fit import draw_weights

_NUM_FOR_START = 1000  # data that a family may look at before the first step
_DRAWS_AT_ONCE = 2000  # draws, of all data together, that are decoded at once


class FamilyTraining:
    """A family in training.

    Attributes:
        recipe: What it is trained by.
        family: The networks.
        epoch: Number of finished epochs.
        seconds: Their processor time.
        history: Mean objective of each finished epoch, in nats.
    """

    def __init__(self, recipe: FamilyRecipe, data: Tensor) -> None:
        self.recipe, self.family = recipe, recipe.make()
        generator = Generator().manual_seed(recipe.seed)
        draw_weights(self.family, generator=generator)
        with torch.no_grad():
            self.family.start(data[:_NUM_FOR_START].flatten(1), generator=generator)
        self.optimizer = torch.optim.Adam(
            self.family.parameters(), lr=recipe.learning_rate, fused=True
        )
        self.epoch, self.seconds = 0, 0.0
        self.history: list[float] = []

    def run_epoch(self, data: Tensor) -> float:
        """Train for one epoch on digits (N, 28, 28); returns the mean objective in nats."""
        recipe, start, total = self.recipe, time.process_time(), 0.0
        generator = Generator().manual_seed(recipe.seed * 1_000_003 + self.epoch + 1)
        order = torch.randperm(len(data), generator=generator).split(recipe.batch_size)
        for step, rows in enumerate(order):
            done = self.epoch + step / len(order)
            for group in self.optimizer.param_groups:
                share = done / recipe.epochs
                group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            warmth = min(done / recipe.warm_epochs, 1.0) if recipe.warm_epochs else 1.0
            total += self._step(data[rows].flatten(1), warmth, generator)
        self.epoch += 1
        self.seconds += time.process_time() - start
        self.history.append(total / len(data))
        return self.history[-1]

    def _step(self, batch: Tensor, warmth: float, generator: Generator) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            values = self.family.objective(batch, warmth=warmth, generator=generator)
        self.optimizer.zero_grad(set_to_none=True)
        (-values.mean()).backward()
        self.optimizer.step()
        return values.sum().item()

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state atomically to a checkpoint in `folder`."""
        figures = {"epoch": self.epoch, "seconds": self.seconds, "history": self.history}
        save_checkpoint(folder, self.family, self.optimizer, {"figures": json.dumps(figures)})

    def resume(self, folder: Path) -> bool:
        """Load the checkpoint in `folder`; returns False if there is none."""
        words = load_checkpoint(folder, self.family, self.optimizer)
        if words is None:
            return False
        figures = json.loads(words["figures"])
        self.epoch, self.seconds = figures["epoch"], figures["seconds"]
        self.history = figures["history"]
        return True


def train_family(
    recipe: FamilyRecipe,
    data: Tensor,
    checkpoints: Path,
    *,
    max_seconds: float = math.inf,
    on_epoch: Callable[[int, float], None] = lambda epoch, value: None,
) -> FamilyTraining:
    """Train a family; resumes if an interrupted run left a checkpoint.

    Args:
        recipe: What it is trained by.
        data: Training digits, shape (N, 28, 28), zeros and ones.
        checkpoints: Folder of this run's checkpoint, which is written after every epoch.
        max_seconds: Wall-clock time after which no further epoch starts.
        on_epoch: Called after each epoch with the number of epochs and their mean objective.
    """
    training, start = FamilyTraining(recipe, data), time.perf_counter()
    training.resume(checkpoints)
    while training.epoch < recipe.epochs and time.perf_counter() - start < max_seconds:
        value = training.run_epoch(data)
        training.save(checkpoints)
        on_epoch(training.epoch, value)
    return training


@torch.no_grad()
def importance_bound(
    training: FamilyTraining, data: Tensor, num_weights: int, *, seed: int = 0
) -> tuple[float, float]:
    """The mean over data of log 1/k Σ w, and its standard error, both in nats.

    Args:
        training: The family, whose networks are used in float32.
        data: Held-out digits, shape (N, 28, 28).
        num_weights: Number k of weights per datum.
        seed: Of the draws.
    """
    generator, bounds = Generator().manual_seed(seed), []
    for digits in data.flatten(1).split(_DRAWS_AT_ONCE // 100):
        parts, left = [], num_weights
        while left:
            num = min(left, 100)
            parts.append(training.family.log_weights(digits, num, generator=generator))
            left -= num
        bounds.append(torch.cat(parts).double().logsumexp(0) - math.log(num_weights))
    every = torch.cat(bounds)
    return every.mean().item(), every.std().item() / math.sqrt(len(every))
