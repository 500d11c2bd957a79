"""`seconds`: C-ELBO against running time, for single faces."""

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from crosscoding import plots
from crosscoding.crosscoders import Gaussian, Planar
from crosscoding.experiments import faces
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.problem import answer, column
from crosscoding.methods import Auto, Method, NaturalGradient, Variational

_DRAWS_A_STEP = 16


@dataclass(frozen=True)
class Settings:
    """The budgets of each method; every number is a fit of its own.

    Args:
        num_models: How many models of faces, counted from the first.
        steps: Steps of Algorithm 1, for GVI and NF.
        natural_steps: Steps of natural gradients.
        nf_layers: Planar maps of NF.
        decodes: The cascade's budget of decoder evaluations.
        num_draws: Draws of z per answer.
    """

    num_models: int = 3
    steps: tuple[int, ...] = (200, 1000)
    natural_steps: tuple[int, ...] = (40, 160)
    nf_layers: int = 32
    decodes: tuple[int, ...] = (16_000,)
    num_draws: int = 200


def rungs(settings: Settings) -> dict[str, list[tuple[int, Method]]]:
    """The fits of each method, keyed by its label, each with its effort (steps or evaluations)."""
    num = settings.num_draws
    flow = Planar(settings.nf_layers)
    return {
        "GVI": [
            (steps, Variational(Gaussian(), steps, num_draws=_DRAWS_A_STEP, num_fresh=num))
            for steps in settings.steps
        ],
        "NF": [
            (steps, Variational(flow, steps, num_draws=_DRAWS_A_STEP, num_fresh=num))
            for steps in settings.steps
        ],
        "NG": [(steps, NaturalGradient(steps, num_fresh=num)) for steps in settings.natural_steps],
        "Auto": [(most, Auto(max_decodes=most, num_draws=num)) for most in settings.decodes],
    }


def measure(settings: Settings, context: Context) -> Result:
    """Answer one evidence set per model: its first face, with the eyes observed."""
    numbers: dict[str, Any] = {}
    for model in faces.models(context)[: settings.num_models]:
        problem = faces.problem(model, context, "eyes")
        numbers[model.name] = {}
        for name, fits in rungs(settings).items():
            found = [
                answer(context, problem, f"{name}, {effort}", method).numbers
                for effort, method in fits
            ]
            numbers[model.name][name] = [
                {
                    "effort": effort,
                    "seconds": each.get("seconds"),  # None if the method gave up
                    "device": problem.vae.device.type,
                    "c_elbo": each.get("c_elbo", [None])[0],
                    "verdict": each.get("verdict", [None])[0],
                }
                for (effort, _), each in zip(fits, found, strict=True)
            ]
    return Result({"models": numbers})


def draw(result: Result) -> dict[str, Figure]:
    """C-ELBO against seconds, one panel per model."""
    models = result.numbers["models"]
    figure = plots.new_figure(4.0 * len(models), 3.6)
    figure.suptitle("One face, the eyes observed, by itself", fontsize=11)
    for place, (model, methods) in enumerate(models.items()):
        axes = figure.add_subplot(1, len(models), place + 1)
        for name, fits in methods.items():
            x, y = (
                column({"fits": [each[field] for each in fits]}, "fits")
                for field in ("seconds", "c_elbo")
            )
            axes.plot(x, y, marker="o", ms=4, color=plots.colour_of(name), label=name)
        axes.set_xscale("log")
        plots.logarithmic(axes.xaxis)
        plots.tidy(axes, title=model, x="seconds", y="C-ELBO, nats")
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    return {"seconds": figure}


SECONDS = Experiment(
    name="seconds",
    title="C-ELBO of each method against running time, for a single face",
    wanted="under five minutes per evidence set",
    full=Settings(),
    quick=Settings(num_models=1, steps=(150,), natural_steps=(40,), decodes=(16_000,)),
    measure=measure,
    draw=draw,
    subjects=faces.subjects,
    parallel=True,
)
