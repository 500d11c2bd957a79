"""`crosscoding train`: trains a model of the zoo from its recipe and a data folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crosscoding.cli.console import out as console
from crosscoding.cli.console import output_folder, print_json
from crosscoding.cli.pixels import Pixels
from crosscoding.errors import unknown_name
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE
from crosscoding.plots import sheet, write_png
from crosscoding.random import generator_from, normal
from crosscoding.zoo.training.fit import Training, train
from crosscoding.zoo.training.publishing import publish
from crosscoding.zoo.training.recipe import RECIPES

_SIDE = 10  # pictures per row of a sheet


def run(name: str, data: Path, out: Path, *, as_json: bool) -> None:
    """Train, evaluate on held-out data, and write the model, its card and pictures."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    recipe = RECIPES[name]
    known, held_out = recipe.load(data)
    folder = output_folder(out)
    training = train(recipe, known, folder / f"{name}-checkpoint")
    card = publish(training, known, held_out, folder / name)
    _write_pictures(training, load_vae(folder / name), held_out, folder, name)
    if as_json:
        print_json(card)
    else:
        elbo, error = card["test_elbo_nats"], card["test_elbo_standard_error"]
        console.print(f"test ELBO {elbo} ± {error} nats", markup=False)
        console.print(
            f"wrote the model to {folder / name}, and prior draws and reconstructions to "
            f"{name}-prior.png and {name}-reconstructions.png beside it",
            markup=False,
        )


@torch.no_grad()
def _write_pictures(
    training: Training, vae: VAE, held_out: Tensor, folder: Path, name: str
) -> None:
    """Write decoded means of 100 prior draws, and 50 held-out data above their reconstructions."""
    noise = normal((_SIDE**2, vae.latent_dim), generator=generator_from(0), like=torch.empty(0))
    data = training.recipe.prepared(held_out[: _SIDE**2 // 2])
    z = training.encoder(data)[:, : vae.latent_dim]
    prior, means = (vae.likelihood.mean(vae.decode(points)) for points in (noise, z))
    pairs = zip(data.split(_SIDE), means.split(_SIDE), strict=True)
    rows = [row for pair in pairs for row in pair]
    _write_sheet(vae, prior.split(_SIDE), folder / f"{name}-prior.png")
    _write_sheet(vae, rows, folder / f"{name}-reconstructions.png")


def _write_sheet(vae: VAE, rows: Sequence[Tensor], path: Path) -> None:
    pixels = Pixels.of(vae)
    write_png(sheet([[pixels.picture(datum) for datum in row] for row in rows]), path, magnify=2)
