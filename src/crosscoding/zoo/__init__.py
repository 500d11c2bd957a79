"""Pretrained VAEs, their cards, and real digits to try them on.

    mnist-2d       digits, 784-64-2-64-784, the paper's
    mnist-20d      digits, 784-400-20-400-784
    mnist-ladder   digits, a ladder VAE with levels of 8, 12 and 20
    mnist-dvae     digits, a discrete VAE with 64 binary latents and a pair prior
    mnist-iwae     digits, decoder 20-400-784, trained by the importance-weighted bound, k = 50
    mnist-planar   the same decoder, trained with a planar flow as posterior
    mnist-iaf      the same decoder, trained with an inverse autoregressive flow as posterior
    mnist-vqvae    digits, a VQ-VAE with 16 places of 32 codes and an autoregressive prior
    anime-64d      drawn faces, 3 x 64 x 64, the paper's convolutional networks
    celeba-100d    photographed faces, the same with 100 latent dimensions

The two models of faces have their own licence and come with the package `crosscoding-faces`. Five
of the models of digits come with `crosscoding-families`, because of their size.

`training.recipe` defines the models, `training.fit` trains them, and `training.publishing` writes
them to folders; `training.families` does this for the models between `mnist-ladder` and
`mnist-vqvae`. `crosscoding train` runs all of it.
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
_COMPANIONS = {
    "crosscoding-faces": ("anime-64d", "celeba-100d"),
    "crosscoding-families": (
        "mnist-dvae",
        "mnist-iaf",
        "mnist-iwae",
        "mnist-planar",
        "mnist-vqvae",
    ),
}
"""Packages with further models, and their names."""

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

    Raises:
        ValueError: As in `load`; or the model comes without an encoder, like those of
            `training.families`, most of which have a q(z|t) that is not Gaussian.

    Example:
        >>> encoder("mnist-2d")(digits()[0]).shape
        torch.Size([40, 4])
    """
    network = load(name).encoder
    if network is None:
        raise ValueError(f"expected a model that comes with its encoder, got {name}")
    return network


def card(name: str) -> dict[str, Any]:
    """Architecture, likelihood, data, licences, recipe and test ELBO (nats) of a model.

    The encoder is listed only if the model has one, the prior only if it is not N(0, I).
    """
    _, description = read_folder(_folder(name), "vae")
    return {
        "name": name,
        "latent_dim": description["latent_dim"],
        "decoder": description["architecture"],
        **{part: description[part] for part in ("encoder", "prior") if part in description},
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
    """The folders of all models by name, including those of the companions that are installed."""
    roots = [_MODELS]
    for package in _COMPANIONS:
        found = find_spec(package.replace("-", "_"))
        if found is not None and found.origin is not None:
            roots.append(Path(found.origin).parent / "models")
    return {folder.name: folder for root in roots for folder in root.iterdir() if folder.is_dir()}


def _folder(name: str) -> Path:
    folders = _folders()
    if name in folders:
        return folders[name]
    raise _unknown_model(name, "model of the zoo")


def model_folder(name: str | Path) -> Path:
    """The folder of a model, given its name in the zoo or the folder that `VAE.save` wrote.

    Names in the zoo take precedence over folders of the same name.

    Raises:
        ValueError: There is no such model or folder.
    """
    folders = _folders()
    if str(name) in folders:
        return folders[str(name)]
    if not Path(name).is_dir():
        raise _unknown_model(str(name), "folder of a model, or a model")
    return Path(name)


def _unknown_model(name: str, wanted: str) -> ValueError:
    """The error for a name that no installed model has; it says which package has it, if one does.

    Args:
        name: The name.
        wanted: What was expected among the known names, in words.
    """
    for package, models in _COMPANIONS.items():
        if name in models:
            return ValueError(
                f"{name} is in a package that is not installed: pip install {package}"
            )
    return unknown_name(wanted, name, names())
