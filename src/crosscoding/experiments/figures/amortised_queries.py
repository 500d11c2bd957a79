"""`amortised`: a network trained on the model's own draws, beside a fit for every query.

The network gives q(z|x) for any evidence, as the prior networks of Wu, Domke & Sanner (2022) do.

- Twins z*, x, y are simulated. The latent error is KL(p(z|x) ‖ q(z|x)), and the query error
  KL(p(y|x) ‖ q(y|x)), with q(y|x) = ∫ q(z|x) p(y|z) dz. Both are means over twins, and the second
  is at most the first, as y is a function of z and noise.
- Digits are asked about with the network alone, and with Algorithm 1 (GVI), which fits q(z|x) anew.
  Both give a Gaussian with a full covariance. GVI maximises the C-ELBO of each query, the network
  E log q(z|x) over twins.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from crosscoding import plots, zoo
from crosscoding.amortisation import amortise
from crosscoding.conditioning import condition
from crosscoding.crosscoders import Gaussian
from crosscoding.diagnostics import log_mean_exp
from crosscoding.evidence import Evidence
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.figures.digit_sets import random_sets
from crosscoding.experiments.problem import column, digest
from crosscoding.masks import mixed
from crosscoding.methods import Variational
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from
from crosscoding.result.posterior import Posterior
from crosscoding.target.vae_target import VAETarget

_AT_ONCE = 50  # queries


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Args:
        models: Names of VAEs of the zoo.
        seconds: Of training, for each of them.
        num_twins: Simulated queries.
        num_sets: Evidence sets on digits, as in Figure 4.
        fractions: Shares of their pixels that are observed.
        num_draws: Draws of each q(z|x).
        num_timed: Queries that are timed alone.
    """

    models: tuple[str, ...] = ("mnist-2d", "mnist-20d")
    seconds: float = 300.0
    num_twins: int = 200
    num_sets: int = 50
    fractions: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25)
    num_draws: int = 1000
    num_timed: int = 5


def measure(settings: Settings, context: Context) -> Result:
    """Train a network for each model, simulate twins, and ask about digits."""
    models = {}
    for name in settings.models:
        vae = zoo.load(name)
        key = {"vae": digest(vae), "settings": settings}

        def work(name: str = name, vae: VAE = vae) -> Result:
            start = time.perf_counter()
            faster = amortise(
                vae,
                max_seconds=settings.seconds,
                seed=context.seed,
                progress=False,
                crosscoder=Gaussian(),
                report=context.report,
            )
            seconds = time.perf_counter() - start
            numbers = {"training_seconds": seconds, "twins": _on_twins(faster, settings, context)}
            return Result(numbers | _on_digits(name, faster, settings, context))

        models[name] = context.part(f"amortised-{name}", key, work).numbers
    return Result({"models": models})


@torch.no_grad()
def _on_twins(vae: VAE, settings: Settings, context: Context) -> dict[str, Any]:
    """The latent and the query error, one of each for every twin with trusted answers.

    log p(z*|x) / q(z*|x) is an unbiased estimate of the first. With draws of p(z|x, y), the mean of
    q(z|x) / p(z|x) is q(y|x) / p(y|x), whose logarithm gives the second.
    """
    generator = generator_from(context.seed)
    z, data = vae.simulate(settings.num_twins, generator=generator)
    mask = mixed().draw(len(data), vae.data_shape, generator=generator)
    plain, complete = vae.with_amortised(None), torch.ones_like(mask)
    part, whole = (condition(plain, Evidence(data, m), seed=context.seed) for m in (mask, complete))
    draws = whole.sample(settings.num_draws, seed=context.seed)
    of_truth, of_draws = (_log_ratio(vae, data, mask, points, part) for points in (z[None], draws))
    known = part.trusted & whole.trusted
    query = -log_mean_exp(of_draws)[0]
    return {"latent": -of_truth[0][known], "query": query[known], "num": len(data)}


def _log_ratio(vae: VAE, data: Tensor, mask: Tensor, z: Tensor, part: Posterior) -> Tensor:
    """log q(z|x) / p(z|x) of the network, (S, B), at points z (S, B, latent)."""
    log_posterior = VAETarget(vae, Evidence(data, mask)).log_joint(z) - part.log_evidence
    return _proposal(vae, data, mask).log_prob(z) - log_posterior


def _proposal(vae: VAE, data: Tensor, mask: Tensor) -> Any:
    assert vae.amortised is not None
    return vae.amortised.propose(torch.where(mask, data, 0.0), mask)


def _on_digits(name: str, vae: VAE, settings: Settings, context: Context) -> dict[str, Any]:
    """C-ELBO, log p(y|x) and seconds of the network alone and of GVI, and log p(x) by Auto."""
    plain, fit = vae.with_amortised(None), Variational(Gaussian(), num_fresh=settings.num_draws)
    problem = random_sets(f"{name}-amortised", plain, settings, context.seed)
    truth, mask = problem.truth, problem.mask
    exact = condition(plain, Evidence(truth, mask), seed=context.seed)
    fitted = condition(plain, Evidence(truth, mask), fit, seed=context.seed)
    bound, query, of_network = _network(vae, truth, mask, settings, context)
    timed = [slice(i, i + 1) for i in range(settings.num_timed)]
    alone = [_network(vae, truth[one], mask[one], settings, context)[2] for one in timed]
    fits_alone = [
        condition(plain, Evidence(truth[one], mask[one]), fit, seed=context.seed).seconds
        for one in timed
    ]
    return {
        "log_evidence": exact.log_evidence,
        "trusted": exact.trusted,
        "network": {
            "c_elbo": bound,
            "query_log_prob": query,
            "seconds_a_query": of_network / len(truth),
            "seconds_alone": float(np.median(alone)),
        },
        "GVI": {
            "c_elbo": fitted.c_elbo,
            "query_log_prob": _query_log_prob(plain, truth, mask, fitted.draws),
            "seconds_a_query": fitted.seconds / len(truth),
            "seconds_alone": float(np.median(fits_alone)),
        },
    }


@torch.no_grad()
def _network(
    vae: VAE, truth: Tensor, mask: Tensor, settings: Settings, context: Context
) -> tuple[Tensor, Tensor, float]:
    """C-ELBO and log p(y|x) from draws of the network, (B,) each; seconds of the first alone."""
    start, generator = time.perf_counter(), generator_from(context.seed)
    proposal = _proposal(vae, truth, mask)
    z, log_q = proposal.rsample_and_log_prob(settings.num_draws, generator=generator)
    bound = (VAETarget(vae, Evidence(truth, mask)).log_joint(z) - log_q).mean(0)
    seconds = time.perf_counter() - start
    return bound, _query_log_prob(vae, truth, mask, z), seconds


@torch.no_grad()
def _query_log_prob(vae: VAE, truth: Tensor, mask: Tensor, z: Tensor) -> Tensor:
    """log of the mean of p(y|z) over draws (S, B, latent), as in the paper: (B,)."""
    parts = [
        log_mean_exp(VAETarget(vae, Evidence(truth[own], ~mask[own])).log_likelihood(z[:, own]))[0]
        for own in (slice(i, i + _AT_ONCE) for i in range(0, len(truth), _AT_ONCE))
    ]
    return torch.cat(parts)


def breaks_even(model: dict[str, Any]) -> float:
    """Queries after which training is paid back, asked one at a time; infinite if it never is."""
    saved = model["GVI"]["seconds_alone"] - model["network"]["seconds_alone"]
    return model["training_seconds"] / saved if saved > 0 else np.inf


def draw(result: Result) -> dict[str, Figure]:
    """For each model: the two errors of twins, C-ELBO gaps on digits, and the cost of queries."""
    models = result.numbers["models"]
    figure = plots.new_figure(9, 3.2 * len(models))
    rows: Any = figure.subplots(len(models), 3, squeeze=False)
    for row, (name, model) in zip(rows, models.items(), strict=True):
        twins = column(model["twins"], "latent"), column(model["twins"], "query")
        labels = ["latent", "query"]
        row[0].boxplot(twins, tick_labels=labels, showmeans=True, showfliers=False)
        plots.tidy(row[0], title=f"{name}: errors of twins", y="nats")
        exact, known = column(model, "log_evidence"), column(model, "trusted") > 0
        ours, fits = (exact - column(model[each], "c_elbo") for each in ("network", "GVI"))
        plots.scatter_pair(row[1], ours[known], fits[known], ("network", "GVI"))
        row[1].set_title(f"log p(x) − C-ELBO\n{row[1].get_title()}", fontsize=9)
        num = np.logspace(0, 5, 50)
        for label, extra in (("network", model["training_seconds"]), ("GVI", 0.0)):
            cost = extra + num * model[label]["seconds_alone"]
            row[2].plot(num, cost, color=plots.colour_of(label), label=label)
        row[2].set(xscale="log", yscale="log")
        plots.tidy(row[2], title="asked one at a time", x="queries", y="seconds")
        row[2].legend(fontsize=8, frameon=False)
    return {"amortised": figure}


AMORTISED = Experiment(
    name="amortised",
    title="A network for all queries, trained on the model's draws, beside a fit for each query",
    wanted="the query error is at most the latent error; the network answers faster than a fit",
    full=Settings(),
    quick=Settings(models=("mnist-2d",), seconds=5.0, num_twins=20, num_sets=5, num_timed=1),
    measure=measure,
    draw=draw,
)
