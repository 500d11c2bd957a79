"""`crosscoding train`: trains a model of the zoo from its recipe and a data folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoding.cli.console import out as console
from crosscoding.cli.console import output_folder, print_json
from crosscoding.errors import unknown_name
from crosscoding.formats.pixels import Pixels
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE
from crosscoding.plots import sheet, write_png
from crosscoding.random import generator_from
from crosscoding.zoo.training.data import load_digits
from crosscoding.zoo.training.families.fit import train_family
from crosscoding.zoo.training.families.publishing import publish_family
from crosscoding.zoo.training.families.recipes import FAMILIES
from crosscoding.zoo.training.fit import Training, train
from crosscoding.zoo.training.publishing import publish
from crosscoding.zoo.training.recipe import RECIPES

_SIDE = 10  # pictures per row of a sheet


def run(name: str, data: Path, out: Path, *, as_json: bool) -> None:
    """Train, evaluate on held-out data, and write the model, its card and pictures."""
    if name not in RECIPES and name not in FAMILIES:
        raise unknown_name("recipe", name, [*RECIPES, *FAMILIES])
    card, pictures = (_family if name in FAMILIES else _plain)(name, data, out)
    if as_json:
        print_json(card)
        return
    console.print(
        f"test ELBO {card['test_elbo_nats']} ± {card['test_elbo_standard_error']} nats",
        markup=False,
    )
    console.print(f"wrote the model to {out / name}, and beside it {pictures}", markup=False)


def _plain(name: str, data: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Train a plain VAE; returns its card, and which pictures it wrote."""
    recipe = RECIPES[name]
    known, held_out = recipe.load(data)
    folder = output_folder(out)
    training = train(recipe, known, folder / f"{name}-checkpoint")
    card = publish(training, known, held_out, folder / name)
    vae = load_vae(folder / name)
    _write_prior_draws(vae, folder / f"{name}-prior.png")
    _write_reconstructions(training, vae, held_out, folder / f"{name}-reconstructions.png")
    pictures = f"prior draws and reconstructions, {name}-prior.png and {name}-reconstructions.png"
    return card, pictures


def _family(name: str, data: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Train a VAE of one of the families, which have no encoder; returns the same."""
    known, held_out = load_digits(data, "train"), load_digits(data, "test")
    folder = output_folder(out)
    training = train_family(FAMILIES[name], known, folder / f"{name}-checkpoint")
    card = publish_family(training, held_out, folder / name)
    _write_prior_draws(load_vae(folder / name), folder / f"{name}-prior.png")
    return card, f"prior draws, {name}-prior.png"


@torch.no_grad()
def _write_prior_draws(vae: VAE, path: Path) -> None:
    """Write decoded means of 100 prior draws."""
    like = torch.empty(0)
    z = vae.prior.sample(_SIDE**2, generator=generator_from(0), like=like)
    _write_sheet(vae, vae.likelihood.mean(vae.decode(z)).split(_SIDE), path)


@torch.no_grad()
def _write_reconstructions(training: Training, vae: VAE, held_out: Tensor, path: Path) -> None:
    """Write 50 held-out data above their reconstructions."""
    data = training.recipe.prepared(held_out[: _SIDE**2 // 2])
    means = vae.likelihood.mean(vae.decode(training.encoder(data)[:, : vae.latent_dim]))
    pairs = zip(data.split(_SIDE), means.split(_SIDE), strict=True)
    _write_sheet(vae, [row for pair in pairs for row in pair], path)


def _write_sheet(vae: VAE, rows: Sequence[Tensor], path: Path) -> None:
    pixels = Pixels.of(vae)
    write_png(sheet([[pixels.picture(datum) for datum in row] for row in rows]), path, magnify=2)
