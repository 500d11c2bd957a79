"""Defines the models of the zoo: networks, data, likelihood, and all that determines the weights.

`fit` trains by a recipe, and `publishing` writes the result as a model of the zoo.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from crosscoding.likelihoods import Bernoulli, Gaussian, Likelihood
from crosscoding.zoo.networks import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder
from crosscoding.zoo.training.data import load_digits, load_pictures, scaled


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A model of the zoo and all that determines its weights.

    Args:
        latent_dim: Size of z.
        epochs: Passes over the training data.
        batch_size: Data per step.
        learning_rate: Adam's initial rate; it decays to zero along half a cosine.
        seed: Of the initial weights, the order of the data and the draws of z.
        data_shape: Shape of one datum.

    Attributes:
        bfloat16: Whether matrix products and convolutions are trained in bfloat16.
        matched: Whether z is published in coordinates that match the prior.
        half: Whether weights are published in half precision.
        about: The card's entries about data and licences.
    """

    latent_dim: int
    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    data_shape: tuple[int, ...]

    bfloat16: ClassVar[bool] = False
    matched: ClassVar[bool] = False
    half: ClassVar[bool] = False

    @property
    @abstractmethod
    def about(self) -> dict[str, str]:
        """`data`, `data_licence` and `weights_licence`, for the card."""

    @abstractmethod
    def networks(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Encoder, t -> mean and log-variance of q(z|t), and decoder, z -> parameters of p(t|z)."""

    @abstractmethod
    def load(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Training and held-out data, in the form that is kept in memory, (N, *data) each."""

    @abstractmethod
    def likelihood(self, params: Tensor, data: Tensor) -> Likelihood:
        """p(t|z), given the decoder's output `params` for `data`, both (B, *data)."""

    def prepared(self, data: Tensor) -> Tensor:
        """Convert data from `load` to the networks' input, float32."""
        return data

    def varied(self, data: Tensor, *, generator: Generator) -> Tensor:
        """Augment prepared data for training."""
        return data


@dataclass(frozen=True, kw_only=True)
class DigitRecipe(Recipe):
    """Black and white digits, fully connected networks, Bernoulli likelihood.

    Args:
        hidden: Width of each hidden layer of the decoder; the encoder mirrors it.
    """

    hidden: tuple[int, ...]
    data_shape: tuple[int, ...] = (28, 28)

    @property
    def about(self) -> dict[str, str]:
        return DIGITS

    def networks(self) -> tuple[nn.Sequential, nn.Sequential]:
        encoder = mlp_encoder(self.data_shape, self.hidden[::-1], self.latent_dim)
        return encoder, mlp_decoder(self.latent_dim, self.hidden, self.data_shape)

    def load(self, folder: Path) -> tuple[Tensor, Tensor]:
        return load_digits(folder, "train"), load_digits(folder, "test")

    def likelihood(self, params: Tensor, data: Tensor) -> Likelihood:
        return Bernoulli()


@dataclass(frozen=True, kw_only=True)
class FaceRecipe(Recipe):
    """Colour pictures of faces, convolutional networks, Gaussian likelihood with a single scale.

    The scale is estimated at every step: σ² = mean squared residual, which maximises the batch's
    likelihood.

    Args:
        faces: A key of `FACES`.
        channels: Input maps of each transposed convolution of the decoder; the last outputs 3.
        encoder_channels: Output maps of each convolution of the encoder.
        kernel_size: Side of all filters.
        held_out: Pictures at the end of the archive that are held out.
    Source: Wu, Domke & Sanner (2018), appendix, for the decoder; Rybkin, Daniilidis & Levine
    (2021), optimal σ-VAE, for the scale. Differs in: the paper states neither the input maps of the
    decoder's first transposed convolution (256 here) nor the encoder's widths; a random half of the
    training pictures is mirrored; `latent_moments` chooses the coordinates of z.
    """

    faces: str
    channels: tuple[int, ...] = (256, 256, 128, 32)
    encoder_channels: tuple[int, ...] = (32, 64, 128, 256)
    kernel_size: int = 5
    held_out: int = 500
    batch_size: int = 32
    data_shape: tuple[int, ...] = (3, 64, 64)

    bfloat16: ClassVar[bool] = True
    matched: ClassVar[bool] = True
    half: ClassVar[bool] = True

    @property
    def about(self) -> dict[str, str]:
        what = FACES[self.faces]
        last = f"; the last {self.held_out} by name held out, half of the others mirrored"
        return {**what, "data": what["data"] + last}

    def networks(self) -> tuple[nn.Sequential, nn.Sequential]:
        shape, latent = self.data_shape, self.latent_dim
        encoder = conv_encoder(shape, self.encoder_channels, latent, self.kernel_size)
        return encoder, conv_decoder(latent, self.channels, shape, self.kernel_size)

    def load(self, folder: Path) -> tuple[Tensor, Tensor]:
        path = Path(folder) / f"{self.faces}_64.zip"
        pictures = load_pictures(path, self.data_shape[-1])
        if len(pictures) <= self.held_out:
            raise ValueError(
                f"expected more than {self.held_out} pictures in {path}, as that many are held "
                f"out, got {len(pictures)}"
            )
        return pictures[: -self.held_out], pictures[-self.held_out :]

    def likelihood(self, params: Tensor, data: Tensor) -> Likelihood:
        return Gaussian((data - params.detach()).square().mean().sqrt().item())

    def prepared(self, data: Tensor) -> Tensor:
        return scaled(data)

    def varied(self, data: Tensor, *, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(data), generator=generator) < 0.5
        return torch.where(mirrored[:, None, None, None], data.flip(-1), data)


DIGITS = {
    "data": "MNIST, 60,000 training digits, 28 x 28, pixels above 127 are 1",
    "data_licence": "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
    "weights_licence": "MIT",
}
"""The cards' entries about digits."""

FACES = {
    "anime": {
        "data": "20,000 drawn faces, 64 x 64, red, green and blue by / 127.5 - 1",
        "data_licence": "not stated; drawings by many artists, none of them in this package",
        "weights_licence": "MIT for what is ours; the drawings' licence is not stated",
    },
    "celeba": {
        "data": "9,000 faces of CelebA (Liu, Luo, Wang & Tang 2015), centre crop of 148, 64 x 64, "
        "red, green and blue by / 127.5 - 1",
        "data_licence": "non-commercial research, not for redistribution; none in this package",
        "weights_licence": "non-commercial research, as the faces they were trained on",
    },
}
"""The cards' entries about each archive of faces, NAME_64.zip, by NAME."""

# The published models of faces were shortened while they were trained: anime-64d in steps from 12
# epochs to 9, celeba-100d after its fourth epoch from 20 to 14. Until then, their learning rates
# were those of the longer schedules; in anime-64d's seventh and eighth epoch, they were 1.4 to 3
# times the rates of this recipe.
RECIPES: dict[str, Recipe] = {
    "mnist-2d": DigitRecipe(latent_dim=2, hidden=(64,), epochs=300, learning_rate=3e-3, seed=1),
    "mnist-20d": DigitRecipe(latent_dim=20, hidden=(400,), epochs=120),
    "anime-64d": FaceRecipe(latent_dim=64, faces="anime", epochs=9),
    "celeba-100d": FaceRecipe(latent_dim=100, faces="celeba", epochs=14),
}
