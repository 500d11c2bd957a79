"""Priors as data: class, settings and networks in JSON, and tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crosscoding.errors import ModelFormatError, first_line
from crosscoding.persistence import importable, layers
from crosscoding.priors.base import Prior

_FIELDS = {"name", "settings", "networks"}


def prior_to_parts(prior: Prior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A prior's tensors and its description: of a prior with user code, only the class's name.

    Raises:
        ValueError: The prior has a state that is not all tensors.
    """
    settings = prior.settings()
    networks = {name: layers.describe(own) for name, own in prior.networks().items()}
    known = type(prior).__module__.startswith("crosscoding.priors.")
    if settings is None or not known or None in networks.values():
        return dict(prior.state_dict()), importable.refer(prior, None)
    name = type(prior).__name__
    return dict(prior.state_dict()), {"name": name, "settings": settings, "networks": networks}


def is_data(prior: Prior) -> bool:
    """Whether a prior is saved as data, so that loading it needs none of the user's code."""
    return "name" in prior_to_parts(prior)[1]


def empty_prior(description: Mapping[str, Any]) -> Prior:
    """The prior of a description, before its tensors are loaded.

    Raises:
        ModelFormatError: The description is malformed.
    """
    kinds = {kind.__name__: kind for kind in _subclasses(Prior)}
    if not isinstance(description, dict) or description.keys() != _FIELDS:
        raise ModelFormatError(f"expected a prior's description, got {description!r:.80}")
    try:
        networks = {name: layers.build(own) for name, own in dict(description["networks"]).items()}
        with torch.no_grad():
            return kinds[description["name"]].empty(dict(description["settings"]), networks).eval()
    except ModelFormatError:
        raise
    except Exception as error:  # settings from a file may be anything
        raise ModelFormatError(
            f"expected a known prior with its settings, got {description!r:.80}: "
            f"{first_line(error)}"
        ) from error


def _subclasses(kind: type[Prior]) -> list[type[Prior]]:
    """All subclasses of a class, direct or not, that the package defines."""
    below = [k for k in kind.__subclasses__() if k.__module__.startswith("crosscoding.priors.")]
    return below + [deeper for child in below for deeper in _subclasses(child)]
