"""Networks of users' own classes, by name: imported only if the caller allows code to run.

A description is {"class": "module:Class", "arguments": {...}} with the constructor's arguments, or
null in their place if the caller has to make the network.
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
    """The name of a network's class, with the constructor's arguments if any are given.

    Raises:
        TypeError: The arguments are not a dict that JSON can hold.
        ValueError: The class cannot be imported.
    """
    kind = type(network)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if arguments is None:
        return {"class": name, "arguments": None}
    if kind.__module__ == "__main__" or "<locals>" in name:
        raise ValueError(
            f"expected a class that can be imported, got {name}; move it from the script, notebook "
            "or function that defines it to a module of its own, or omit its arguments and make "
            "the network yourself when you load the model"
        )
    try:
        plain = json.loads(json.dumps(dict(arguments), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected the arguments of {name} as a dict of numbers, strings and lists of them, "
            f"got {arguments!r}: {error}"
        ) from error
    return {"class": name, "arguments": plain}


def construct(reference: Reference, name: str, *, allow_code: bool) -> nn.Module:
    """The network that a reference describes, before its weights are loaded.

    Args:
        reference: From `refer`.
        name: What messages call the network, such as "decoder".
        allow_code: Whether its class may be imported.
    Raises:
        ValueError: Code may not run, or the caller has to make the network; nothing is imported.
        ModelFormatError: The reference is malformed, or its class cannot be imported or called.
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
            f"expected {name}=..., as the folder holds the {name}'s weights but not its code; make "
            f"an instance of {kind[:80]!r} and pass it: load_vae(folder, {name}=...)"
        )
    module, _, path = kind.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *path.split(".")]):
        raise ModelFormatError(f"expected the name of a class as module:Class, got {kind[:80]!r}")
    if not allow_code:
        raise ValueError(
            f"expected allow_code=True, as the network is of the class {kind}, and importing it "
            "runs its code; if you trust it, call load_vae(folder, allow_code=True), otherwise "
            f"make the network yourself and pass it as {name}=..."
        )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are replaced
        return _imported(kind, arguments)


def _imported(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Import a class and make its network."""
    module, _, path = name.partition(":")
    try:
        kind = attrgetter(path)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ModelFormatError(
            f"cannot import {name}: {error}; put its module where Python can find it"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ModelFormatError(f"expected {name} to be a class of torch.nn.Module, got {kind}")
    try:
        return kind(**arguments)
    except Exception as error:  # a user's class may raise anything
        raise ModelFormatError(
            f"cannot make {name} with {reprlib.repr(arguments)}: {first_line(error)}"
        ) from error
