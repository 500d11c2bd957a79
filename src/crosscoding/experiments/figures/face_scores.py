"""Figure 8: C-ELBO, log p(y|x) and spread of every method on many evidence sets of faces."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots
from crosscoding.experiments import faces
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.figures.face_methods import (
    QUICK,
    Settings,
    answered,
    diversity,
    means_of,
    shown,
)
from crosscoding.experiments.problem import Problem, column


def measure_many(settings: Settings, context: Context) -> Result:
    """Figure 8: answer each model's evidence sets, eyes and pixels in turn, with every method."""
    numbers: dict[str, Any] = {}
    for model in faces.models(context):
        problem = faces.problem(model, context, "both", settings.num_sets)
        answers = answered(problem, settings, context)
        numbers[model.name] = {}
        for name, result in answers.items():
            numbers[model.name][name] = dict(result.numbers)
            for label, z in shown(name, result, settings).items():
                row = numbers[model.name].setdefault(label, {"seconds": None})
                row["latent_diversity"] = diversity(z).tolist()
                row["picture_diversity"] = _hidden_diversity(problem, z)
    return Result({"models": numbers, "num_sets": settings.num_sets})


def _hidden_diversity(problem: Problem, z: Tensor) -> list[float]:
    """`diversity` of the unobserved pixels, one per evidence set."""
    variance = means_of(problem, z).var(0)
    hidden = ~problem.mask.cpu().expand(variance.shape)
    means = [each[seen].mean() for each, seen in zip(variance, hidden, strict=True)]
    return (2 * torch.stack(means)).sqrt().tolist()


def draw_many(result: Result) -> dict[str, Figure]:
    """For each model, scatter plots of C-ELBO and violins of log p(y|x)."""
    return {
        f"fig8-{model}": _draw_scores(model, methods)
        for model, methods in result.numbers["models"].items()
    }


def _draw_scores(model: str, methods: dict[str, Any]) -> Figure:
    figure = plots.new_figure(14, 3.6)
    figure.suptitle(f"{model}, one dot for each evidence set", fontsize=11)
    for place, pair in enumerate((("NF", "GVI"), ("GVI", "NG"), ("NG", "Auto"))):
        axes = figure.add_subplot(1, 4, place + 1)
        x, y = (column(methods[name], "c_elbo") for name in pair)
        there = np.isfinite(x) & np.isfinite(y)
        if there.any():
            plots.scatter_pair(axes, x[there], y[there], pair)
    axes = figure.add_subplot(1, 4, 4)
    found = {
        name: column(each, "query_log_prob")
        for name, each in methods.items()
        if "query_log_prob" in each
    }
    plots.violins(axes, found, title="log p(y|x)", y="nats")
    return figure


FIG8 = Experiment(
    name="fig8",
    title="Faces, 25 evidence sets: C-ELBO of GVI and NF, and log p(y|x)",
    wanted="GVI ≥ NF in C-ELBO; HMC is the worst",
    full=Settings(),
    quick=QUICK,
    measure=measure_many,
    draw=draw_many,
    subjects=faces.subjects,
    parallel=True,
)
