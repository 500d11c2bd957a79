"""Checkpoints of a training run: weights, optimiser state and a few words, as safetensors."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, words: dict[str, str]
) -> None:
    """Write a checkpoint to `folder` atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    written = folder / f"{CHECKPOINT}.part"
    save_file({k: v.contiguous() for k, v in tensors.items()}, written, metadata=words)
    written.replace(folder / CHECKPOINT)


def load_checkpoint(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, str] | None:
    """Load the checkpoint in `folder`; returns its words, or None if there is none."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    tensors = load_file(path)
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    with safe_open(path, "pt") as file:
        return file.metadata()
