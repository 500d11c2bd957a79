"""Measures Pyro: SVI with a full-covariance Gaussian. See problem_file.py for input and output.

python pyro_peers.py problem.npz out.json --seed 0 --budget-seconds 30
"""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import problem_file
import pyro
import pyro.distributions as dist
import torch
from problem_file import NUM_DRAWS, NUM_MANY, Peer, Problem, Track
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import ClippedAdam
from pyro.poutine import condition, trace
from torch import Tensor
from torch.distributions import constraints

Query = tuple[Tensor, Tensor, Tensor, Tensor]  # last weight, bias, values, mask


def queries_of(problem: Problem) -> Callable[[np.ndarray], Query]:
    """A function that selects the evidence of some queries, stacked along a first dimension."""
    stored = [torch.from_numpy(array) for array in problem.evidence().values()]
    return lambda index: tuple(array[index] for array in stored)


def model_of(problem: Problem) -> Callable[..., None]:
    weight_0, bias_0 = torch.from_numpy(problem.weight_0), torch.from_numpy(problem.bias_0)

    def model(weight: Tensor, bias: Tensor, values: Tensor, mask: Tensor) -> None:
        with pyro.plate("queries", len(values), dim=-1):
            prior = dist.Normal(weight_0.new_zeros(()), 1.0).expand([problem.latent_dim])
            z = pyro.sample("z", prior.to_event(1))
            hidden = torch.relu(z @ weight_0 + bias_0)
            logits = torch.einsum("...qh,qhr->...qr", hidden, weight) + bias
            pixels = dist.Bernoulli(logits=logits, validate_args=False).mask(mask).to_event(1)
            pyro.sample("x", pixels, obs=values)

    return model


def guide_of(problem: Problem, size: int, init_scale: float) -> Callable[..., None]:
    """One full-covariance Gaussian per query, started at the prior's mean.

    For a single query, this is AutoMultivariateNormal. For a batch, that guide would be one joint
    Gaussian over the latents of all queries.
    """

    def guide(*query: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(size, problem.latent_dim))
        eye = init_scale * torch.eye(problem.latent_dim)
        scale_tril = pyro.param(
            "scale_tril",
            lambda: eye.expand(size, -1, -1).clone(),
            constraint=constraints.lower_cholesky,
        )
        with pyro.plate("queries", size, dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    return guide


def log_joint(model: Callable[..., None], query: Query, z: Tensor) -> Tensor:
    """log p(z, x) in nats of every query at z (*sample, B, D), as Pyro computes it."""
    found = trace(condition(model, data={"z": z})).get_trace(*query)
    found.compute_log_prob()
    return found.nodes["z"]["log_prob"] + found.nodes["x"]["log_prob"]


@torch.no_grad()
def estimates(model: Callable[..., None], query: Query) -> dict[str, Tensor]:
    """C-ELBO and importance estimates of log p(x) from the guide, each (B,), in nats."""
    q = dist.MultivariateNormal(pyro.param("loc"), scale_tril=pyro.param("scale_tril"))
    log_weights = []
    for _ in range(NUM_MANY // NUM_DRAWS):
        z = q.sample((NUM_DRAWS,))
        log_weights.append(log_joint(model, query, z) - q.log_prob(z))
    many = torch.cat(log_weights)
    return {
        "c_elbo": log_weights[0].mean(0),
        f"importance_{NUM_DRAWS}": log_weights[0].logsumexp(0) - math.log(NUM_DRAWS),
        f"importance_{NUM_MANY}": many.logsumexp(0) - math.log(len(many)),
    }


def svi(
    num_particles: int,
    learning_rate: dict[str, float],
    checkpoints: tuple[int, ...],
    init_scale: float,
    jit: bool,
    problem: Problem,
    form: str,
    seed: int,
) -> Callable[[np.ndarray, Track, float], float]:
    """A function that answers queries by SVI; checkpoints are numbers of steps."""
    pyro.enable_validation(False)
    torch.set_num_threads(1)  # two are no faster at these sizes, and much slower on busy cores
    take, model = queries_of(problem), model_of(problem)
    size = problem.num_queries if form == "batch" else 1
    guide = guide_of(problem, size, init_scale)
    options = {"num_particles": num_particles, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = JitTrace_ELBO(ignore_jit_warnings=True, **options) if jit else Trace_ELBO(**options)
    everything = np.arange(problem.num_queries)
    groups = [everything] if form == "batch" else list(everything[:, None])
    points = torch.from_numpy(problem.check_z)[:, None]
    agreed = [log_joint(model, take(g), points.expand(-1, len(g), -1)).mT for g in groups]
    problem.check(torch.cat(agreed).numpy())

    def fresh(index: np.ndarray) -> tuple[SVI, Query]:
        pyro.set_rng_seed(seed + int(index[0]))
        pyro.clear_param_store()
        query = take(index)
        guide(*query)  # parameters must exist before the traced loss runs again
        decay = 0.5 ** (1 / learning_rate["half_life"])
        adam = ClippedAdam({"lr": learning_rate["start"], "lrd": decay})
        return SVI(model, guide, adam, loss), query

    def answer(index: np.ndarray, track: Track, budget: float) -> float:
        engine, query = fresh(index)
        done, seconds, elapsed = 0, 0.0, 0.0
        for num in checkpoints:
            start = time.perf_counter()
            while done < num and seconds + time.perf_counter() - start < budget:
                engine.step(*query)
                done += 1
            seconds += time.perf_counter() - start
            start = time.perf_counter()
            found = estimates(model, query)
            elapsed = time.perf_counter() - start
            track.add(seconds + elapsed, found, steps=np.full(len(index), done))
            if track.done() or seconds >= budget:
                break
        return seconds + elapsed

    first, query = fresh(groups[0])
    first.step(*query)
    return answer


_SETTINGS = {
    "num_particles": 16,
    "learning_rate": {"start": 0.03, "half_life": 500.0},
    "checkpoints": (125, 250, 500, 1000, 2000, 4000),
    "init_scale": 1.0,
    "jit": True,
}

PEERS = {
    "svi-mvn": Peer(
        "Pyro SVI, MultivariateNormal",
        {
            **_SETTINGS,
            "guide": "AutoMultivariateNormal's, written out so that it batches",
            "init": "prior mean",
            "optimiser": "ClippedAdam",
            "threads": 1,
            "batch": "a plate over queries",
        },
        partial(svi, *_SETTINGS.values()),
    ),
}

if __name__ == "__main__":
    problem_file.main("pyro", pyro.__version__, PEERS)
