"""What a VAE is made of, as tensors and JSON: in a folder of its own, or with a posterior.

| in the description | what |
| --- | --- |
| architecture, encoder | how decoder and encoder are made: layers, or a class and its arguments |
| latent_dim, likelihood | as `VAE` takes them |
| card | what is known of a model of the zoo |

The tensors are weights and the likelihood's own, under `decoder.`, `encoder.` and `likelihood.`,
and `outputs`: a few numbers that the decoder put out, to know it again by.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding import architecture, classes
from crosscoding.errors import ModelFormatError
from crosscoding.likelihoods import Likelihood
from crosscoding.storage import Folder, Parts, prefixed, under

KIND = "vae"
_FIELDS = {"decoder": "architecture", "encoder": "encoder"}  # of the description
_NEEDED = {"architecture", "latent_dim", "likelihood"}
_KNOWN = {*_NEEDED, "encoder", "kind", "card", "checksums"}

Networks = Mapping[str, nn.Module | None]
Arguments = Mapping[str, Mapping[str, Any] | None]
"""For the constructors of classes of one's own: by "decoder" and "encoder", as networks are."""


@dataclass(frozen=True, eq=False)
class Model:
    """What a VAE is made of, named as `VAE` takes it, and some outputs of its decoder."""

    decoder: nn.Module
    latent_dim: int
    likelihood: Likelihood
    encoder: nn.Module | None = None
    outputs: Tensor | None = None

    def to_parts(self, arguments: Arguments) -> Parts:
        """The model as tensors, on the CPU, and JSON.

        Raises:
            TypeError: Arguments are no plain data.
            ValueError: There is no saying how a network is made.
        """
        settings, likelihood = self.likelihood.to_parts()
        tensors = prefixed(settings, "likelihood")
        description = {"latent_dim": self.latent_dim, "likelihood": likelihood}
        for name, network in {"decoder": self.decoder, "encoder": self.encoder}.items():
            own = arguments.get(name)
            if network is not None:
                weights, description[_FIELDS[name]] = _network_to_parts(network, name, own)
                tensors |= prefixed(weights, name)
            elif own is not None:
                raise ValueError(f"expected no {name}_arguments for a model without {name}")
        if self.outputs is not None:
            tensors["outputs"] = self.outputs
        return {name: tensor.cpu() for name, tensor in tensors.items()}, description

    @staticmethod
    def from_parts(parts: Parts, *, allow_code: bool = False) -> "Model":
        """The model that `to_parts` described, its half-precision weights in float32.

        Args:
            parts: Tensors and description.
            allow_code: Whether classes may be imported by their names.
        Raises:
            ModelFormatError: The description is not one, or the tensors are not its own.
            ValueError: A class would have to be imported.
        """
        tensors, description = parts
        networks = _empty_networks(description, {}, allow_code=allow_code)
        _check_shapes(networks, {name: tensor.shape for name, tensor in tensors.items()})
        return _filled(networks, parts)

    @staticmethod
    def read(path: Path, given: Networks, *, allow_code: bool) -> "Model":
        """The model in a folder, of which no tensor is read before all are known to fit.

        Args:
            path: The folder.
            given: Networks that the caller made; they are copied.
            allow_code: As `from_parts` takes it; and errors are as there.
        """
        folder = Folder(path, KIND)
        networks = _empty_networks(folder.description, given, allow_code=allow_code)
        _check_shapes(networks, folder.shapes)
        return _filled(networks, folder.read())


def _network_to_parts(
    network: nn.Module, name: str, own: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Any]:
    """A network's weights, and how it is made: by its class with arguments of its own, if given."""
    if own is not None:
        weights, made = network.state_dict(), classes.refer(network, own)
    else:
        made = architecture.describe(network)
        if made is None:
            raise ValueError(
                f"expected {name} to be a stack of known layers, got "
                f"{architecture.strange_layer(network)}; to save a class of your own by its name, "
                f"give the arguments of its constructor: save(folder, {name}_arguments={{...}}); "
                "of a model that crosscoding.adapters made, save the library's own"
            )
        weights = architecture.weights(network)
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"expected tensors in the state_dict of {name}, got {type(value).__name__} for "
                f"{key!r}; make it an argument of the constructor"
            )
    return weights, made


def _empty_networks(
    description: Mapping[str, Any], given: Networks, *, allow_code: bool
) -> dict[str, nn.Module]:
    """Decoder and encoder, if there is one, with weights yet to be loaded."""
    _check_description(description)
    networks: dict[str, nn.Module] = {}
    for name, field in _FIELDS.items():
        network, made = given.get(name), description.get(field)
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"expected {name} to be a torch.nn.Module, got {network!r:.80}")
        if network is not None and made is None:
            raise ValueError(f"expected no {name}, as none was saved, got {type(network).__name__}")
        if network is not None:
            networks[name] = copy.deepcopy(network)
        elif isinstance(made, dict):
            networks[name] = classes.construct(made, allow_code=allow_code)
        elif made is not None:
            networks[name] = architecture.build(made)
    return networks


def _check_description(description: Mapping[str, Any]) -> None:
    """Raise ModelFormatError unless a description has what a model's has, and nothing else."""
    if not isinstance(description, dict):
        raise ModelFormatError(f"expected a model's description, got {description!r:.80}")
    for field in sorted(_NEEDED - description.keys()):
        raise ModelFormatError(f"the model's description is incomplete: it has no {field!r}")
    for field in sorted(description.keys() - _KNOWN):
        raise ModelFormatError(f"expected a model's description, got {field[:80]!r} in it too")
    latent_dim = description["latent_dim"]
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
        raise ModelFormatError(f"expected an int for latent_dim, got {latent_dim!r:.80}")
    if not 1 <= latent_dim <= architecture.MOST_VALUES:
        raise ModelFormatError(
            f"expected latent_dim from 1 to {architecture.MOST_VALUES}, got {latent_dim}"
        )


def _check_shapes(networks: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ModelFormatError unless tensors of these shapes are those that a model has."""
    for name, network in networks.items():
        architecture.check_shapes(network, under(shapes, name))
    for key in sorted(shapes):
        field, most = key.partition(".")[0], architecture.MOST_VALUES
        if field not in (*networks, "likelihood", "outputs"):
            raise ModelFormatError(f"expected tensors of a model, got {key[:80]!r} too")
        if field not in networks and math.prod(shapes[key]) > most:
            raise ModelFormatError(f"expected at most {most} numbers in {key[:80]!r}, got more")


def _filled(networks: Mapping[str, nn.Module], parts: Parts) -> Model:
    """The model of these networks, with their weights."""
    tensors, description = parts
    full = {k: t.float() if t.dtype == torch.float16 else t for k, t in tensors.items()}
    for name, network in networks.items():
        architecture.load_weights(network, under(full, name))
    return Model(
        decoder=networks["decoder"],
        latent_dim=description["latent_dim"],
        likelihood=Likelihood.from_parts((under(full, "likelihood"), description["likelihood"])),
        encoder=networks.get("encoder"),
        outputs=full.get("outputs"),
    )
