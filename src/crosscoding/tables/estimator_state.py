"""Pickles the models in estimators as tensors and JSON, not as objects of this package.

A model whose decoder has a class of the user's own is pickled as it is.
"""

from typing import Any

from crosscoding.model.vae import VAE

_FIELDS = ("model", "model_")


def to_state(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an estimator, with its models as `VAE.to_parts` gives them if it can."""
    found = dict(state)
    for name in _FIELDS:
        model = found.get(name)
        parts = model.to_parts() if isinstance(model, VAE) else None
        if parts is not None:
            found[name] = _Parts(parts)
    return found


def from_state(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes that `to_state` was given."""
    return {
        name: VAE.from_parts(value.parts) if isinstance(value, _Parts) else value
        for name, value in state.items()
    }


class _Parts:
    """Marks a model's parts."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts
