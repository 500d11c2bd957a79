"""`cvae`: a conditional VAE, trained for one split, against cross-coding of a VAE on that split.

Both have the same sizes and see the same digits. log p(y|x) of test digits is estimated

- for the conditional VAE, by an importance-weighted lower bound;
- for the VAE, by log p(x, y) − log p(x), both from the cascade, and as in the paper, by the log of
  the mean of p(y|z) over draws from p(z|x), which is too low, especially with few draws.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots, zoo
from crosscoding.conditioning import condition
from crosscoding.evidence import Evidence
from crosscoding.experiments import conditional_vae
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.problem import column, digest
from crosscoding.masks import random_mask, rectangle_mask
from crosscoding.methods import Auto
from crosscoding.zoo.training.data import load_digits

_HIDDEN = {"mnist-2d": 64, "mnist-20d": 400}
_RANDOM_FRACTION = 0.15


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Args:
        cases: Names of VAEs, each with a split: "quarter" (the upper left one is observed), or
            "pixels" (one random mask).
        epochs: Training epochs of each conditional VAE.
        num_train: Digits that it is trained on.
        num_test: Test digits whose log p(y|x) is estimated.
        num_draws: Draws of z, for the importance-weighted bound and for the cascade.
    """

    cases: tuple[tuple[str, str], ...] = (
        ("mnist-2d", "quarter"),
        ("mnist-2d", "pixels"),
        ("mnist-20d", "quarter"),
    )
    epochs: int = 30
    num_train: int = 60_000
    num_test: int = 200
    num_draws: int = 1000


def subjects(context: Context) -> dict[str, str]:
    """Digests of the VAEs; raises UnavailableError if the digits are missing."""
    context.data_file("mnist.npz")
    return {name: digest(zoo.load(name)) for name in _HIDDEN}


def measure(settings: Settings, context: Context) -> Result:
    """Answer each case with a conditional VAE and with cross-coding."""
    folder = context.data_file("mnist.npz").parent
    test = load_digits(folder, "test")[: settings.num_test]
    rows = []
    for model, split in settings.cases:
        mask = _mask(split, context.seed)
        asked: dict[str, Any] = {"num_test": settings.num_test, "num_draws": settings.num_draws}
        trained = {"epochs": settings.epochs, "num_train": settings.num_train, **asked}

        def train(model: str = model, mask: Tensor = mask) -> Result:
            data = load_digits(folder, "train")[: settings.num_train]
            return _conditional(model, mask, data, test, settings, context)

        def ask(model: str = model, mask: Tensor = mask) -> Result:
            return _crosscoded(model, mask, test, settings, context)

        name = f"cvae-{model}-{split}"
        row = {"model": model, "split": split, "observed": int(mask.sum())}
        row["cvae"] = context.part(name, trained, train).numbers
        asked["vae"] = digest(zoo.load(model))
        row["auto"] = context.part(f"{name}-auto", asked, ask).numbers
        rows.append(row)
    return Result({"rows": rows, "num_draws": settings.num_draws})


def _mask(split: str, seed: int) -> Tensor:
    if split == "quarter":
        return rectangle_mask((28, 28), rows=(0, 13), columns=(0, 13))
    return random_mask((28, 28), _RANDOM_FRACTION, seed=seed)


def _conditional(
    model: str, mask: Tensor, train: Tensor, test: Tensor, settings: Settings, context: Context
) -> Result:
    recipe = conditional_vae.CVAERecipe(_HIDDEN[model], zoo.load(model).latent_dim, settings.epochs)
    course: list[float] = []

    def on_epoch(epoch: int, value: float) -> None:
        course.append(value)
        what = f"CVAE, {model}, epoch {epoch}, ELBO {value:.1f} nats"
        context.report(epoch / settings.epochs, what)

    start = time.perf_counter()
    data, seen = train.flatten(1), mask.flatten()
    cvae = conditional_vae.train(data, seen, recipe, seed=context.seed, on_epoch=on_epoch)
    trained = time.perf_counter()
    bound = conditional_vae.log_prob(cvae, test.flatten(1), settings.num_draws, seed=context.seed)
    return Result(
        {
            "recipe": recipe,
            "training_seconds": trained - start,
            "training_elbo_by_epoch": course,
            "seconds_a_query": (time.perf_counter() - trained) / len(test),
            "log_prob": bound,
        }
    )


def _crosscoded(
    model: str, mask: Tensor, test: Tensor, settings: Settings, context: Context
) -> Result:
    vae = zoo.load(model)
    part = condition(vae, Evidence(test, mask), Auto(num_draws=settings.num_draws), seed=0)
    everything = Evidence(test, torch.ones_like(mask))
    whole = condition(vae, everything, Auto(), seed=context.seed)
    return Result(
        {
            "training_seconds": 0.0,
            "seconds_a_query": part.seconds / len(test),
            "log_prob": whole.log_evidence - part.log_evidence,
            "log_prob_error": (
                whole.log_evidence_error.square() + part.log_evidence_error.square()
            ).sqrt(),
            "log_mean_over_draws": part.query_log_prob(test),
            "trusted": (part.trusted & whole.trusted).float().mean().item(),
        }
    )


def draw(result: Result) -> dict[str, Figure]:
    """Scatter plots of log p(y|x), one dot per digit, and the cost of queries with training."""
    rows = result.numbers["rows"]
    figure = plots.new_figure(max(3.4 * len(rows), 5.5), 7)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    upper, lower = halves
    figure.suptitle("Cross-coding of a VAE, and a CVAE trained for the one split", fontsize=11)
    for place, row in enumerate(rows):
        axes = upper.add_subplot(1, len(rows), place + 1)
        pair = column(row["cvae"], "log_prob"), column(row["auto"], "log_prob")
        plots.scatter_pair(axes, *pair, ("CVAE", "Auto"))
        axes.set_title(f"{row['model']}, {row['split']}\n{axes.get_title()}", fontsize=9)
        _draw_cost(lower.add_subplot(1, len(rows), place + 1), row)
    return {"cvae": figure}


def _draw_cost(axes: Any, row: dict[str, Any]) -> None:
    num = np.logspace(0, 6, 50)
    for name, field in (("CVAE", "cvae"), ("Auto", "auto")):
        cost = row[field]["training_seconds"] + num * row[field]["seconds_a_query"]
        axes.plot(num, cost, color=plots.colour_of(name), label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plots.tidy(axes, title="the cost of a new split", x="queries of one split", y="seconds")
    axes.legend(fontsize=8, frameon=False)


CVAE = Experiment(
    name="cvae",
    title="A conditional VAE, trained for one split, against cross-coding on that split",
    wanted="cross-coding is about as good, and needs no training for a new split",
    full=Settings(),
    quick=Settings(cases=(("mnist-2d", "quarter"),), epochs=20, num_test=50, num_draws=200),
    measure=measure,
    draw=draw,
    subjects=subjects,
)
