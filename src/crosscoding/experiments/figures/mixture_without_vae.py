"""Figure 9: the methods on a mixture of Gaussians in two dimensions, without a VAE."""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots
from crosscoding.conditioning import infer
from crosscoding.diagnostics import kernel_mmd
from crosscoding.experiments import gaussian_mixture
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.problem import column, slug
from crosscoding.methods import HMC, METHODS, Method

_FAR = gaussian_mixture.MEANS[-1]
_REACH = 1.75  # radius that holds nearly all of the distant component, and little else


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Args:
        num_seeds: Runs of each method, each with its own seed.
        num_draws: Draws that are compared with exact ones.
        num_warmup: Warm-up steps of HMC with many chains.
        num_warmup_alone: Warm-up steps of HMC with one chain.
    """

    num_seeds: int = 10
    num_draws: int = 1000
    num_warmup: int = 300
    num_warmup_alone: int = 1000


def _compared_methods(settings: Settings) -> dict[str, Method]:
    num, warmup, alone = settings.num_draws, settings.num_warmup, settings.num_warmup_alone
    listed = {METHODS[name].label: METHODS[name].method for name in ("nf", "fcn", "gvi")}
    return {
        **listed,
        "HMC": HMC(20, warmup, max(num // 20, 4)),
        "HMC, 1 chain": HMC(1, alone, max(num, 4), target_acceptance=0.75),
        "Auto": METHODS["auto"].method,
    }


def measure(settings: Settings, context: Context) -> Result:
    """Run each method with several seeds: MMD² to exact draws, share of the distant component."""
    methods, tensors = {}, {}
    for name, method in _compared_methods(settings).items():
        described = {"method": method, "seeds": settings.num_seeds, "num": settings.num_draws}

        def work(method: Method = method) -> Result:
            return _repeated(method, settings, context)

        part = context.part(f"mixture-{slug(name)}", described, work)
        methods[name] = part.numbers
        tensors[f"draws.{name}"] = part.tensors["draws"]
    seeds = range(context.seed, context.seed + settings.num_seeds)
    noise = [
        _mmd(gaussian_mixture.sample(settings.num_draws, seed=10_000 + i), settings, i)
        for i in seeds
    ]
    reference = gaussian_mixture.sample(settings.num_draws, seed=context.seed)
    axes = plots.window(reference)
    tensors |= {"axes": axes, "log_density": plots.on_grid(gaussian_mixture.log_prob, axes)}
    numbers = {
        "methods": methods,
        "mmd_between_exact_draws": noise,
        "far_share": gaussian_mixture.WEIGHTS[-1],
        "kernel": "squared MMD, unbiased, RBF with the median distance as bandwidth",
    }
    return Result(numbers, tensors)


def _repeated(method: Method, settings: Settings, context: Context) -> Result:
    """Run one method with every seed."""
    lists: dict[str, list[float]] = {"mmd": [], "far_share": [], "c_elbo": [], "seconds": []}
    draws = torch.empty(0)
    for index in range(settings.num_seeds):
        posterior = infer(gaussian_mixture.target(), method, seed=context.seed + index)
        found = posterior.sample(settings.num_draws, seed=context.seed + index)
        draws = draws if index else found
        lists["mmd"].append(_mmd(found, settings, context.seed + index))
        far = (found - torch.tensor(_FAR)).norm(dim=-1) < _REACH
        lists["far_share"].append(far.float().mean().item())
        lists["c_elbo"].append(posterior.c_elbo.item())
        lists["seconds"].append(posterior.seconds)
        context.report((index + 1) / settings.num_seeds, f"the mixture by {type(method).__name__}")
    return Result({"method": repr(method), **lists}, {"draws": draws})


def _mmd(draws: Tensor, settings: Settings, seed: int) -> float:
    """Squared MMD to exact draws that are used nowhere else."""
    return kernel_mmd(
        draws, gaussian_mixture.sample(settings.num_draws, seed=1_000_003 + seed)
    ).item()


def draw(result: Result) -> dict[str, Figure]:
    """A panel per method; MMD² and the distant component's share over all seeds."""
    methods = result.numbers["methods"]
    points = {name: result.tensors[f"draws.{name}"].numpy() for name in methods}
    means = {name: plots.mean_and_error(column(each, "mmd")) for name, each in methods.items()}
    panels = plots.contour_panels(
        result.tensors["axes"].numpy(),
        result.tensors["log_density"].numpy(),
        points,
        title="A mixture with a component apart: contours of the truth, and draws with one seed",
        subtitles={name: f"\nMMD² {mean:.4f} ± {e:.4f}" for name, (mean, e) in means.items()},
    )
    figure = plots.new_figure(9, 6.5)
    upper, lower = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    mmd = {"exact": result.numbers["mmd_between_exact_draws"]}
    mmd |= {name: column(each, "mmd") for name, each in methods.items()}
    plots.violins(upper, mmd, title="MMD² to exact draws, one dot a seed", y="MMD²", body=False)
    upper.set_yscale("symlog", linthresh=1e-3)
    share = {name: column(each, "far_share") for name, each in methods.items()}
    plots.violins(lower, share, title="Share of draws in the far component", y="share", body=False)
    lower.axhline(result.numbers["far_share"], color="0.5", ls="--", lw=1, zorder=0)
    return {"fig9": panels, "fig9-seeds": figure}


FIG9 = Experiment(
    name="fig9",
    title="A mixture of Gaussians in two dimensions as the target: draws, and MMD to exact ones",
    wanted="NF and FCN fit well, GVI does not; HMC undersamples the distant component",
    full=Settings(),
    quick=Settings(num_seeds=2, num_warmup=100, num_warmup_alone=300),
    measure=measure,
    draw=draw,
)
