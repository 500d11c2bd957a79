"""Pretrained VAEs, their cards, and real digits to observe parts of.

    mnist-2d     784-64-2-64-784, the paper's
    mnist-20d    784-400-20-400-784

`recipe` trained them and can again; `crosscoding train` is its command.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from crosscoding.errors import unknown_name
from crosscoding.storage import read_folder
from crosscoding.vae import VAE

_HERE = Path(__file__).parent
_MODELS = _HERE / "models"

__all__ = ["card", "digits", "load", "names"]


def names() -> list[str]:
    """The names that `load` knows."""
    return sorted(folder.name for folder in _MODELS.iterdir() if folder.is_dir())


def load(name: str) -> VAE:
    """A pretrained VAE by its name; digits decode to logits.

    Raises:
        ValueError: There is no such model; says which name is nearest.

    Example:
        >>> load("mnist-2d").latent_dim
        2
    """
    return VAE.from_parts(read_folder(_folder(name), "vae"))


def card(name: str) -> dict[str, Any]:
    """Architecture, data, licences, recipe and test ELBO (nats) of a model."""
    _, description = read_folder(_folder(name), "vae")
    return {
        "name": name,
        "latent_dim": description["latent_dim"],
        "decoder": description["architecture"],
        "encoder": description["encoder"],
        "likelihood": description["likelihood"],
        **description["card"],
    }


@cache
def _digits() -> dict[str, Tensor]:
    return load_file(_HERE / "digits.safetensors")


def digits() -> tuple[Tensor, Tensor]:
    """Forty MNIST test digits, four of each class, black and white, and their labels.

    Returns:
        Images of zeros and ones, float32, shape (40, 28, 28), and labels, shape (40,).
    Source: MNIST, Yann LeCun and Corinna Cortes, CC BY-SA 3.0. Differs in: pixels above 127 are 1.
    """
    stored = _digits()
    return (stored["images"] > 127).to(torch.float32), stored["labels"].long()


def _folder(name: str) -> Path:
    if name not in names():
        raise unknown_name("model of the zoo", name, names())
    return _MODELS / name
