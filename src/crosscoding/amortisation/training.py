"""Trains a network on draws of a frozen model: z ~ p(z), t ~ p(t|z), and a mask that hides a part.

    maximise  E_{p(z, t), masks} log q_ψ(z|x),   ψ = network(x, mask)

which is, up to a constant, minus the forward divergence E_x KL(p(z|x) ‖ q(z|x)): q covers all of
p(z|x), every mode included. No datum is seen twice, so it cannot overfit.

Source: Papamakarios & Murray (2016), with p itself as the proposal; Xiao, Ou et al. (2022) for a
    network that takes any query of a pretrained VAE. Differs in: it takes any mask, and only
    simulated data.
"""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from crosscoding.crosscoders import Crosscoder
from crosscoding.crosscoders.packed_numbers import unpacked_numbers
from crosscoding.masks import MaskDistribution
from crosscoding.model.coarse_decoder import half_is_faster
from crosscoding.model.vae import VAE
from crosscoding.progress import Progress
from crosscoding.random import spawn
from crosscoding.zoo.training.checkpoints import load_checkpoint, save_checkpoint

_BATCH = 512
_LEARNING_RATE, _WARM_UP = 1e-3, 100  # steps
_CLIPPED = 5.0  # largest norm of the gradient
_DECAY_FROM = 0.6  # share of the budget after which the learning rate falls at the latest
_NUM_HELD_OUT = 2000
_NUM_CHECKS = 40  # of the held-out bound, in the whole budget
_PATIENCE = 5  # checks without an improvement beyond two standard errors
_LEAST_GAIN = 0.005  # nats; smaller gains are not an improvement


@dataclass(frozen=True, eq=False)
class Twins:
    """Simulated queries: noise z (N, latent), data and masks, (N, *data)."""

    z: Tensor
    data: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The observed values, 0 elsewhere."""
        return torch.where(self.mask, self.data, 0.0)

    def select(self, index: Tensor) -> "Twins":
        """Some of the twins."""
        return Twins(self.z[index], self.data[index], self.mask[index])


def simulated(vae: VAE, masks: MaskDistribution, num: int, generator: Generator) -> Twins:
    """Twins of a model in noise coordinates."""
    z, data = vae.simulate(num, generator=generator)
    mask = masks.draw(num, vae.data_shape, generator=generator)
    return Twins(z, data, mask.to(data.device))


@dataclass(frozen=True)
class Limits:
    """When a training ends: after so many seconds or steps, whichever is first; None: no limit."""

    max_seconds: float | None
    max_steps: int | None

    def share(self, seconds: float, steps: int) -> float:
        """The share of the budget that is used."""
        of_time = 0.0 if self.max_seconds is None else seconds / self.max_seconds
        return max(of_time, 0.0 if self.max_steps is None else steps / self.max_steps)


class Training:
    """A network in training.

    Args:
        vae: The model, in noise coordinates.
        masks: Masks of the queries.
        network: What is trained, called as network(values, mask).
        crosscoder: The family whose numbers it outputs.
        seed: Of all random numbers.

    Attributes:
        steps: Steps so far.
        seconds: Time that they took.
        bounds: log q of the held-out twins with the best weights so far, (N,); None before the
            first check.
        for_record: Generator for the record.
        for_coverage: Generator for the twins that measure coverage.
    """

    def __init__(
        self,
        vae: VAE,
        masks: MaskDistribution,
        network: nn.Module,
        crosscoder: Crosscoder,
        seed: int,
    ) -> None:
        self._vae, self._masks, self._seed = vae, masks, seed
        self.network, self._crosscoder = network, crosscoder
        self._optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        self._in_half = vae.dtype == torch.float32 and half_is_faster(vae.device)
        streams = spawn(Generator().manual_seed(seed), 4)
        for_held_out, self._for_steps, self.for_record, self.for_coverage = streams
        self._held_out = simulated(vae, masks, _NUM_HELD_OUT, for_held_out)
        self.steps, self.seconds = 0, 0.0
        self.bounds: Tensor | None = None
        self._best = copy.deepcopy(network.state_dict())
        self._left, self._decay_from = _PATIENCE, _DECAY_FROM

    @torch.enable_grad()
    def run(self, limits: Limits, progress: Progress, folder: Path | None) -> None:
        """Train to the end of the budget or until the held-out bound stops improving."""
        self._load(folder)
        start, before = time.perf_counter(), self.seconds
        checked = share = limits.share(self.seconds, self.steps)
        while share < min(self._end, 1.0):
            self._step(share)
            self.seconds = before + time.perf_counter() - start
            share = limits.share(self.seconds, self.steps)
            if share >= checked + 1 / _NUM_CHECKS or share >= min(self._end, 1.0):
                checked = share
                self._check(share)
                self._save(folder)
            done = f"step {self.steps:,}"
            if self.bounds is not None:
                done += f", E log q(z|x) {float(self.bounds.mean()):.2f} nats"
            progress(min(share / min(self._end, 1.0), 1.0), done)
        self.network.load_state_dict(self._best)

    @property
    def ended_early(self) -> bool:
        """Whether the held-out bound stopped improving before the budget was used."""
        return self._decay_from < _DECAY_FROM

    @property
    def _end(self) -> float:
        """The share of the budget at which the learning rate has fallen to 0."""
        return self._decay_from / _DECAY_FROM

    def _step(self, share: float) -> None:
        """One step on fresh twins."""
        self.steps += 1
        fall = (self._end - share) / (self._end - self._decay_from)
        rate = _LEARNING_RATE * min(self.steps / _WARM_UP, 1.0) * min(max(fall, 0.0), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        (for_step,) = spawn(self._for_steps, 1)
        twins = simulated(self._vae, self._masks, _BATCH, for_step)
        loss = -self._log_prob(twins, in_half=self._in_half).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIPPED)
        self._optimizer.step()

    def _log_prob(self, twins: Twins, *, in_half: bool = False) -> Tensor:
        """log q(z|x) of twins in nats, (N,); the network may run in half precision."""
        with torch.autocast(twins.z.device.type, torch.bfloat16, enabled=in_half):
            numbers = self.network(twins.values, twins.mask)
        numbers = numbers.to(twins.z.dtype)
        params = unpacked_numbers(self._crosscoder, numbers, self._vae.latent_dim)
        return self._crosscoder.log_prob(params, twins.z[None])[0]

    @torch.no_grad()
    def _check(self, share: float) -> None:
        """Keep the best weights by the held-out bound; once it stalls, start to lower the rate."""
        bounds = self._log_prob(self._held_out)
        if self.bounds is None:
            improves = True
        else:
            gain = bounds - self.bounds
            error = float(gain.std()) / math.sqrt(len(gain))
            improves = float(gain.mean()) > max(2 * error, _LEAST_GAIN)
        if self.bounds is None or float(bounds.mean()) > float(self.bounds.mean()):
            self._best, self.bounds = copy.deepcopy(self.network.state_dict()), bounds
        self._left = _PATIENCE if improves else self._left - 1
        if self._left <= 0 and share < self._decay_from:
            self._decay_from = share

    # ---- checkpoints -----------------------------------------------------------------------------

    def _save(self, folder: Path | None) -> None:
        if folder is None:
            return
        both = nn.ModuleDict({"network": self.network, "best": copy.deepcopy(self.network)})
        both["best"].load_state_dict(self._best)
        words = {
            "of": self._name,
            "steps": str(self.steps),
            "seconds": str(self.seconds),
            "left": str(self._left),
            "decay_from": str(self._decay_from),
        }
        save_checkpoint(folder, both, self._optimizer, words)

    @torch.no_grad()
    def _load(self, folder: Path | None) -> None:
        """Continue from the checkpoint in a folder, if there is one.

        Raises:
            ValueError: It is from another training.
        """
        if folder is None:
            return
        both = nn.ModuleDict({"network": self.network, "best": copy.deepcopy(self.network)})
        try:
            words: Mapping[str, str] | None = load_checkpoint(folder, both, self._optimizer)
        except RuntimeError as error:
            raise ValueError(_other(folder)) from error
        if words is None:
            return
        if words["of"] != self._name:
            raise ValueError(_other(folder))
        self.steps, self.seconds = int(words["steps"]), float(words["seconds"])
        for _ in range(self.steps):  # so that the next steps see the same twins as uninterrupted
            spawn(self._for_steps, 1)
        self._left, self._decay_from = int(words["left"]), float(words["decay_from"])
        self._best = copy.deepcopy(both["best"].state_dict())
        current = copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(self._best)
        self.bounds = self._log_prob(self._held_out)
        self.network.load_state_dict(current)

    @property
    def _name(self) -> str:
        """What identifies a training: masks, family, seed, and the model by its twins."""
        mean = float(self._held_out.data.double().mean())
        return f"{self._masks} {self._crosscoder} seed {self._seed} twins {mean:.6g}"


def _other(folder: Path) -> str:
    return (
        f"expected {folder} to hold a checkpoint of this training, got one of another model, "
        "network, masks or seed; choose another folder, or delete it"
    )
