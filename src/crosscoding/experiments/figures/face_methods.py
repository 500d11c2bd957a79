"""The methods that the figures on faces compare, with their settings, and the spread of draws."""

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
    """Settings of the methods that are compared on faces; a decoder evaluation takes milliseconds.

    Args:
        num_sets: Evidence sets of Figure 8.
        gvi_steps, nf_steps: Steps of Algorithm 1.
        natural_steps: Steps of natural gradients, which fit GVI's family.
        draws_a_step: Draws per step of Algorithm 1.
        nf_layers: Planar maps of NF.
        num_chains: HMC's chains.
        num_warmup: HMC's warm-up steps.
        num_draws: Draws of z per answer.
        max_decodes: The cascade's budget of decoder evaluations per evidence set.
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
    """The methods by label, without FCN and rejection, which are for low dimensions only.

    NG is GVI with another optimiser. It shows what the family can do where Algorithm 1 is stopped
    early.
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
    """The answers of all methods, by label."""
    methods = compared_methods(settings).items()
    return {name: answer(context, problem, name, method) for name, method in methods}


def shown(name: str, result: Result, settings: Settings) -> dict[str, Tensor]:
    """25 draws to show, (25, num_sets, latent), by label; for HMC, also 25 of its first chain.

    Draws are stored chain by chain, so evenly spaced ones cover all chains.
    """
    draws = result.tensors["draws"]
    found = {name: _evenly(draws)}
    if name == "HMC":
        found["HMC, 1 chain"] = _evenly(draws[: len(draws) // settings.num_chains])
    return found


def _evenly(draws: Tensor) -> Tensor:
    return draws[torch.linspace(0, len(draws) - 1, _NUM_SHOWN).long()]


def diversity(points: Tensor) -> Tensor:
    """Root mean square distance of two different points per element: (S, B, E) -> (B,).

    If every element has variance v, this is √(2 v).
    """
    return (2 * points.var(0).mean(-1)).sqrt()


def means_of(problem: Problem, z: Tensor) -> Tensor:
    """The decoder's means, overlaid with the evidence, (S, num_sets, *data)."""
    with torch.no_grad():
        means = problem.vae.likelihood.mean(problem.vae.decode(z.to(problem.vae.device)))
    return torch.where(problem.mask, problem.truth, means).cpu()
