"""Figure 4: many random evidence sets on digits, answered by every method and exactly."""

from typing import Any, Protocol

import torch
from matplotlib.figure import Figure

from crosscoding import plots, zoo
from crosscoding.conditioning import condition
from crosscoding.evidence import Evidence
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.figures import digit_methods
from crosscoding.experiments.figures.digit_methods import QUICK, Settings
from crosscoding.experiments.problem import Problem, answer, column, digest
from crosscoding.masks import random_mask
from crosscoding.methods import Grid
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from


class Sets(Protocol):
    """Settings that say how many evidence sets there are, and of which sizes."""

    @property
    def num_sets(self) -> int:
        """Number of evidence sets."""
        ...

    @property
    def fractions(self) -> tuple[float, ...]:
        """Shares of observed pixels."""
        ...


def many_sets(settings: Settings, seed: int) -> Problem:
    """The evidence sets of Figure 4."""
    return random_sets("digits", zoo.load(digit_methods.MODEL), settings, seed)


def random_sets(name: str, vae: VAE, settings: Sets, seed: int) -> Problem:
    """The forty digits in turn, with random pixels observed.

    Args:
        name: Prefix of the names of the parts that hold the answers.
        vae: The model.
        settings: Number of evidence sets, and shares of observed pixels, which they take in turn.
        seed: Of the pixels.
    """
    generator, images = generator_from(seed), zoo.digits()[0]
    truth = images[torch.arange(settings.num_sets) % len(images)]
    shares = [settings.fractions[i % len(settings.fractions)] for i in range(settings.num_sets)]
    mask = torch.stack([random_mask(vae.data_shape, s, seed=generator) for s in shares])
    described = {"model": digest(vae), "sets": settings.num_sets, "fractions": settings.fractions}
    return Problem(name, vae, truth, mask, described)


def measure_sets(settings: Settings, context: Context) -> Result:
    """Figure 4: answer all evidence sets with every method, and exactly on a grid."""
    problem = many_sets(settings, context.seed)
    exact = context.part("digits-exact", problem.settings, lambda: _exact(problem))
    methods = {}
    for name, method in digit_methods.compared_methods(settings).items():
        methods[name] = answer(context, problem, name, method).numbers
    return Result({"methods": methods, "exact": exact.numbers})


def _exact(problem: Problem) -> Result:
    """log p(x) and log p(y|x) = log p(x, y) − log p(x), by integration on a grid."""
    part = condition(problem.vae, problem.evidence, Grid(), seed=0).log_evidence
    everything = Evidence(problem.truth, torch.ones_like(problem.truth, dtype=torch.bool))
    whole = condition(problem.vae, everything, Grid(), seed=0).log_evidence
    return Result({"log_evidence": part, "query_log_prob": whole - part})


def draw_sets(result: Result) -> dict[str, Figure]:
    """Figure 4a, scatter plots of C-ELBO and gaps to log p(x); 4b, violins of log p(y|x)."""
    methods, exact = result.numbers["methods"], result.numbers["exact"]
    return {"fig4a": _draw_bounds(methods, exact), "fig4b": _draw_queries(methods, exact)}


def _draw_bounds(methods: dict[str, Any], exact: dict[str, Any]) -> Figure:
    figure = plots.new_figure(10.5, 6.8)
    figure.suptitle("C-ELBO of the cross-coders, one dot for each evidence set", fontsize=11)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    upper, lower = halves
    for index, (first, second) in enumerate([("GVI", "NF"), ("GVI", "FCN"), ("NF", "FCN")]):
        axes = upper.add_subplot(1, 3, index + 1)
        bounds = column(methods[first], "c_elbo"), column(methods[second], "c_elbo")
        plots.scatter_pair(axes, *bounds, (first, second))
    gaps = {
        name: column(exact, "log_evidence") - column(methods[name], "c_elbo")
        for name in ("GVI", "NF", "FCN")
    }
    axes = lower.add_subplot()
    title = "What each falls short of the exact log p(x); FCN's is no bound"
    plots.violins(axes, gaps, title=title, y="nats", body=False)
    axes.set_yscale("symlog", linthresh=0.01)
    return figure


def _draw_queries(methods: dict[str, Any], exact: dict[str, Any]) -> Figure:
    found = {
        name: column(numbers, "query_log_prob")
        for name, numbers in methods.items()
        if "failed" not in numbers
    }
    truth = column(exact, "query_log_prob")
    figure = plots.new_figure(9, 7)
    upper, lower = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    plots.violins(
        upper,
        {"exact": truth} | found,
        title="Query marginal log-likelihood log p(y|x), one dot for each evidence set",
        y="nats",
    )
    below = {name: values - truth for name, values in found.items()}
    plots.violins(lower, below, title="The same, less the exact figure", y="nats", body=False)
    lower.set_yscale("symlog", linthresh=1)
    return figure


FIG4 = Experiment(
    name="fig4",
    title="Fifty evidence sets: C-ELBO of the cross-coders (4a) and log p(y|x) (4b)",
    wanted="FCN ≈ NF > GVI; RS slightly best, cross-coders close, HMC with a long tail",
    full=Settings(),
    quick=QUICK,
    measure=measure_sets,
    draw=draw_sets,
    subjects=digit_methods.subjects,
)
