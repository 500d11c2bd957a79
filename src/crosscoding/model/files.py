"""VAEs in folders: saving, and the check that what was read is the model that was saved."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.isolation import isolated
from crosscoding.model.bound import WithoutCovariates
from crosscoding.model.cost import check_growth, check_prior_growth
from crosscoding.model.parts import KIND, Arguments, Model, describe
from crosscoding.model.recognition import TOLERANCE, same_output
from crosscoding.persistence.folder import Contents, write_folder
from crosscoding.priors import DiscretePrior, Prior
from crosscoding.priors.files import is_data

_KEEP_SCRIPT = (
    "pass the module that it was made from: load_vae(folder, {0}=...); or keep the file that "
    "torch.jit.save wrote, and pass {0}=torch.jit.load(file)"
)
_NUM_OUTPUTS = 64  # numbers kept of each output, by which to recognise a network
_OF_ENCODINGS = 10 * TOLERANCE  # encoders take draws, which may differ on another processor


class Savable(ABC):
    """The part of `VAE` that writes it to folders, and makes it from what was written.

    `VAE` defines what it is made of, `_model`, and how to make it from that, `_made_of`.
    """

    decoder: nn.Module
    encoder: nn.Module | None
    prior: Prior

    @property
    def own_decoder(self) -> nn.Module:
        """The frozen copy of the decoder that was passed."""
        decoder = self.decoder
        return decoder.network if isinstance(decoder, WithoutCovariates) else decoder

    @abstractmethod
    def _model(self, *, whole: bool) -> Model:
        """What this VAE is made of, with some outputs by which to recognise its networks.

        Encoder and amortised cross-coder are included only if `whole`; existing answers do not need
        them.
        """

    @classmethod
    @abstractmethod
    def _made_of(cls, model: Model) -> Self:
        """The VAE made from a `Model`; raises what the constructor raises."""

    @isolated
    def save(
        self,
        folder: str | Path,
        *,
        decoder_arguments: Mapping[str, Any] | None = None,
        encoder_arguments: Mapping[str, Any] | None = None,
        amortised_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder of safetensors and JSON; either all of it or nothing.

        A network that is a stack of common layers (`nn.Sequential`) is written as data. For a class
        of your own only the weights are written: to load the model, make the network again and pass
        it. If you give its constructor arguments, they are saved with the name of the class,
        "module:Class", and `load_vae` can import it instead. Before anything is written, the model
        is rebuilt from what will be written and compared with the original.

            vae.save("faces")                                       # nn.Sequential(...)
            load_vae("faces")

            vae.save("faces")                                       # your own class Decoder
            load_vae("faces", decoder=Decoder(hidden=64))

            vae.save("faces", decoder_arguments={"hidden": 64})
            load_vae("faces", allow_code=True)                      # imports Decoder

        Args:
            folder: A new folder, or one with a saved model, which is replaced.
            decoder_arguments: Constructor arguments of the decoder, if its class can be imported.
            encoder_arguments: The same for the encoder.
            amortised_arguments: The same for the amortised cross-coder's network, if it is a class
                of your own; that of `crosscoding.amortise` is written as data.
        Raises:
            TypeError: JSON cannot hold the arguments.
            ValueError: The arguments do not make the network, or the folder cannot be written.

        Warns:
            UserWarning: A network is of your own class, and no arguments are given.

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
        arguments = {
            "decoder": decoder_arguments,
            "encoder": encoder_arguments,
            "amortised": amortised_arguments,
        }
        advice = _write(Path(folder), self._model(whole=True), arguments, self._of_saved)
        if advice:
            warnings.warn(advice, UserWarning, stacklevel=3)

    @isolated
    def to_parts(self) -> Contents | None:
        """The model as tensors and JSON, or None if its decoder or prior is the user's own code.

        Encoder and amortised cross-coder are left out, as existing answers do not need them.
        """
        if describe(self.own_decoder) is None or not is_data(self.prior):
            return None
        return self._model(whole=False).to_parts({})

    @classmethod
    @isolated
    def from_parts(cls, parts: Contents) -> Self:
        """The model that `to_parts` described.

        Raises:
            ModelFormatError: The description is malformed, or the weights do not fit it.
        """
        return cls._of_saved(Model.from_parts(parts, {}))

    @classmethod
    def _of_saved(cls, model: Model) -> Self:
        """The VAE of a model that was read from files; its faults become ModelFormatErrors."""
        if model.examples is None:
            shape = torch.Size([model.latent_dim])
            if model.prior is not None:
                check_prior_growth(model.prior)
            if isinstance(model.prior, DiscretePrior):
                shape = model.prior.input_shape
            elif model.prior is not None:
                shape = model.prior.decoder_input(torch.zeros(shape, device="meta")).shape
            check_growth(model.decoder, shape)
        try:
            vae = cls._made_of(model)
        except (ModelFormatError, NonFiniteError):
            raise
        except (TypeError, ValueError) as error:
            raise ModelFormatError(f"the model's parts do not fit: {error}") from error
        _check_recognised(vae._model(whole=True), model)
        return vae


def _write(
    folder: Path, model: Model, arguments: Arguments, rebuild: Callable[[Model], object]
) -> str:
    """Write a model to a folder, either all of it or nothing, after a trial of reading it.

    Args:
        folder: A new folder, or one with a saved model, which is replaced.
        model: The model, with some outputs of its networks.
        arguments: Constructor arguments for networks of the user's own classes.
        rebuild: Makes a VAE from a model; raises if that fails.
    Returns:
        Advice on how to load it where a network's class is not saved; "" otherwise.
    """
    networks = model.of_classes
    for name, network in networks.items():
        if isinstance(network, ScriptModule) and arguments.get(name) is not None:
            raise ValueError(
                f"expected no {name}_arguments for a scripted or traced {name}, which has no "
                f"constructor to call; save without them, and {_KEEP_SCRIPT.format(name)}"
            )
    parts = model.to_parts(arguments)
    given: dict[str, nn.Module] = {
        name: network
        for name, network in networks.items()
        if network is not None and arguments.get(name) is None and describe(network) is None
    }
    if model.prior is not None and not is_data(model.prior):
        given["prior"] = model.prior
    rebuild(Model.from_parts(parts, given, allow_code=True))
    write_folder(folder, KIND, parts)
    return _how_to_load(given) if given else ""


def _check_recognised(rebuilt: Model, saved: Model) -> None:
    """Raise ModelFormatError unless networks output what they did when they were saved.

    Args:
        rebuilt: The model made from what was read, with its present outputs.
        saved: What was read. Outputs that it lacks are not compared.
    """
    if saved.outputs is not None:
        _check_same("decoder", rebuilt.outputs, saved.outputs, TOLERANCE)
    if saved.encoder_outputs is not None:
        if rebuilt.encoder_outputs is None:
            raise ModelFormatError("expected an encoder, as outputs of one were saved, got none")
        _check_same("encoder", rebuilt.encoder_outputs, saved.encoder_outputs, _OF_ENCODINGS)


def some_outputs(outputs: Tensor) -> Tensor:
    """A few of the numbers of each row, on the CPU."""
    outputs = outputs.flatten(1).cpu()
    return outputs[:, :: -(-outputs.shape[1] // _NUM_OUTPUTS)]


def _check_same(name: str, here: Tensor | None, saved: Tensor, tolerance: float) -> None:
    if here is None or not same_output(here, saved, tolerance):
        article = "an" if name == "encoder" else "a"
        raise ModelFormatError(
            f"expected {article} {name} that outputs what it did when it was saved, got other "
            "values; its class, or the arguments that make it, are not the same"
        )


def _how_to_load(given: Mapping[str, nn.Module]) -> str:
    """How to load a folder that holds weights without their networks, as a warning."""
    for name, network in given.items():
        if isinstance(network, ScriptModule):
            return (
                f"only the weights of the {name} are saved, as it is scripted or traced; to load "
                f"the model, {_KEEP_SCRIPT.format(name)}"
            )
    kinds = {name: type(network).__name__ for name, network in given.items()}
    which = " and ".join(f"the {name}, {kind}" for name, kind in kinds.items())
    them = ", ".join(f"{name}={kind}(...)" for name, kind in kinds.items())
    return (
        f"only the weights of {which}, are saved, as your own class is code; to load the "
        f"model, call its constructor again with the same arguments: load_vae(folder, {them})"
    )
