"""`families`: five families of VAEs on digits: completions, verdicts, cost, gains over a plain VAE.

Each family answers the same queries, several kinds of evidence on several digits, in one call. Its
log p(t) of complete digits says how well it models them. Three families have the decoder and prior
of `mnist-20d` and differ only in training: those answer Figure 4's evidence sets as well, by the
cross-coders and the cascade.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from crosscoding import plots, zoo
from crosscoding.conditioning import condition
from crosscoding.crosscoders import Gaussian, Planar
from crosscoding.evidence import Evidence
from crosscoding.experiments.experiment import Context, Experiment, Result, UnavailableError
from crosscoding.experiments.figures.digit_sets import random_sets
from crosscoding.experiments.problem import Problem, answer, column, digest
from crosscoding.masks import random_mask, rectangle_mask
from crosscoding.methods import Auto, Method, Variational
from crosscoding.model.vae import VAE
from crosscoding.zoo.training.families.recipes import FAMILIES

PLAIN = "mnist-20d"
"""The VAE that the families are compared with."""

SAME_DECODER = ("mnist-iwae", "mnist-planar", "mnist-iaf")
"""Families with its decoder and prior."""

_SPLITS: dict[str, Callable[[], Tensor]] = {
    "5 % of pixels": lambda: random_mask((28, 28), 0.05, seed=2),  # the mask of Figure 2
    "15 % of pixels": lambda: random_mask((28, 28), 0.15, seed=2),
    "top half": lambda: rectangle_mask((28, 28), rows=(0, 13)),
    "left half": lambda: rectangle_mask((28, 28), columns=(0, 13)),
}
_DIGITS = (29, 12, 21, 35, 5, 17)  # of the zoo; the first is that of Figure 2
_NUM_SHOWN = 9


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Args:
        num_digits: Digits that each kind of evidence is taken from, at most six.
        num_complete: Complete digits whose log p(t) is computed, of all classes, at most forty.
        num_sets: Evidence sets of Figure 4.
        fractions: Shares of observed pixels; evidence sets take them in turn.
        num_draws: Draws of z per answer.
        steps: Maximum number of steps of Algorithm 1.
    """

    num_digits: int = 6
    num_complete: int = 20
    num_sets: int = 50
    fractions: tuple[float, ...] = (0.05, 0.15, 0.25)
    num_draws: int = 500
    steps: int = 5000


def subjects(context: Context) -> dict[str, str]:
    """Digests of the models; raises UnavailableError if one is not installed."""
    try:
        return {name: digest(zoo.load(name)) for name in (PLAIN, *FAMILIES)}
    except ValueError as error:
        raise UnavailableError(str(error)) from None


def measure(settings: Settings, context: Context) -> Result:
    """Answer every model's queries; compare those with the same decoder on Figure 4's sets."""
    numbers: dict[str, Any] = {"models": {}, "same_decoder": {}}
    tensors: dict[str, Tensor] = {}
    for name in (PLAIN, *FAMILIES):
        vae = zoo.load(name)
        found, pictures = _asked(name, vae, settings, context)
        complete = context.part(
            f"{name}-complete",
            {"model": digest(vae), "num": settings.num_complete},
            lambda vae=vae: _complete(vae, _of_all_classes(settings.num_complete), context),
        )
        numbers["models"][name] = found | {"complete": complete.numbers}
        tensors |= {f"{what}.{name}": tensor for what, tensor in pictures.items()}
    for name in (PLAIN, *SAME_DECODER):
        numbers["same_decoder"][name] = _on_random_sets(name, settings, context)
    return Result(numbers, tensors)


def _on_random_sets(name: str, settings: Settings, context: Context) -> dict[str, Any]:
    """Each method's figures on Figure 4's sets; log p(y|x) of Auto is log p(x, y) − log p(x).

    An average of p(y|z) over some hundred draws would be off by many nats in 20 dimensions.
    """
    vae = zoo.load(name)
    problem = random_sets(f"{name}-sets", vae, settings, context.seed)
    answers = {
        label: answer(context, problem, label, method).numbers
        for label, method in _compared_methods(settings).items()
    }
    num = min(settings.num_sets, len(zoo.digits()[0]))
    complete = context.part(
        f"{name}-complete-sets",
        {"model": digest(vae), "num": num},
        lambda: _complete(vae, torch.arange(num), context),
    )
    log_joint = column(complete.numbers, "log_prob")[np.arange(settings.num_sets) % num]
    difference = log_joint - column(answers["Auto"], "log_evidence")
    answers["Auto"]["query_log_prob"] = difference.tolist()
    return answers


def _compared_methods(settings: Settings) -> dict[str, Method]:
    num, steps = settings.num_draws, settings.steps
    return {
        "GVI": Variational(Gaussian(), steps=steps, num_fresh=num),
        "NF": Variational(Planar(16), steps=steps, num_fresh=num),
        "Auto": Auto(num_draws=num),
    }


def _asked(
    name: str, vae: VAE, settings: Settings, context: Context
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's card, verdicts and cost, and completions of one digit by each kind of evidence."""
    chosen = zoo.digits()[0][list(_DIGITS[: settings.num_digits])]
    masks = torch.stack([mask() for mask in _SPLITS.values()])
    truth = chosen.repeat(len(masks), 1, 1)  # the digits in turn, for one mask after the other
    described = {"model": digest(vae), "digits": settings.num_digits}
    problem = Problem(name, vae, truth, masks.repeat_interleave(len(chosen), 0), described)
    result = answer(context, problem, "Auto", Auto(num_draws=settings.num_draws))
    first = torch.arange(0, len(truth), len(chosen))
    draws = result.tensors["draws"][:, first]
    shown = torch.arange(_NUM_SHOWN) * len(draws) // _NUM_SHOWN  # as neighbours may be the same
    with torch.no_grad():
        means = vae.likelihood.mean(vae.decode(draws[shown]))
    verdicts, size = result.numbers["verdict"], len(chosen)
    by_split = {
        split: dict(Counter(verdicts[i * size : (i + 1) * size])) for i, split in enumerate(_SPLITS)
    }
    decodes = column(result.numbers, "decodes")
    numbers = {
        "card": zoo.card(name),
        "verdicts": by_split,
        "seconds_a_query": result.numbers["seconds"] / len(truth),
        "processor_seconds_a_query": result.numbers["processor_seconds"] / len(truth),
        "decodes_a_query": float(decodes.mean()),
        "log_evidence": result.numbers["log_evidence"],
        "log_evidence_error": result.numbers["log_evidence_error"],
        "query_log_prob": result.numbers["query_log_prob"],
    }
    return numbers, {"data": truth[first], "masks": masks, "means": means.movedim(1, 0)}


def _of_all_classes(num: int) -> Tensor:
    """Indices of `num` of the zoo's digits, which are ordered by class, evenly spaced."""
    return torch.arange(num) * len(zoo.digits()[0]) // num


def _complete(vae: VAE, chosen: Tensor, context: Context) -> Result:
    """log p(t) of complete digits in nats, with its error and the verdict on it."""
    everything = Evidence(zoo.digits()[0][chosen], torch.ones(28, 28, dtype=torch.bool))
    posterior = condition(vae, everything, seed=context.seed, report=context.report)
    numbers = {
        "log_prob": posterior.log_evidence,
        "error": posterior.log_evidence_error,
        "verdict": [verdict.label for verdict in posterior.verdicts],
    }
    return Result(numbers)


def gain(models: dict[str, Any], name: str) -> NDArray[np.floating]:
    """log p(t) of complete digits minus that under `PLAIN`; NaN where either is unreliable."""
    found = []
    for each in (name, PLAIN):
        complete = models[each]["complete"]
        unreliable = np.array(complete["verdict"]) == "unreliable"
        found.append(np.where(unreliable, np.nan, column(complete, "log_prob")))
    return found[0] - found[1]


def draw(result: Result) -> dict[str, Figure]:
    """Completions by all models with Figure 2's evidence, and by each with all kinds of evidence.

    Also log p(t) of complete digits, and the cross-coders' gaps and log p(y|x).
    """
    models = result.numbers["models"]
    columns = ["datum", "evidence"]
    figures = {
        "families": plots.labelled({name: _row(result, name, 0) for name in models}, columns)
    }
    for name in models:
        rows = {split: _row(result, name, place) for place, split in enumerate(_SPLITS)}
        figures[f"families-{name}"] = plots.labelled(rows, columns)
    figures["families-complete"] = _draw_complete(models)
    figures["families-same-decoder"] = _draw_same_decoder(result.numbers["same_decoder"])
    return figures


def _row(result: Result, name: str, place: int) -> list[plots.Picture]:
    """The datum, one of the kinds of evidence on it, and draws that are marked with it."""
    datum, mask, means = (
        result.tensors[f"{each}.{name}"][place].numpy() for each in ("data", "masks", "means")
    )
    picture = plots.colour(datum)
    drawn = [plots.mark_evidence(plots.colour(mean), mask) for mean in means]
    return [picture, plots.mark_evidence(picture, mask, hide=True), *drawn]


def _draw_complete(models: dict[str, Any]) -> Figure:
    figure = plots.new_figure(9, 3.6)
    gains = {name: gain(models, name) for name in models if name != PLAIN}
    title = f"log p(t) of complete digits, less that under {PLAIN}, one dot for each digit"
    plots.violins(figure.add_subplot(), gains, title=title, y="nats")
    return figure


def _draw_same_decoder(models: dict[str, Any]) -> Figure:
    figure = plots.new_figure(11, 7)
    upper, lower = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    gaps, gains = {}, {}
    for name, methods in models.items():
        exact = column(methods["Auto"], "log_evidence")
        for label in ("GVI", "NF"):
            gaps[f"{label}\n{name}"] = exact - column(methods[label], "c_elbo")
        for label in methods if name != PLAIN else ():
            plain = column(models[PLAIN][label], "query_log_prob")
            gains[f"{label}\n{name}"] = column(methods[label], "query_log_prob") - plain
    title = "What C-ELBO falls short of the cascade's log p(x), one dot for each evidence set"
    plots.violins(upper, gaps, title=title, y="nats")
    title = f"log p(y|x) by each method, less that under {PLAIN}"
    plots.violins(lower, gains, title=title, y="nats")
    return figure


FAMILIES_ON_DIGITS = Experiment(
    name="families",
    title="VAEs of five families on digits: test bounds, completions, verdicts and cost",
    wanted="cross-coding applies to all of them; flows and importance weights fit better than a "
    "plain VAE",
    full=Settings(),
    quick=Settings(num_digits=1, num_complete=2, num_sets=3, num_draws=100, steps=200),
    measure=measure,
    draw=draw,
    subjects=subjects,
)
