"""`variance`: how Algorithm 1 converges, and what fitting on fixed draws does instead.

With the same seed, a fit of s steps is the beginning of a longer one. The course of a fit is
therefore measured by fits with more and more steps, each with its C-ELBO on fresh draws.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from crosscoding import plots, zoo
from crosscoding.conditioning import condition
from crosscoding.crosscoders import FCN, Gaussian, Planar
from crosscoding.evidence import Evidence
from crosscoding.experiments import fixed_draws
from crosscoding.experiments.experiment import Context, Experiment, Result, plain
from crosscoding.experiments.problem import Problem, digest, slug
from crosscoding.masks import random_mask, rectangle_mask
from crosscoding.methods import Auto, Variational
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from
from crosscoding.target.vae_target import VAETarget

_FAMILIES = {
    "mnist-2d": {"GVI": Gaussian(), "NF": Planar(16), "FCN": FCN()},
    "mnist-20d": {"GVI": Gaussian(), "NF": Planar(16)},
}
_FRACTION = 0.15
_FIXED_MODEL = "mnist-20d"
_DIGIT = 7


@dataclass(frozen=True)
class Settings:
    """How far fits are followed.

    Args:
        num_sets: Evidence sets, answered in one call.
        num_seeds: Fits of each.
        steps: Numbers of steps after which fits are evaluated.
        rounds: Evaluations of a fit on fixed draws.
        per_round: Iterations of L-BFGS per evaluation.
        times_dim: Numbers of fixed draws, in multiples of the latent dimension.
    """

    num_sets: int = 5
    num_seeds: int = 3
    steps: tuple[int, ...] = (50, 100, 200, 400, 800, 1600, 3200)
    rounds: int = 40
    per_round: int = 10
    times_dim: tuple[int, ...] = (1, 2, 10)


def subjects(context: Context) -> dict[str, str]:
    """Digests of the models."""
    return {name: digest(zoo.load(name)) for name in _FAMILIES}


def measure(settings: Settings, context: Context) -> Result:
    """Measure the course of every fit, log p(x), and fits on fixed draws."""
    courses: dict[str, Any] = {}
    for model, families in _FAMILIES.items():
        problem = _problem(model, settings, context.seed)
        described = {**problem.settings}
        exact = context.part(f"course-{model}-auto", described, lambda p=problem: _evidence_of(p))
        courses[model] = {"log_evidence": exact.numbers["log_evidence"], "methods": {}}
        for name, family in families.items():
            key = {"crosscoder": repr(family), "steps": settings.steps, **described}

            def work(problem: Problem = problem, family: Any = family) -> Result:
                return _course(problem, Variational(family), settings, context)

            key["seeds"] = settings.num_seeds
            part = context.part(f"course-{model}-{slug(name)}", key, work)
            courses[model]["methods"][name] = part.numbers["rungs"]
    key = [settings.rounds, settings.per_round, settings.times_dim, settings.num_seeds]
    fixed = context.part(
        "fixed-draws",
        {"settings": key, "model": digest(zoo.load(_FIXED_MODEL))},
        lambda: _fixed(settings, context),
    )
    return Result({"courses": courses, "fixed": fixed.numbers})


def _problem(model: str, settings: Settings, seed: int) -> Problem:
    vae, generator = zoo.load(model), generator_from(seed)
    truth = zoo.digits()[0][: settings.num_sets]
    masks = [random_mask(vae.data_shape, _FRACTION, seed=generator) for _ in truth]
    described = {"model": digest(vae), "sets": settings.num_sets, "fraction": _FRACTION}
    return Problem(f"course-{model}", vae, truth, torch.stack(masks), described)


def _evidence_of(problem: Problem) -> Result:
    posterior = condition(problem.vae, problem.evidence, Auto(), seed=0)
    return Result({"log_evidence": posterior.log_evidence, "error": posterior.log_evidence_error})


def _course(problem: Problem, method: Variational, settings: Settings, context: Context) -> Result:
    """Fits with more and more steps, until all have stopped by themselves."""
    probes = 4096 if problem.vae.latent_dim <= 3 else 1024
    num_draws = 32 if isinstance(method.crosscoder, Gaussian) else 128
    rungs = []
    for limit in settings.steps:
        fits = [
            condition(
                problem.vae, problem.evidence, replace(method, steps=limit), seed=context.seed + i
            )
            for i in range(settings.num_seeds)
        ]
        steps = torch.stack([fit.stats["steps"] for fit in fits])
        rungs.append(
            {
                "limit": limit,
                "steps": steps.mean().item(),
                "seconds": float(np.mean([fit.seconds for fit in fits])) / settings.num_sets,
                "evaluations": steps.mean().item() * num_draws + probes / settings.num_sets,
                "c_elbo": torch.stack([fit.c_elbo for fit in fits]),
            }
        )
        context.report(limit / settings.steps[-1], f"{problem.name}, {limit} steps")
        if (steps < limit).all():
            break
    return Result({"rungs": plain(rungs)})


def _fixed(settings: Settings, context: Context) -> Result:
    """Fits by the reference code's scheme, in double precision, on few and on many fixed draws."""
    vae = zoo.load(_FIXED_MODEL)
    vae = VAE(copy.deepcopy(vae.decoder).double(), vae.latent_dim, vae.likelihood)
    digit = zoo.digits()[0][_DIGIT].double()
    quarter = rectangle_mask(vae.data_shape, rows=(0, 13), columns=(14, 27))
    target = VAETarget(vae, Evidence(digit, quarter))
    exact = condition(vae, target.evidence, Auto(), seed=context.seed)
    runs = {}
    for times in settings.times_dim:
        runs[str(times)] = [
            plain(
                fixed_draws.fit(
                    target,
                    times * vae.latent_dim,
                    rounds=settings.rounds,
                    per_round=settings.per_round,
                    generator=generator_from(context.seed + index),
                )
            )
            for index in range(settings.num_seeds)
        ]
    numbers = {"dim": vae.latent_dim, "log_evidence": exact.log_evidence, "runs": runs}
    return Result(numbers | {"per_round": settings.per_round})


def draw(result: Result) -> dict[str, Figure]:
    """Draw the courses, and the fits on fixed draws."""
    return {
        "variance": _draw_courses(result.numbers["courses"]),
        "variance-fixed-draws": _draw_fixed(result.numbers["fixed"]),
    }


def _draw_courses(courses: dict[str, Any]) -> Figure:
    figure = plots.new_figure(10.5, 6)
    across = {
        "steps": "steps",
        "seconds": "seconds an evidence set, in a batch",
        "evaluations": "decoder evaluations an evidence set",
    }
    for row, (model, course) in enumerate(courses.items()):
        for place, (field, label) in enumerate(across.items()):
            axes = figure.add_subplot(len(courses), 3, 3 * row + place + 1)
            for name, rungs in course["methods"].items():
                gaps = [_gaps(rung, course) for rung in rungs]
                x = [rung[field] for rung in rungs]
                middle = [gap.mean() for gap in gaps]
                spread = [gap.std(ddof=1) if len(gap) > 1 else 0.0 for gap in gaps]
                axes.errorbar(
                    x, middle, spread, color=plots.colour_of(name), label=name, marker="o", ms=4
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            plots.logarithmic(axes.xaxis)
            plots.logarithmic(axes.yaxis)
            plots.tidy(axes, title=model, x=label, y="log p(x) − C-ELBO, nats")
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle("Algorithm 1: mean over evidence sets; bars, standard deviation over seeds")
    return figure


def _gaps(rung: dict[str, Any], course: dict[str, Any]) -> np.ndarray:
    """log p(x) − C-ELBO, averaged over evidence sets, for each seed."""
    return (np.array(course["log_evidence"]) - np.array(rung["c_elbo"], float)).mean(-1)


def _draw_fixed(fixed: dict[str, Any]) -> Figure:
    runs = fixed["runs"]
    figure = plots.new_figure(3.5 * len(runs), 3.6)
    figure.suptitle("A Gaussian fitted by L-BFGS on N fixed draws, as the reference code does")
    places = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    kinds = {"own": ("HMC", "on the fit's own draws"), "fresh": ("NF", "on fresh draws")}
    for axes, (times, traces) in zip(places, runs.items(), strict=True):
        for index, trace in enumerate(traces):
            x = fixed["per_round"] * np.arange(1, len(trace["own"]) + 1)
            for kind, (colour, label) in kinds.items():
                y = _floats(trace[kind]) - fixed["log_evidence"]
                named = label if index == 0 else None
                axes.plot(x, y, color=plots.colour_of(colour), label=named)
        axes.axhline(0, color="0.4", ls="--", lw=1, label="log p(x)")
        axes.set_yscale("symlog", linthresh=1)
        title = f"N = {times} D = {int(times) * fixed['dim']}"
        plots.tidy(axes, title=title, x="iterations of L-BFGS")
    places[0].set_ylabel("C-ELBO − log p(x), nats", fontsize=9)
    places[-1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


VARIANCE = Experiment(
    name="variance",
    title="How Algorithm 1 converges, and what fitting on fixed draws does instead",
    wanted="fits converge; on N = D fixed draws the objective grows without bound and the C-ELBO "
    "collapses, on N = 10 D it does not",
    full=Settings(),
    quick=Settings(num_sets=2, steps=(50, 100, 200), rounds=10),
    measure=measure,
    draw=draw,
    subjects=subjects,
)
