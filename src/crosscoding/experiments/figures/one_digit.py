"""Figures 2 and 3: completions of one digit with few observed pixels, and p(z|x)."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots, zoo
from crosscoding.conditioning import condition
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.figures import digit_methods
from crosscoding.experiments.figures.digit_methods import QUICK, Settings
from crosscoding.experiments.problem import Problem, answer, digest
from crosscoding.masks import random_mask
from crosscoding.methods import Grid
from crosscoding.random import generator_from
from crosscoding.target.vae_target import VAETarget

# A seven with 39 observed pixels. They fit a nine better, and to some extent a four or a two.
_DIGIT, _MASK_SEED, _FRACTION = 29, 2, 0.05
_NUM_SHOWN = 9


def one_digit() -> Problem:
    """The query of Figures 2 and 3."""
    vae = zoo.load(digit_methods.MODEL)
    mask = random_mask(vae.data_shape, _FRACTION, seed=_MASK_SEED)
    truth = zoo.digits()[0][_DIGIT : _DIGIT + 1]
    settings = {"model": digest(vae), "digit": _DIGIT, "mask": [_FRACTION, _MASK_SEED]}
    return Problem("digit", vae, truth, mask, settings)


def measure_completions(settings: Settings, context: Context) -> Result:
    """Figure 2: decode nine draws of each method to their means."""
    problem = one_digit()
    answers = _answers(settings, context, problem)
    tensors = {"datum": problem.truth[0], "mask": problem.mask}
    numbers = {}
    for name, result in answers.items():
        z = _spread(result.tensors["draws"][:, 0], _NUM_SHOWN, context.seed)
        tensors[f"means.{name}"] = problem.vae.likelihood.mean(problem.vae.decode(z))
        numbers[name] = _figures(result)
    return Result(
        {"methods": numbers, "digit": _DIGIT, "observed": int(problem.mask.sum())}, tensors
    )


def draw_completions(result: Result) -> dict[str, Figure]:
    """Figure 2: one row per method, with the datum, the evidence, and draws marked with it."""
    seen = result.tensors["mask"].numpy()
    data = plots.colour(result.tensors["datum"].numpy())
    rows = {}
    for name in result.numbers["methods"]:
        means = result.tensors[f"means.{name}"]
        drawn = [plots.mark_evidence(plots.colour(mean.numpy()), seen) for mean in means]
        rows[name] = [data, plots.mark_evidence(data, seen, hide=True), *drawn]
    return {"fig2": plots.labelled(rows, ["datum", "evidence"])}


def measure_posterior(settings: Settings, context: Context) -> Result:
    """Figure 3: compute p(z|x) on a fine grid, and draw with each method."""
    problem = one_digit()
    answers = _answers(settings, context, problem)
    exact = condition(problem.vae, problem.evidence, Grid(), seed=context.seed)
    target = VAETarget(problem.vae, problem.evidence)
    reference = exact.sample(1000, seed=context.seed)[:, 0]
    axes = plots.window(reference)

    def log_density(z: Tensor) -> Tensor:
        with torch.no_grad():
            return (target.log_prior(z)[:, None] + target.pairwise_log_likelihood(z))[:, 0]

    tensors = {"axes": axes, "log_density": plots.on_grid(log_density, axes)}
    numbers = {}
    for name, result in answers.items():
        draws = result.tensors["draws"][:, 0]
        tensors[f"draws.{name}"] = draws
        # Draws where p(z|x) is so low that only a thousandth of its mass lies there.
        outside = log_density(draws) < log_density(reference).sort().values[1]
        numbers[name] = _figures(result) | {"share_outside": outside.float().mean().item()}
    found = {"log_evidence": exact.log_evidence[0].item(), "num_draws": settings.num_draws}
    return Result({"methods": numbers} | found, tensors)


def draw_posterior(result: Result) -> dict[str, Figure]:
    """Figure 3: one panel per method, with its draws over contours of the exact p(z|x)."""
    draws = {name: result.tensors[f"draws.{name}"].numpy() for name in result.numbers["methods"]}
    figure = plots.contour_panels(
        result.tensors["axes"].numpy(),
        result.tensors["log_density"].numpy(),
        draws,
        title="p(z|x): contours that hold 20 to 99.9 % of the mass, and each method's draws",
    )
    return {"fig3": figure}


def _figures(result: Result) -> dict[str, float | None]:
    """C-ELBO, log p(x) and log p(y|x) of the single query, and the method's running time."""
    names = ("c_elbo", "log_evidence", "query_log_prob")
    return {n: result.numbers[n][0] for n in names} | {"seconds": result.numbers["seconds"]}


def _spread(draws: Tensor, num: int, seed: int) -> Tensor:
    """`num` of the draws, chosen at random without replacement."""
    return draws[torch.randperm(len(draws), generator=generator_from(seed))[:num]]


def _answers(settings: Settings, context: Context, problem: Problem) -> dict[str, Result]:
    found = {
        name: answer(context, problem, name, method)
        for name, method in digit_methods.compared_methods(settings).items()
    }
    return {name: result for name, result in found.items() if "failed" not in result.numbers}


FIG2 = Experiment(
    name="fig2",
    title="One digit with few observed pixels: draws of each method",
    wanted="digits other than the original are plausible; all but GVI match the evidence",
    full=Settings(),
    quick=QUICK,
    measure=measure_completions,
    draw=draw_completions,
    subjects=digit_methods.subjects,
)
FIG3 = Experiment(
    name="fig3",
    title="p(z|x) of that digit, and each method's draws over it",
    wanted="p(z|x) has several modes; GVI covers false mass, NF and FCN follow the shape",
    full=Settings(),
    quick=QUICK,
    measure=measure_posterior,
    draw=draw_posterior,
    subjects=digit_methods.subjects,
)
