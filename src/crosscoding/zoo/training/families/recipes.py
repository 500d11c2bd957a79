"""The recipes of the families: networks and all that determines the weights."""

from collections.abc import Callable
from dataclasses import dataclass

from crosscoding.zoo.training.families.base import Family
from crosscoding.zoo.training.families.continuous import ImportanceWeighted, Ladder, Plain
from crosscoding.zoo.training.families.discrete import BinaryPairs, Codes
from crosscoding.zoo.training.families.posteriors import AutoregressiveFlow, Diagonal, PlanarFlow

_WIDTHS = (400,)  # of mnist-20d, so that the families can be compared with it


@dataclass(frozen=True, kw_only=True)
class FamilyRecipe:
    """A member of a family and all that determines its weights.

    Args:
        about: What it is, for its card.
        make: Makes the networks, with any weights.
        epochs: Passes over the training data.
        warm_epochs: Epochs in which the weight of the divergence rises from 0 to 1.
        batch_size: Data per step.
        learning_rate: Adam's initial rate; it decays to zero along half a cosine.
        seed: Of the initial weights, the order of the data and the draws of z.
        bfloat16: Whether matrix products are trained in bfloat16.
    """

    about: str
    make: Callable[[], Family]
    epochs: int
    warm_epochs: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    bfloat16: bool = True


FAMILIES: dict[str, FamilyRecipe] = {
    "mnist-iwae": FamilyRecipe(
        about="importance-weighted autoencoder, k = 50 (Burda, Grosse & Salakhutdinov 2016)",
        make=lambda: ImportanceWeighted(Diagonal(20, _WIDTHS), _WIDTHS, 50, 4),
        epochs=24,
    ),
    "mnist-planar": FamilyRecipe(
        about="VAE trained with a posterior of 16 planar maps (Rezende & Mohamed 2015)",
        make=lambda: Plain(PlanarFlow(20, _WIDTHS, num_maps=16), _WIDTHS),
        epochs=80,
    ),
    "mnist-iaf": FamilyRecipe(
        about="VAE trained with a posterior of 4 inverse autoregressive maps (Kingma et al. 2016)",
        make=lambda: Plain(
            AutoregressiveFlow(20, _WIDTHS, num_maps=4, width=160, context=80), _WIDTHS
        ),
        epochs=100,
    ),
    "mnist-ladder": FamilyRecipe(
        about="ladder VAE with levels of 8, 12 and 20 (Sønderby et al. 2016)",
        make=lambda: Ladder((20, 12, 8), (400, 200, 100), _WIDTHS),
        epochs=100,
        warm_epochs=10,
    ),
    "mnist-dvae": FamilyRecipe(
        about="discrete VAE, 64 binary latents, pairs between groups of 12 and 52 (Rolfe 2017)",
        make=lambda: BinaryPairs((12, 52), (400,), (400,), num_draws=4),
        epochs=100,
    ),
    "mnist-vqvae": FamilyRecipe(
        about="VQ-VAE, 16 places of 32 codes, autoregressive prior (van den Oord et al. 2017)",
        make=lambda: Codes(16, 32, 8, (400,), (400,), prior_width=256),
        epochs=60,
    ),
}
"""Recipes, by the name of the model in the zoo."""
