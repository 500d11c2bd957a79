"""Turns a trained family into a model of the zoo: weights in half precision, figures, card.

The encoder is left out, as no answer depends on it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from crosscoding.persistence.folder import write_folder
from crosscoding.zoo.training.families.as_vae import as_vae
from crosscoding.zoo.training.families.fit import FamilyTraining, importance_bound
from crosscoding.zoo.training.publishing import halved, round_to_half
from crosscoding.zoo.training.recipe import DIGITS

_NUM_WEIGHTS = 5000  # as in the families' papers
_NUM_DIGITS = 500  # whose bound takes half a minute to two minutes


def publish_family(training: FamilyTraining, test_data: Tensor, folder: Path) -> dict[str, Any]:
    """Write a trained family as a model of the zoo, with its card; returns the card.

    Args:
        training: Finished. Its networks are left with the published weights.
        test_data: Held-out digits, shape (N, 28, 28).
        folder: Where to write: a new folder, or one that holds a model.
    """
    recipe, family = training.recipe, training.family
    round_to_half(family)
    elbo, elbo_error = importance_bound(training, test_data, 1)
    bounded = test_data[:_NUM_DIGITS]
    bound, bound_error = importance_bound(training, bounded, _NUM_WEIGHTS)
    settings = ("epochs", "warm_epochs", "batch_size", "learning_rate", "seed", "bfloat16")
    card = {
        "family": recipe.about,
        **DIGITS,
        "recipe": {name: getattr(recipe, name) for name in settings},
        "training_cpu_seconds": round(training.seconds),
        "test_elbo_nats": round(elbo, 2),
        "test_elbo_standard_error": round(elbo_error, 2),
        "test_bound_nats": round(bound, 2),
        "test_bound_standard_error": round(bound_error, 2),
        "test_bound_weights": _NUM_WEIGHTS,
        "test_bound_digits": len(bounded),
    }
    vae = as_vae(family)
    round_to_half(vae.decoder)  # its layers may be products of the family's
    parts = vae.to_parts()
    assert parts is not None
    tensors = {name: halved(tensor) for name, tensor in parts[0].items()}
    write_folder(folder, "vae", (tensors, parts[1] | {"card": card}))
    return card
