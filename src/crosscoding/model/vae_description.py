"""What is shown of a model: parts, cost, the columns of its table, pictures of its prior."""

from typing import Any

import torch

from crosscoding import covariates
from crosscoding.display import Cell, Description, Displayed, Strip, shown_number
from crosscoding.errors import counted
from crosscoding.model.bound import bound_for
from crosscoding.priors import Normal
from crosscoding.random import generator_from

_PICTURED = 2e9  # multiply-adds for pictures: about a tenth of a second
_MOST_TEXT = 200  # characters of a likelihood
_PICTURES, _PIXELS, _MOST_PIXELS = 10, 64, 128


class Shown(Displayed):
    """The form of a `VAE` for terminals and notebooks."""

    def _described(self, *, pictures: bool) -> Description:
        return described(self, pictures=pictures)


def described(vae: Any, *, pictures: bool) -> Description:
    """What is shown of a model."""
    network, prior = vae.own_decoder, vae.prior
    parameters = sum(weight.numel() for weight in network.parameters())
    words = "N(0, I)" if isinstance(prior, Normal) else type(prior).__name__
    facts: list[tuple[str, Cell]] = [
        ("decoder", f"{type(network).__name__}, {counted_number(parameters)} parameters"),
        ("z", f"{counted(vae.latent_dim, 'dimension')}, prior {words}"),
        ("data", _data_words(vae)),
        ("one decode", f"{counted_number(int(vae.operations))} multiply-adds"),
        ("numbers", f"{str(vae.dtype).removeprefix('torch.')} on {vae.device}"),
    ]
    if vae.encoder is not None:
        facts.append(("encoder", type(vae.encoder).__name__))
    if vae.amortised is not None:
        facts.append(("amortised", f"{type(vae.amortised.network).__name__}, a proposal for Auto"))
    if vae.examples is not None:
        shapes = [str(tuple(own.shape[1:])) for own in covariates.tensors(vae.examples)]
        facts.append(("covariates", f"{', '.join(shapes)} a query"))
    grids = () if vae.table is None else vae.table._described(pictures=False).grids
    strips = _strip(vae) if pictures and vae.table is None else ()
    return Description("Variational autoencoder", tuple(facts), grids, strips)


def _data_words(vae: Any) -> str:
    """What the data are, and the likelihood unless it is that of a table's columns."""
    if vae.table is not None:
        return f"rows of {counted(vae.data_size, 'column')}"
    likelihood = str(vae.likelihood)
    if len(likelihood) > _MOST_TEXT:
        likelihood = f"{likelihood[:_MOST_TEXT]}…"
    return f"{tuple(vae.data_shape)}, {likelihood}"


def counted_number(num: int) -> str:
    """A number in words, with three digits if it is a million or more."""
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if num >= size:
            return f"{shown_number(num / size)} {unit}"
    return f"{num:,}"


@torch.no_grad()
def _strip(vae: Any) -> tuple[Strip, ...]:
    """E[t|z] at draws from the prior, if data are grey or colour pictures."""
    from crosscoding.plots import colour, images_of, is_picture, png_bytes, sheet, value_range

    shape = tuple(vae.data_shape)
    if not is_picture(shape) or vae.operations * _PICTURES > _PICTURED:
        return ()
    means = _prior_means(vae).reshape(_PICTURES, *shape).double().cpu().numpy()
    images = images_of(means, shape)
    if len(images) > 1:
        return ()
    pictures, limits = images[""], value_range(means)
    thin = -(-max(pictures.shape[-2:]) // _MOST_PIXELS)
    row = [colour(datum[:, ::thin, ::thin], *limits) for datum in pictures]
    canvas = sheet([row])
    magnify = max(_PIXELS // row[0].shape[1], 1)
    words = f"E[t|z] at {_PICTURES} draws of z from the prior"
    return (Strip(png_bytes(canvas), words, magnify * canvas.shape[1]),)


def _prior_means(vae: Any) -> torch.Tensor:
    """Shape (pictures, E)."""
    given = covariates.tiled(vae.examples, _PICTURES)
    bound = bound_for(vae, given, torch.Size((_PICTURES,)))
    return bound.flat_likelihood.mean(bound._drawn(_PICTURES, generator_from(0))[1])
