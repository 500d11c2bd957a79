"""Figures 6, 7, 11 and 12: completions of a face whose eyes, or some random pixels, are observed.

We read the paper as observing the eyes in the first two figures and random pixels in the others.
Pictures are the decoder's means, overlaid with the evidence. Both evidence sets of a model are
answered in one batch, which Figure 8 reuses if it has two evidence sets.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
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

_PER_ROW = 5


def _measure_one(family: str, evidence: str) -> Callable[[Settings, Context], Result]:
    kinds = ("eyes", "pixels")
    index = kinds.index(evidence)

    def measure(settings: Settings, context: Context) -> Result:
        numbers: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for model in faces.models(context, family):
            problem = faces.problem(model, context, "both", len(kinds))
            mask = problem.mask[index].cpu()
            tensors[f"truth.{model.name}"] = problem.truth[index].cpu()
            tensors[f"mask.{model.name}"] = mask
            answers = answered(problem, settings, context)
            numbers[model.name] = {}
            for name, result in answers.items():
                for label, z in shown(name, result, settings).items():
                    means = means_of(problem, z)[:, index]
                    tensors[f"means.{model.name}.{label}"] = means
                    numbers[model.name][label] = {
                        "c_elbo": result.numbers["c_elbo"][index],
                        "query_log_prob": result.numbers["query_log_prob"][index],
                        "verdict": result.numbers["verdict"][index],
                        "latent_diversity": diversity(z)[index].item(),
                        "picture_diversity": diversity(means[:, None, ~mask]).item(),
                    }
        return Result({"models": numbers, "evidence": evidence}, tensors)

    return measure


def _draw_one(name: str) -> Callable[[Result], Mapping[str, Figure]]:
    def draw(result: Result) -> dict[str, Figure]:
        return {f"{name}-{model}": _blocks(model, result) for model in result.numbers["models"]}

    return draw


def _blocks(model: str, result: Result) -> Figure:
    truth = plots.colour(result.tensors[f"truth.{model}"].numpy(), low=-1)
    mask = result.tensors[f"mask.{model}"][0].numpy()
    seen = np.where(mask[..., None], truth, 0.5)
    blocks = {"data and evidence": plots.sheet([[truth], [seen]])}
    for label, figures in result.numbers["models"][model].items():
        means = result.tensors[f"means.{model}.{label}"].numpy()
        pictures = [plots.colour(mean, low=-1) for mean in means]
        rows = [pictures[i : i + _PER_ROW] for i in range(0, len(pictures), _PER_ROW)]
        title = f"{label}\nspread: z {figures['latent_diversity']:.2f}, "
        blocks[f"{title}pixels {figures['picture_diversity']:.2f}"] = plots.sheet(rows)
    return plots.panels(blocks, f"{model}: draws from p(z|x), decoded to their means, x as given")


def _experiment(name: str, family: str, evidence: str, wanted: str) -> Experiment:
    what = "its eyes" if evidence == "eyes" else "one pixel in twenty"
    return Experiment(
        name=name,
        title=f"A face with {what} observed: {family}",
        wanted=wanted,
        full=Settings(),
        quick=QUICK,
        measure=_measure_one(family, evidence),
        draw=_draw_one(name),
        subjects=lambda context: faces.subjects(context, family),
        parallel=True,
    )


_ANIME = "GVI is diverse; NF and HMC collapse to one mode"
_CELEBA = "GVI and NF are diverse, HMC is not"
FIG6 = _experiment("fig6", "anime", "eyes", _ANIME)
FIG7 = _experiment("fig7", "celeba", "eyes", _CELEBA)
FIG11 = _experiment("fig11", "anime", "pixels", _ANIME)
FIG12 = _experiment("fig12", "celeba", "pixels", _CELEBA)
