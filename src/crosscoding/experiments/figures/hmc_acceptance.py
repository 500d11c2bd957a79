"""Figure 5: HMC's acceptance rate by step size, in many chains without adaptation.

All step sizes run side by side, as queries of one batch. A chain's acceptance rate is its mean
acceptance probability after burn-in; the rate during burn-in is recorded, too.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots
from crosscoding.evidence import Evidence
from crosscoding.experiments import faces
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.problem import Problem
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.leapfrog import Move
from crosscoding.random import generator_from, spawn
from crosscoding.target.vae_target import VAETarget


@dataclass(frozen=True)
class Settings:
    """Which chains to run. The paper's take 1e8 decoder gradients per model: days on a CPU.

    Args:
        step_sizes: ε, in prior standard deviations.
        num_leapfrog: Numbers of leapfrog steps L.
        num_chains: Chains per ε and L.
        burn_in: Steps before the acceptance rate is measured.
        num_steps: Steps over which it is averaged.
    """

    step_sizes: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    num_leapfrog: tuple[int, ...] = (5, 10, 30)
    num_chains: int = 30
    burn_in: int = 10_000
    num_steps: int = 1_000


def measure(settings: Settings, context: Context) -> Result:
    """Run all chains on each model's first face, with the eyes observed."""
    numbers: dict[str, Any] = {}
    for model in faces.models(context):
        problem = faces.problem(model, context, "eyes")
        numbers[model.name] = {}
        for length in settings.num_leapfrog:
            key = {"settings": settings, "length": length, **problem.settings}

            def work(problem: Problem = problem, length: int = length) -> Result:
                return _chains(problem, length, settings, context)

            name = f"{problem.name}-leapfrog-{length}"
            part = context.part(name, key, work, device=problem.vae.device.type)
            numbers[model.name][str(length)] = part.numbers
    found = {"step_sizes": settings.step_sizes, "burn_in": settings.burn_in}
    return Result({"models": numbers} | found)


def _chains(problem: Problem, length: int, settings: Settings, context: Context) -> Result:
    """Acceptance rates of all chains of one L: one list of num_chains rates per step size."""
    for_start, for_steps = spawn(generator_from(context.seed), 2)
    count = len(settings.step_sizes)
    evidence = Evidence(
        problem.truth.expand(count, *problem.truth.shape[1:]),
        problem.mask.expand(count, *problem.truth.shape[1:]),
    )
    target = VAETarget(problem.vae, evidence)
    move = Move(target, partial(target.log_joint, checked=False), None, length)
    start = target.draw_prior(settings.num_chains, generator=for_start)
    points = evaluated(target, move.density, start[:, None].expand(-1, count, -1))
    step_size = torch.tensor(settings.step_sizes).to(start)
    total = settings.burn_in + settings.num_steps
    sums = [torch.zeros(settings.num_chains, count) for _ in range(2)]
    for step in range(total):
        points, acceptance = move(points, step_size, 0.0, generator=for_steps)
        sums[step >= settings.burn_in] += acceptance.cpu()
        context.report((step + 1) / total, f"{problem.name}, {length} leapfrog steps")
    return Result(
        {
            "acceptance": _by_step_size(sums[1], settings.num_steps),
            "acceptance_in_burn_in": _by_step_size(sums[0], max(settings.burn_in, 1)),
        }
    )


def _by_step_size(total: Tensor, num_steps: int) -> list[list[float]]:
    return (total / num_steps).mT.tolist()


def draw(result: Result) -> dict[str, Figure]:
    """One picture per model, with a panel per number of leapfrog steps and a box per step size."""
    figures = {}
    names = [f"{size:g}" for size in result.numbers["step_sizes"]]
    for model, lengths in result.numbers["models"].items():
        figure = plots.new_figure(max(3.6 * len(lengths), 5.5), 3.4)
        figure.suptitle(f"{model}: HMC's acceptance rate, one dot a chain", fontsize=11)
        for place, (length, found) in enumerate(lengths.items()):
            axes = figure.add_subplot(1, len(lengths), place + 1)
            rates = [np.array(each) for each in found["acceptance"]]
            plots.boxes(axes, rates, names, plots.colour_of("HMC"))
            axes.set_ylim(-0.03, 1.03)
            plots.tidy(axes, title=f"{length} leapfrog steps", x="step size ε", y="acceptance")
        figures[f"fig5-{model}"] = figure
    return figures


FIG5 = Experiment(
    name="fig5",
    title="HMC on faces: acceptance rate by step size, thirty chains without adaptation",
    wanted="only a narrow band of ε works, and even there rates vary greatly between chains",
    full=Settings(),
    quick=Settings(
        step_sizes=(0.002, 0.005, 0.01, 0.02, 0.05),
        num_leapfrog=(10,),
        num_chains=6,
        burn_in=10,
        num_steps=10,
    ),
    measure=measure,
    draw=draw,
    subjects=faces.subjects,
    parallel=True,
)
