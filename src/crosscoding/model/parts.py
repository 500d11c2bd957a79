"""What a VAE is made of, as tensors and JSON: in a folder of its own, or with a posterior.

| in the description | what |
| --- | --- |
| architecture, encoder | decoder and encoder: layers, or a class and, if known, its arguments |
| latent_dim, likelihood | as `VAE` takes them |
| card | what is known of a model of the zoo |

The tensors are weights and the likelihood's own, under `decoder.`, `encoder.` and `likelihood.`,
and `outputs` and `encoder_outputs`: a few numbers that the two output, to know them again by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.errors import ModelFormatError
from crosscoding.likelihoods import Likelihood
from crosscoding.model.plain_copy import plain_copy
from crosscoding.persistence import importable, layers
from crosscoding.persistence.folder import Contents, Folder, prefixed, under

KIND = "vae"
_FIELDS = {"decoder": "architecture", "encoder": "encoder"}  # of the description
_OUTPUTS = ("outputs", "encoder_outputs")
_NEEDED = {"architecture", "latent_dim", "likelihood"}
_KNOWN = {*_NEEDED, "encoder", "kind", "card", "checksums"}

Networks = Mapping[str, nn.Module | None]
Arguments = Mapping[str, Mapping[str, Any] | None]
"""For the constructors of classes of one's own: by "decoder" and "encoder", as networks are."""


@dataclass(frozen=True, eq=False)
class Model:
    """What a VAE is made of, named as `VAE` takes it, and some outputs of its networks."""

    decoder: nn.Module
    latent_dim: int
    likelihood: Likelihood
    encoder: nn.Module | None = None
    outputs: Tensor | None = None
    encoder_outputs: Tensor | None = None

    def to_parts(self, arguments: Arguments) -> Contents:
        """The model as tensors, on the CPU, and JSON.

        Raises:
            TypeError: Arguments are no plain data.
            ValueError: A network's class cannot be imported, or its state is not all tensors.
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
        for name in _OUTPUTS:
            if (outputs := getattr(self, name)) is not None:
                tensors[name] = outputs
        return {name: tensor.cpu() for name, tensor in tensors.items()}, description

    @staticmethod
    def from_parts(parts: Contents, given: Networks, *, allow_code: bool = False) -> "Model":
        """The model that `to_parts` described, its half-precision weights in float32.

        Args:
            parts: Tensors and description.
            given: Networks that the caller made; they are copied.
            allow_code: Whether classes may be imported by their names.
        Raises:
            ModelFormatError: The description is not one, or the tensors are not its own.
            ValueError: A class would have to be imported, or a network has to be given.
        """
        tensors, description = parts
        networks = _empty_networks(description, given, allow_code=allow_code)
        _check_shapes(networks, {name: tensor.shape for name, tensor in tensors.items()})
        return _filled(networks, parts)

    @staticmethod
    def read(path: Path, given: Networks, *, allow_code: bool) -> "Model":
        """The model in a folder, of which no tensor is read before all are known to fit.

        Args:
            path: The folder.
            given: As `from_parts` takes them.
            allow_code: The same; and errors are as there.
        """
        folder = Folder(path, KIND)
        networks = _empty_networks(folder.description, given, allow_code=allow_code)
        _check_shapes(networks, folder.shapes)
        return _filled(networks, folder.read())


def _network_to_parts(
    network: nn.Module, name: str, own: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Any]:
    """A network's weights, and how it is made: of layers, or by its class with its own arguments.

    Without arguments its class is there as a name alone, and the caller makes it to load it.
    """
    made = layers.describe(network) if own is None else None
    if made is not None:
        weights = layers.weights(network)
    else:
        weights, made = network.state_dict(), importable.refer(network, own)
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"expected tensors in the state_dict of {name}, got {type(value).__name__} for "
                f"{key!r}; make it an argument of the constructor"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(
                f"expected dense tensors of floats in the state_dict of {name}, got {key!r} sparse "
                "or quantised; make a plain tensor of it, as with .to_dense() or .dequantize()"
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
            networks[name] = plain_copy(network, name)
        elif isinstance(made, dict):
            made_new = importable.construct(made, name, allow_code=allow_code)
            networks[name] = plain_copy(made_new, name)
        elif made is not None:
            networks[name] = layers.build(made)
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
    if not 1 <= latent_dim <= layers.MOST_VALUES:
        raise ModelFormatError(
            f"expected latent_dim from 1 to {layers.MOST_VALUES}, got {latent_dim}"
        )


def _check_shapes(networks: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ModelFormatError unless tensors of these shapes are those that a model has."""
    for name, network in networks.items():
        layers.check_shapes(network, under(shapes, name))
    for key in sorted(shapes):
        field, most = key.partition(".")[0], layers.MOST_VALUES
        if field not in (*networks, "likelihood", *_OUTPUTS):
            raise ModelFormatError(f"expected tensors of a model, got {key[:80]!r} too")
        if field not in networks and math.prod(shapes[key]) > most:
            raise ModelFormatError(f"expected at most {most} numbers in {key[:80]!r}, got more")


def _filled(networks: Mapping[str, nn.Module], parts: Contents) -> Model:
    """The model of these networks, with their weights."""
    tensors, description = parts
    for name, network in networks.items():
        own = network.state_dict()
        full = {k: _widened(t, own.get(k)) for k, t in under(tensors, name).items()}
        layers.load_weights(network, full)
    rest = {name: _widened(tensor, None) for name, tensor in tensors.items()}
    return Model(
        decoder=networks["decoder"],
        latent_dim=description["latent_dim"],
        likelihood=Likelihood.from_parts((under(rest, "likelihood"), description["likelihood"])),
        encoder=networks.get("encoder"),
        outputs=rest.get("outputs"),
        encoder_outputs=rest.get("encoder_outputs"),
    )


def _widened(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A tensor in single precision if it is in half, and what is to be replaced by it is not."""
    is_half = tensor.dtype == torch.float16 and (own is None or own.dtype != torch.float16)
    return tensor.float() if is_half else tensor
