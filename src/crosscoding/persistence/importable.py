"""Networks of classes of one's own, by name: imported only where the caller allows code to run.

A description is {"class": "module:Class", "arguments": {...}}, the arguments those of the
constructor; or null, of a network that the caller has to make.
"""

import importlib
import json
import reprlib
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from crosscoding.errors import ModelFormatError, first_line

Reference = dict[str, Any]


def refer(network: nn.Module, arguments: Mapping[str, Any] | None) -> Reference:
    """The class of a network by name, with arguments for its constructor if there are any.

    Raises:
        TypeError: The arguments are not a dict of what JSON has.
        ValueError: The class is one that cannot be imported.
    """
    kind = type(network)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if arguments is None:
        return {"class": name, "arguments": None}
    if kind.__module__ == "__main__" or "<locals>" in name:
        raise ValueError(
            f"expected a class that can be imported, got {name}; move it from the script, notebook "
            "or function that defines it to a module of its own, or leave its arguments out and "
            "make it yourself when you load the model"
        )
    try:
        plain = json.loads(json.dumps(dict(arguments), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected the arguments of {name} as a dict of numbers, strings, lists and the like, "
            f"got {arguments!r}: {error}"
        ) from error
    return {"class": name, "arguments": plain}


def construct(reference: Reference, name: str, *, allow_code: bool) -> nn.Module:
    """The network of a reference, with weights yet to be loaded.

    Args:
        reference: From `refer`.
        name: What messages call the network, such as "decoder".
        allow_code: Whether its class may be imported.
    Raises:
        ValueError: Code may not run, or the caller has to make the network; nothing is imported.
        ModelFormatError: The reference is none, its class is not there, or cannot be made so.
    """
    kind, arguments = reference.get("class"), reference.get("arguments")
    if not (
        isinstance(kind, str)
        and isinstance(arguments, dict | None)
        and reference.keys() == {"class", "arguments"}
    ):
        raise ModelFormatError(f"expected a class and its arguments, got {reprlib.repr(reference)}")
    if arguments is None:
        raise ValueError(
            f"expected {name}=..., as the folder holds the {name}'s weights, not how it is made; "
            f"make one like it, of {kind[:80]!r}, and pass it: load_vae(folder, {name}=...)"
        )
    module, _, path = kind.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *path.split(".")]):
        raise ModelFormatError(f"expected the name of a class as module:Class, got {kind[:80]!r}")
    if not allow_code:
        raise ValueError(
            f"expected allow_code=True, as the network is of the class {kind}, and importing it "
            "runs its code; if you trust that, load_vae(folder, allow_code=True), otherwise make "
            f"the network yourself and pass it as {name}=..."
        )
    with torch.random.fork_rng(devices=[]):  # new weights are drawn, and replaced
        return _imported(kind, arguments)


def _imported(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network of a class, which is imported and called."""
    module, _, path = name.partition(":")
    try:
        kind = attrgetter(path)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ModelFormatError(
            f"cannot import {name}: {error}; put its module where Python finds it"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ModelFormatError(f"expected {name} to be a class of torch.nn.Module, got {kind}")
    try:
        return kind(**arguments)
    except Exception as error:  # whatever may happen in a class of the user's
        raise ModelFormatError(
            f"cannot make {name} of {reprlib.repr(arguments)}: {first_line(error)}"
        ) from error
