"""Models in folders: what `VAE.save` writes, and the test that what was read is the same model."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.jit import ScriptModule

from crosscoding.errors import ModelFormatError
from crosscoding.model.parts import KIND, Arguments, Model
from crosscoding.model.recognition import TOLERANCE, same_output
from crosscoding.persistence.folder import write_folder
from crosscoding.persistence.layers import describe

_KEEP_SCRIPT = (
    "pass the module that it was made from: load_vae(folder, {0}=...); or keep the file that "
    "torch.jit.save wrote, and pass {0}=torch.jit.load(file)"
)
_NUM_OUTPUTS = 64  # numbers kept of each output, to recognise a network by
_OF_ENCODINGS = 10 * TOLERANCE  # its inputs are draws, and one may differ on another processor


def write_model(
    folder: Path, model: Model, arguments: Arguments, rebuild: Callable[[Model], object]
) -> str:
    """Write a model to a folder, either all of it or nothing, after a trial of reading it.

    Args:
        folder: A new folder, or one with a saved model, which is replaced.
        model: With some outputs of its networks.
        arguments: For the constructors of networks of the user's own classes.
        rebuild: Makes a VAE of a model; raises if that fails.
    Returns:
        Advice on how to load it where a network's class is not saved; "" otherwise.
    """
    networks = {"decoder": model.decoder, "encoder": model.encoder}
    for name, network in networks.items():
        if isinstance(network, ScriptModule) and arguments.get(name) is not None:
            raise ValueError(
                f"expected no {name}_arguments for a scripted or traced {name}, which no "
                f"arguments make; save without them, and {_KEEP_SCRIPT.format(name)}"
            )
    parts = model.to_parts(arguments)
    given = {
        name: network
        for name, network in networks.items()
        if network is not None and arguments.get(name) is None and describe(network) is None
    }
    rebuild(Model.from_parts(parts, given, allow_code=True))
    write_folder(folder, KIND, parts)
    return _how_to_load(given) if given else ""


def check_recognised(rebuilt: Model, saved: Model) -> None:
    """Raise ModelFormatError unless networks output what they did when they were saved.

    Args:
        rebuilt: The model that was made of what was read, with its outputs now.
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
                f"only the weights of the {name} are saved, as it is a scripted or traced one; to "
                f"load the model, {_KEEP_SCRIPT.format(name)}"
            )
    kinds = {name: type(network).__name__ for name, network in given.items()}
    which = " and ".join(f"the {name}, {kind}" for name, kind in kinds.items())
    them = ", ".join(f"{name}={kind}(...)" for name, kind in kinds.items())
    return (
        f"only the weights of {which}, are saved, as your own class is code; to load the "
        f"model, make it again with the same arguments and pass it: load_vae(folder, {them})"
    )
