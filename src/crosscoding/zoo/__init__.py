"""Pretrained VAEs, their cards, and real digits to try them on.

    mnist-2d       digits, 784-64-2-64-784, the paper's
    mnist-20d      digits, 784-400-20-400-784
    anime-64d      drawn faces, 3 x 64 x 64, the paper's convolutional networks
    celeba-100d    photographed faces, the same with 100 latent dimensions

The two models of faces have their own licence and come with the package `crosscoding-faces`.

`training.recipe` defines the models, `training.fit` trains them, and `training.publishing` writes
them to folders. `crosscoding train` runs all three.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crosscoding.errors import unknown_name
from crosscoding.isolation import isolated
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import read_folder

_HERE = Path(__file__).parent
_MODELS = _HERE / "models"
_FACES = ("anime-64d", "celeba-100d")  # in the package crosscoding-faces

__all__ = ["card", "digits", "encoder", "load", "names"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def names() -> list[str]:
    """The names that `load` knows."""
    return sorted(_folders())


@isolated
def load(name: str) -> VAE:
    """Load a pretrained VAE, in float32. Digits decode to logits, faces to means.

    Raises:
        ValueError: There is no such model (the message suggests the nearest name), or it is in a
            package that is not installed.

    Example:
        >>> load("mnist-2d").latent_dim
        2
    """
    return load_vae(_folder(name))


@isolated
def encoder(name: str) -> nn.Module:
    """The encoder that a model was trained with, frozen. It approximates p(z|t).

    It takes complete data only.

    Returns:
        Module from t (B, *data) to mean and log-variance of q(z|t), shape (B, 2 latent).

    Example:
        >>> encoder("mnist-2d")(digits()[0]).shape
        torch.Size([40, 4])
    """
    network = load(name).encoder
    assert network is not None
    return network


def card(name: str) -> dict[str, Any]:
    """Architecture, likelihood, data, licences, recipe and test ELBO (nats) of a model."""
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


@isolated
def digits() -> tuple[Tensor, Tensor]:
    """Forty black and white MNIST test digits, four of each class, and their labels.

    Returns:
        Images of zeros and ones, float32, shape (40, 28, 28), and labels, shape (40,).
    Source: MNIST, Yann LeCun and Corinna Cortes, CC BY-SA 3.0. Differs in: pixels above 127 are 1.
    """
    stored = _digits()
    return (stored["images"] > 127).to(torch.float32), stored["labels"].long()


def _folders() -> dict[str, Path]:
    """The folders of all models by name, including `crosscoding_faces` if it is installed."""
    faces = find_spec("crosscoding_faces")
    roots = [_MODELS]
    if faces is not None and faces.origin is not None:
        roots.append(Path(faces.origin).parent / "models")
    return {folder.name: folder for root in roots for folder in root.iterdir() if folder.is_dir()}


def _folder(name: str) -> Path:
    folders = _folders()
    if name in folders:
        return folders[name]
    if name in _FACES:
        raise ValueError(
            f"{name} is in a package that is not installed: pip install crosscoding-faces"
        )
    raise unknown_name("model of the zoo", name, sorted(folders))
