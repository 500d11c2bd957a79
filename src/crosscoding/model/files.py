"""The half of `VAE` that has to do with files: a folder of its own, or a part of a posterior's."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.cost import check_growth
from crosscoding.model.parts import KIND, Model
from crosscoding.persistence.folder import Contents, write_folder
from crosscoding.persistence.layers import describe

_KEEP_SCRIPT = (
    "pass the module that it was made from: load_vae(folder, {0}=...); or keep the file that "
    "torch.jit.save wrote, and pass {0}=torch.jit.load(file)"
)
_NUM_OUTPUTS = 64  # of one z, kept to know a network by
_SAME = 1e-3  # of the largest output: another processor may round more coarsely
_SAME_ENCODING = 1e-2  # and a draw from the model that the encoder is given may come out otherwise


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
    def _outputs(self) -> Tensor:
        """What the decoder outputs at some z that are always the same, (N, *output)."""

    @abstractmethod
    def _encodings(self) -> Tensor | None:
        """What the encoder outputs for draws from the model, (N, *output); None without one."""

    @isolated
    def save(
        self,
        folder: str | Path,
        *,
        decoder_arguments: Mapping[str, Any] | None = None,
        encoder_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder, as safetensors and JSON; whole or not at all.

        A network that is a stack of common layers (`nn.Sequential`) is written as data. Of one of a
        class of your own the weights are written: to load it, make it again and pass it. If you
        give the arguments of its constructor, they go along with the name of its class,
        "module:Class", and it can also be imported. What is written is read again first.

            vae.save("faces")                                       # nn.Sequential(...)
            load_vae("faces")

            vae.save("faces")                                       # class Decoder of your own
            load_vae("faces", decoder=Decoder(hidden=64))

            vae.save("faces", decoder_arguments={"hidden": 64})
            load_vae("faces", allow_code=True)                      # imports Decoder, as you allow

        Args:
            folder: Where to; new, or a saved model's, which is replaced.
            decoder_arguments: Makes the decoder anew, for one of a class that can be imported.
            encoder_arguments: The same for the encoder.
        Raises:
            TypeError: The arguments are not what JSON can hold.
            ValueError: The arguments do not make the network; or the folder cannot be written.

        Warns:
            UserWarning: A network is of a class of your own, and no arguments are given.

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
        for name, network in (("decoder", self.decoder), ("encoder", self.encoder)):
            if isinstance(network, ScriptModule) and arguments[name] is not None:
                raise ValueError(
                    f"expected no {name}_arguments for a scripted or traced {name}, which no "
                    f"arguments make; save without them, and {_KEEP_SCRIPT.format(name)}"
                )
        parts = self._made_of(self.encoder).to_parts(arguments)
        networks = {"decoder": self.decoder, "encoder": self.encoder}
        given = {
            name: network
            for name, network in networks.items()
            if network is not None and arguments[name] is None and describe(network) is None
        }
        self._of(Model.from_parts(parts, given, allow_code=True))
        write_folder(Path(folder), KIND, parts)
        if given:
            warnings.warn(_how_to_load(given), UserWarning, stacklevel=3)

    @isolated
    def to_parts(self) -> Contents | None:
        """The model as tensors and JSON, or None if its decoder is no stack of common layers.

        It goes without its encoder, on which no answer rests.
        """
        return None if describe(self.decoder) is None else self._made_of(None).to_parts({})

    @classmethod
    @isolated
    def from_parts(cls, parts: Contents) -> Self:
        """The model that `to_parts` described.

        Raises:
            ModelFormatError: The description is not one, or the weights are not its own.
        """
        return cls._of(Model.from_parts(parts, {}))

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
            _check_same("decoder", vae._outputs(), model.outputs, _SAME)
        if model.encoder_outputs is not None:
            encodings = vae._encodings()
            if encodings is None:
                raise ModelFormatError("expected an encoder, as there are outputs of one")
            _check_same("encoder", encodings, model.encoder_outputs, _SAME_ENCODING)
        return vae

    def _made_of(self, encoder: nn.Module | None) -> Model:
        encodings = None if encoder is None else self._encodings()
        return Model(
            self.decoder,
            self.latent_dim,
            self.likelihood,
            encoder,
            outputs=_some(self._outputs()),
            encoder_outputs=None if encodings is None else _some(encodings),
        )


def _some(outputs: Tensor) -> Tensor:
    """A few of the numbers of each row, on the CPU."""
    outputs = outputs.flatten(1).cpu()
    return outputs[:, :: -(-outputs.shape[1] // _NUM_OUTPUTS)]


def _check_same(name: str, outputs: Tensor, saved: Tensor, tolerance: float) -> None:
    """Raise ModelFormatError if a network outputs other values than when it was saved."""
    here = _some(outputs)
    same = (saved.shape, saved.dtype) == (here.shape, here.dtype)
    # It may have been saved on a processor that rounds more coarsely.
    if not same or not _are_close(here, saved, tolerance):
        article = "an" if name == "encoder" else "a"
        raise ModelFormatError(
            f"expected {article} {name} that outputs what it did when it was saved, got other "
            "values; its class, or the arguments that make it, are not the same"
        )


def _are_close(outputs: Tensor, saved: Tensor, tolerance: float) -> bool:
    """Whether they are equal but for rounding; of NaN and infinities, that they are the same."""
    largest = torch.where(saved.isfinite(), saved, 0.0).abs().max()
    same = (outputs == saved) | (outputs.isnan() & saved.isnan())
    gap = torch.where(same, 0.0, outputs - saved)
    return bool(gap.abs().max() <= tolerance * largest)


def _how_to_load(given: Mapping[str, nn.Module]) -> str:
    """What a folder that holds weights without their networks asks of whoever loads it."""
    for name, network in given.items():
        if isinstance(network, ScriptModule):
            return (
                f"only the weights are saved of the {name}, a scripted or traced module; to load "
                f"the model, {_KEEP_SCRIPT.format(name)}"
            )
    kinds = {name: type(network).__name__ for name, network in given.items()}
    which = " and ".join(f"the {name}, {kind}" for name, kind in kinds.items())
    them = ", ".join(f"{name}={kind}(...)" for name, kind in kinds.items())
    return (
        f"only the weights are saved of {which}, as a class of your own is code; to load the "
        f"model, make it again as it was and pass it: load_vae(folder, {them})"
    )
