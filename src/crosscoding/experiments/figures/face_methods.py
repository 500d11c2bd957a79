"""What the face figures share: settings, methods, and how far their draws spread."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.crosscoders import Gaussian, Planar
from crosscoding.experiments.experiment import Context, Result
from crosscoding.experiments.problem import Problem, answer
from crosscoding.methods import HMC, Auto, Method, NaturalGradient, Variational

_NUM_SHOWN = 25


@dataclass(frozen=True)
class Settings:
    """How faces are asked for; one decoder evaluation takes milliseconds.

    Args:
        num_sets: Evidence sets of Figure 8.
        gvi_steps, nf_steps: Steps of Algorithm 1.
        natural_steps: Of natural gradients, which fit GVI's family.
        draws_a_step: Draws of each step.
        nf_layers: Planar maps.
        num_chains: Of HMC.
        num_warmup: Its steps before the draws.
        num_draws: Draws of z that each method leaves.
        max_decodes: Decoder evaluations that the cascade may have for an evidence set.
    """

    num_sets: int = 25
    gvi_steps: int = 5000
    nf_steps: int = 5000
    natural_steps: int = 400
    draws_a_step: int = 16
    nf_layers: int = 32
    num_chains: int = 4
    num_warmup: int = 2000
    num_draws: int = 200
    max_decodes: int = 100_000


QUICK = Settings(
    num_sets=2,
    gvi_steps=150,
    nf_steps=150,
    natural_steps=40,
    num_warmup=40,
    num_draws=100,
    max_decodes=16_000,
)


def compared_methods(settings: Settings) -> dict[str, Method]:
    """The methods by their labels. FCN and rejection are for low dimensions only.

    NG is GVI with another optimiser: where Algorithm 1 is cut short, it shows what the family can.
    """
    num, draws = settings.num_draws, settings.draws_a_step
    gaussian, flow = Gaussian(), Planar(settings.nf_layers)
    kept = max(num // settings.num_chains, 4)
    return {
        "GVI": Variational(gaussian, settings.gvi_steps, num_draws=draws, num_fresh=num),
        "NF": Variational(flow, settings.nf_steps, num_draws=draws, num_fresh=num),
        "HMC": HMC(settings.num_chains, settings.num_warmup, kept, target_acceptance=0.75),
        "NG": NaturalGradient(settings.natural_steps, num_fresh=num),
        "Auto": Auto(max_decodes=settings.max_decodes, num_draws=num),
    }


def answered(problem: Problem, settings: Settings, context: Context) -> dict[str, Result]:
    """The answers of all methods by their labels."""
    methods = compared_methods(settings).items()
    return {name: answer(context, problem, name, method) for name, method in methods}


def shown(name: str, result: Result, settings: Settings) -> dict[str, Tensor]:
    """Draws to look at, (25, num_sets, latent), by label; of HMC also those of one chain alone.

    Draws of chains come chain by chain, and are taken at even distances.
    """
    draws = result.tensors["draws"]
    found = {name: _evenly(draws)}
    if name == "HMC":
        found["HMC, 1 chain"] = _evenly(draws[: len(draws) // settings.num_chains])
    return found


def _evenly(draws: Tensor) -> Tensor:
    return draws[torch.linspace(0, len(draws) - 1, _NUM_SHOWN).long()]


def diversity(points: Tensor) -> Tensor:
    """Root of the mean squared distance of two different points, an element: (S, B, E) -> (B,).

    For points of variance v an element it is √(2 v).
    """
    return (2 * points.var(0).mean(-1)).sqrt()


def means_of(problem: Problem, z: Tensor) -> Tensor:
    """The decoder's means with the evidence on them, (S, num_sets, *data)."""
    with torch.no_grad():
        means = problem.vae.likelihood.mean(problem.vae.decode(z.to(problem.vae.device)))
    return torch.where(problem.mask, problem.truth, means).cpu()
