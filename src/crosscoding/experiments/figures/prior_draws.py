"""Figure 10: decoded means of prior draws of each VAE, to see whether the models are sane."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from crosscoding import plots, zoo
from crosscoding.experiments import faces
from crosscoding.experiments.experiment import Context, Experiment, Result, UnavailableError
from crosscoding.experiments.problem import digest
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from, normal

_DIGITS = ("mnist-2d", "mnist-20d")
_PER_ROW = 10


@dataclass(frozen=True)
class Settings:
    """Number of draws from each model's prior."""

    num_draws: int = 100


def subjects(context: Context) -> dict[str, str]:
    """Digests of the models of digits, and of the available models of faces."""
    return {name: digest(vae) for name, vae in _models(context).items()}


def measure(settings: Settings, context: Context) -> Result:
    """Decode prior draws of each model; measure how much their pixels vary between draws."""
    numbers, tensors = {}, {}
    for name, vae in _models(context).items():
        generator = generator_from(context.seed)
        like = torch.empty(0, dtype=vae.dtype, device=vae.device)
        z = normal((settings.num_draws, vae.latent_dim), generator=generator, like=like)
        with torch.no_grad():
            means = vae.likelihood.mean(vae.decode(z)).cpu()
        tensors[f"means.{name}"] = means
        numbers[name] = {
            "pixel_std_over_draws": means.std(0).mean().item(),
            "lowest": means.min().item(),
            "highest": means.max().item(),
        }
    return Result({"models": numbers}, tensors)


def draw(result: Result) -> dict[str, Figure]:
    """One sheet of pictures per model."""
    figures = {}
    for name in result.numbers["models"]:
        means = result.tensors[f"means.{name}"].numpy()
        low = -1.0 if means.ndim == 4 else 0.0  # faces are in [-1, 1]
        pictures = [plots.colour(mean, low=low) for mean in means]
        rows = [pictures[i : i + _PER_ROW] for i in range(0, len(pictures), _PER_ROW)]
        figures[f"fig10-{name}"] = plots.sheet_figure(
            rows, f"{name}: {len(pictures)} draws from the prior, decoded to their means"
        )
    return figures


def _models(context: Context) -> dict[str, VAE]:
    found = {name: zoo.load(name) for name in _DIGITS}
    with suppress(UnavailableError):  # without faces, the digits alone are still worth drawing
        found |= {each.name: faces.load(each, context) for each in faces.models(context)}
    return found


FIG10 = Experiment(
    name="fig10",
    title="A hundred draws from the prior of each VAE",
    wanted="the VAEs are sane",
    full=Settings(),
    quick=Settings(),
    measure=measure,
    draw=draw,
    subjects=subjects,
)
