"""A VAE as tensors and JSON, for a folder of its own or as part of a saved posterior.

| in the description | meaning |
| --- | --- |
| architecture, encoder | decoder and encoder: layers, or a class and, if known, its arguments |
| latent_dim, likelihood | as `VAE` takes them |
| amortised | the network that proposes z: its class as above, or a `MaskedNetwork` as data |
| crosscoder | the family of its proposals, and the record of its training |
| prior | its class with settings and networks, if it is not N(0, I); `priors.files` |
| given | how examples of covariates are nested, if the decoder takes any |
| table | its columns, if data are rows of a table |
| card | facts about a model of the zoo |

The tensors are weights, the likelihood's settings and examples of covariates, under `decoder.`,
`encoder.`, `amortised.`, `prior.`, `likelihood.` and `given.`, and a few numbers of output by which
to recognise the networks, `outputs` and `encoder_outputs`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from crosscoding.columns import Table
from crosscoding.covariates import Covariates, from_parts, to_parts
from crosscoding.crosscoders import Crosscoder
from crosscoding.crosscoders.base import Fitted, family_to_json
from crosscoding.errors import ModelFormatError
from crosscoding.likelihoods import Likelihood
from crosscoding.model.amortised_record import Record
from crosscoding.model.masked_network import MaskedNetwork
from crosscoding.model.plain_copy import plain_copy
from crosscoding.persistence import importable, layers
from crosscoding.persistence.folder import Contents, Folder, prefixed, under
from crosscoding.priors import Prior
from crosscoding.priors.files import empty_prior, prior_to_parts

KIND = "vae"
_FIELDS = {  # of the description
    "decoder": "architecture",
    "encoder": "encoder",
    "prior": "prior",
    "amortised": "amortised",
}
_OUTPUTS = ("outputs", "encoder_outputs")
_NEEDED = {"architecture", "latent_dim", "likelihood"}
_KNOWN = {
    *_NEEDED,
    "encoder",
    "prior",
    "amortised",
    "crosscoder",
    "given",
    "table",
    "kind",
    "card",
    "checksums",
}

Networks = Mapping[str, nn.Module | None]
Arguments = Mapping[str, Mapping[str, Any] | None]
"""Constructor arguments for users' own classes, by "decoder", "encoder" and "amortised"."""


@dataclass(frozen=True, eq=False)
class Model:
    """The arguments that make a `VAE`, and some outputs of its networks."""

    decoder: nn.Module
    latent_dim: int
    likelihood: Likelihood
    encoder: nn.Module | None = None
    prior: Prior | None = None
    examples: Covariates = None
    table: Table | None = None
    outputs: Tensor | None = None
    encoder_outputs: Tensor | None = None
    network: nn.Module | None = None
    crosscoder: Crosscoder | None = None
    record: Record | None = None

    @property
    def of_classes(self) -> dict[str, nn.Module | None]:
        """The networks that may be of the user's own classes, by name."""
        return {"decoder": self.decoder, "encoder": self.encoder, "amortised": self.network}

    def to_parts(self, arguments: Arguments) -> Contents:
        """The model as tensors, on the CPU, and JSON.

        Raises:
            TypeError: JSON cannot hold the arguments.
            ValueError: A network's class cannot be imported, or its state is not all tensors.
        """
        settings, likelihood = self.likelihood.to_parts()
        tensors = prefixed(settings, "likelihood")
        description = {"latent_dim": self.latent_dim, "likelihood": likelihood}
        if self.examples is not None:
            own_tensors, description["given"] = to_parts(self.examples)
            tensors |= prefixed(own_tensors, "given")
        if self.prior is not None:
            weights, description["prior"] = prior_to_parts(self.prior)
            tensors |= prefixed(weights, "prior")
        if self.table is not None:
            description["table"] = self.table.to_json()
        if self.crosscoder is not None:
            record = None if self.record is None else self.record.to_json()
            description["crosscoder"] = family_to_json(self.crosscoder) | {"record": record}
        for name, network in self.of_classes.items():
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
            ModelFormatError: The description is malformed, or the tensors do not fit it.
            ValueError: A class would have to be imported, or a network has to be passed.
        """
        tensors, description = parts
        networks = _empty_networks(description, given, allow_code=allow_code)
        _check_shapes(networks, {name: tensor.shape for name, tensor in tensors.items()})
        return _filled(networks, parts)

    @staticmethod
    def read(path: Path, given: Networks, *, allow_code: bool) -> "Model":
        """The model in a folder; no tensor is read before all shapes are known to fit.

        Args:
            path: The folder.
            given: As in `from_parts`.
            allow_code: As in `from_parts`; errors are the same, too.
        """
        folder = Folder(path, KIND)
        networks = _empty_networks(folder.description, given, allow_code=allow_code)
        _check_shapes(networks, folder.shapes)
        return _filled(networks, folder.read())


def describe(network: nn.Module) -> Any:
    """A network as data, or None if its code is not known."""
    if type(network) is MaskedNetwork:
        return network.describe()
    return layers.describe(network)


def _network_to_parts(
    network: nn.Module, name: str, own: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Any]:
    """A network's weights and its description: layers, or its class with arguments.

    Without arguments only the name of the class is kept, and the caller who loads it must make the
    network.
    """
    made = describe(network) if own is None else None
    if made is not None:
        is_stack = isinstance(made, list)
        weights = layers.weights(network) if is_stack else network.state_dict()
    else:
        weights, made = network.state_dict(), importable.refer(network, own)
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"expected tensors in the state_dict of {name}, got {type(value).__name__} for "
                f"{key!r}; make it a constructor argument instead"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(
                f"expected dense tensors of floats in the state_dict of {name}, got {key!r} sparse "
                "or quantised; convert it with .to_dense() or .dequantize()"
            )
    return weights, made


def _empty_networks(
    description: Mapping[str, Any], given: Networks, *, allow_code: bool
) -> dict[str, nn.Module]:
    """Decoder and, if there are any, encoder and prior, before their weights are loaded."""
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
        elif name == "prior" and made is not None and "class" not in made:
            networks[name] = empty_prior(made)
        elif name == "amortised" and isinstance(made, dict) and "class" not in made:
            networks[name] = MaskedNetwork.empty(made)
        elif isinstance(made, dict):
            made_new = importable.construct(made, name, allow_code=allow_code)
            networks[name] = plain_copy(made_new, name)
        elif made is not None:
            networks[name] = layers.build(made)
    return networks


def _check_description(description: Mapping[str, Any]) -> None:
    """Raise ModelFormatError unless a description has exactly the fields of a model."""
    if not isinstance(description, dict):
        raise ModelFormatError(f"expected a model's description, got {description!r:.80}")
    for field in sorted(_NEEDED - description.keys()):
        raise ModelFormatError(f"the model's description is incomplete: it has no {field!r}")
    for field in sorted(description.keys() - _KNOWN):
        raise ModelFormatError(
            f"expected a model's description, got the unknown field {field[:80]!r} in it"
        )
    if ("amortised" in description) != ("crosscoder" in description):
        raise ModelFormatError("expected both or none of 'amortised' and 'crosscoder', got one")
    latent_dim = description["latent_dim"]
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
        raise ModelFormatError(f"expected an int for latent_dim, got {latent_dim!r:.80}")
    if not 1 <= latent_dim <= layers.MOST_VALUES:
        raise ModelFormatError(
            f"expected latent_dim from 1 to {layers.MOST_VALUES}, got {latent_dim}"
        )


def _check_shapes(networks: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ModelFormatError unless the shapes are those of the model's tensors."""
    for name, network in networks.items():
        layers.check_shapes(network, under(shapes, name))
    for key in sorted(shapes):
        field, most = key.partition(".")[0], layers.MOST_VALUES
        if field not in (*networks, "likelihood", "given", *_OUTPUTS):
            raise ModelFormatError(f"expected tensors of a model, got the unknown {key[:80]!r}")
        if field not in networks and math.prod(shapes[key]) > most:
            raise ModelFormatError(f"expected at most {most} numbers in {key[:80]!r}, got more")


def _filled(networks: Mapping[str, nn.Module], parts: Contents) -> Model:
    """The model made of these networks, with their weights loaded."""
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
        prior=cast("Prior | None", networks.get("prior")),
        examples=from_parts(under(tensors, "given"), description.get("given")),
        table=None if (table := description.get("table")) is None else Table.from_json(table),
        outputs=rest.get("outputs"),
        encoder_outputs=rest.get("encoder_outputs"),
        network=networks.get("amortised"),
        crosscoder=_crosscoder(description.get("crosscoder")),
        record=_record(description.get("crosscoder")),
    )


def _crosscoder(description: Any) -> Crosscoder | None:
    """The family of an amortised cross-coder, or None if there is none."""
    if description is None:
        return None
    try:
        return Fitted.family(description["name"], description["settings"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelFormatError(f"expected a known cross-coder, got {description!r:.80}") from error


def _record(description: Any) -> Record | None:
    """The record of an amortised cross-coder's training, or None if there is none."""
    entry = None if description is None else description.get("record")
    return None if entry is None else Record.from_json(entry)


def _widened(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A half-precision tensor in single precision, unless it replaces a half-precision one."""
    is_half = tensor.dtype == torch.float16 and (own is None or own.dtype != torch.float16)
    return tensor.float() if is_half else tensor
