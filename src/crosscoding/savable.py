"""The half of `VAE` that has to do with files: a folder of its own, or a part of a posterior's."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from crosscoding.architecture import check_growth, describe
from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.likelihoods import Likelihood
from crosscoding.model import KIND, Model
from crosscoding.storage import Parts, write_folder
from crosscoding.surroundings import isolated


class Savable(ABC):
    """What can be saved and made again, of a class that has what is declared here."""

    decoder: nn.Module
    encoder: nn.Module | None
    latent_dim: int
    likelihood: Likelihood
    data_shape: torch.Size

    @abstractmethod
    def __init__(self, decoder: nn.Module, latent_dim: int, likelihood: Likelihood) -> None: ...

    @abstractmethod
    def _set_encoder(self, encoder: nn.Module) -> None: ...

    @abstractmethod
    def _some_outputs(self) -> Tensor:
        """A few numbers that the decoder puts out, to know it again by."""

    @isolated
    def save(
        self,
        folder: str | Path,
        *,
        decoder_arguments: Mapping[str, Any] | None = None,
        encoder_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder, as safetensors and JSON; whole or not at all.

        A network that is a stack of common layers (`nn.Sequential`) is written as data. One of a
        class of your own is written as the name of its class, "module:Class", and the arguments of
        its constructor, which you give here. What is written is read again first.

            vae.save("faces")                                       # nn.Sequential(...)
            vae.save("faces", decoder_arguments={"hidden": 64})     # class Decoder of your own
            load_vae("faces", decoder=Decoder(hidden=64))           # and back
            load_vae("faces", allow_code=True)                      # or import it by its name

        Args:
            folder: Where to; new, or a saved model's, which is replaced.
            decoder_arguments: Makes the decoder anew, for one of a class of your own.
            encoder_arguments: The same for the encoder.
        Raises:
            TypeError: The arguments are not what JSON can hold.
            ValueError: A network is no stack of common layers and no arguments are given; or they
                do not make it; or the folder cannot be written.

        Example:
            >>> from tempfile import mkdtemp
            >>> from crosscoding import VAE, load_vae
            >>> from crosscoding.likelihoods import Bernoulli
            >>> decoder = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 784))
            >>> folder = Path(mkdtemp()) / "digits"
            >>> VAE(decoder, latent_dim=2, likelihood=Bernoulli()).save(folder)
            >>> load_vae(folder)
            VAE(Sequential, latent_dim=2, data_shape=(784,), Bernoulli(logits=True))
        """
        arguments = {"decoder": decoder_arguments, "encoder": encoder_arguments}
        parts = self._made_of(self.encoder).to_parts(arguments)
        self._of(Model.from_parts(parts, allow_code=True))
        write_folder(Path(folder), KIND, parts)

    @isolated
    def to_parts(self) -> Parts | None:
        """The model as tensors and JSON, or None if its decoder is no stack of common layers.

        It goes without its encoder, on which no answer rests.
        """
        return None if describe(self.decoder) is None else self._made_of(None).to_parts({})

    @classmethod
    @isolated
    def from_parts(cls, parts: Parts) -> Self:
        """The model that `to_parts` described.

        Raises:
            ModelFormatError: The description is not one, or the weights are not its own.
        """
        return cls._of(Model.from_parts(parts))

    @classmethod
    def _of(cls, model: Model) -> Self:
        """The VAE of a model that was read, with errors that say what of it is wrong."""
        check_growth(model.decoder, (model.latent_dim,))
        try:
            vae = cls(model.decoder, model.latent_dim, model.likelihood)
            if model.encoder is not None:
                check_growth(model.encoder, vae.data_shape)
                vae._set_encoder(model.encoder)
        except (ModelFormatError, NonFiniteError):
            raise
        except (TypeError, ValueError) as error:
            raise ModelFormatError(f"the model's parts do not fit: {error}") from error
        if model.outputs is not None:
            vae._check_outputs(model.outputs)
        return vae

    def _made_of(self, encoder: nn.Module | None) -> Model:
        parts = self.decoder, self.latent_dim, self.likelihood, encoder
        return Model(*parts, outputs=self._some_outputs())

    def _check_outputs(self, saved: Tensor) -> None:
        """Raise ModelFormatError if the decoder puts out other values than when it was saved."""
        here = self._some_outputs()
        same = (saved.shape, saved.dtype) == (here.shape, here.dtype)
        # It may have been saved on a processor that rounds more coarsely. NaN fails.
        if not same or not (here - saved).abs().max() <= 1e-3 * saved.abs().max():
            raise ModelFormatError(
                "expected a decoder that puts out what it did when it was saved, got other values; "
                "its class, or the arguments that make it, are not the same"
            )
