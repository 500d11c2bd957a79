"""The queries whose price is measured: decoders of many kinds, as users would write them.

    python benchmarks/engine/price_cases.py table 1000

answers so many of them in one call, and prints seconds, decodes and verdicts as JSON. With another
version of the package on PYTHONPATH, it measures that one.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable

import torch
from queries import digit_queries, face_queries, model_of_others, wide_digit_queries
from scale import peak_mib
from torch import nn

import crosscoding as cc
from crosscoding import likelihoods

Case = Callable[[int], tuple[cc.VAE, cc.Evidence] | None]


def table(num: int) -> tuple[cc.VAE, cc.Evidence]:
    """A network 8-64-30 with Gaussian noise; 70 % of the columns are observed."""
    return simulated(8, [64], 30, likelihoods.Gaussian(0.5), num, 0.7)


def wide(num: int) -> tuple[cc.VAE, cc.Evidence]:
    """Two latent dimensions and five columns, for very many rows."""
    return simulated(2, [32], 5, likelihoods.Gaussian(0.5), num, 0.7)


def linear(dim: int, num: int) -> tuple[cc.VAE, cc.Evidence]:
    """A linear decoder with Gaussian noise, which has a closed form."""
    return simulated(dim, [], 2 * dim, likelihoods.Gaussian(0.3), num, 0.5)


def tvae(scale: float, num: int) -> tuple[cc.VAE, cc.Evidence]:
    """A decoder shaped like that of a TVAE, for numbers, their mixture components, and classes.

    Its weights are random, twice as large as those of a new network. Each query observes one to six
    columns.
    """
    number, component = likelihoods.Gaussian(scale), likelihoods.Categorical(10)
    classes = [likelihoods.Categorical(size) for size in (8, 4, 2)]
    parts = [(part, 1) for part in [number, component] * 3 + classes]
    torch.manual_seed(0)
    decoder = _network(128, [128, 128], 47, nn.ReLU)
    with torch.no_grad():
        for layer in decoder[::2]:
            layer.weight.mul_(2.0)
    vae = cc.VAE(decoder, 128, likelihoods.Mixed(parts))
    columns = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5])  # a number and its component are one
    order = torch.rand(num, 6, generator=torch.Generator().manual_seed(1)).argsort(1).argsort(1)
    mask = order[:, columns] <= torch.arange(num)[:, None] % 6
    return vae, cc.Evidence(vae.sample_prior(num, seed=5), mask)


def digits_20d(num: int) -> tuple[cc.VAE, cc.Evidence]:
    return cc.zoo.load("mnist-20d"), digit_queries(num)


def digits_2d(num: int) -> tuple[cc.VAE, cc.Evidence]:
    return cc.zoo.load("mnist-2d"), digit_queries(num)


def convolutional_digits(num: int) -> tuple[cc.VAE, cc.Evidence] | None:
    vae = model_of_others("mnist-10d-conv", likelihoods.Bernoulli(logits=False))
    return vae and (vae, wide_digit_queries(num))


def convolutional_faces(num: int) -> tuple[cc.VAE, cc.Evidence] | None:
    vae = model_of_others("celeba-10d-conv", likelihoods.Bernoulli(logits=False))
    evidence = vae and face_queries(vae, num)
    if vae is None or evidence is None:
        return None
    return vae, cc.Evidence((evidence.values + 1) / 2 * evidence.mask, evidence.mask)


CASES: dict[str, Case] = {
    "table": table,
    "wide": wide,
    "mnist-2d": digits_2d,
    "mnist-20d": digits_20d,
    "mnist-10d-conv": convolutional_digits,
    "celeba-10d-conv": convolutional_faces,
    **{f"linear {dim}": lambda num, dim=dim: linear(dim, num) for dim in (2, 32, 512)},
    **{f"tvae {scale}": lambda num, s=scale: tvae(s, num) for scale in (0.3, 0.1, 0.03, 0.01)},
}


def simulated(
    dim: int,
    hidden: list[int],
    data_dim: int,
    likelihood: likelihoods.Likelihood,
    num: int,
    observed: float,
) -> tuple[cc.VAE, cc.Evidence]:
    """A network with random weights, and data that it simulates."""
    torch.manual_seed(0)
    vae = cc.VAE(_network(dim, hidden, data_dim, nn.Tanh), dim, likelihood)
    mask = torch.rand(num, data_dim, generator=torch.Generator().manual_seed(1)) < observed
    return vae, cc.Evidence(vae.sample_prior(num, seed=2), mask)


def _network(dim: int, hidden: list[int], data_dim: int, kind: type[nn.Module]) -> nn.Sequential:
    sizes = [dim, *hidden, data_dim]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), kind()]
    return nn.Sequential(*layers[:-1])


def measured(name: str, num: int) -> dict | None:
    """Seconds and decodes per query, verdicts, and peak memory, after a first call of one query."""
    case = CASES[name](num)
    if case is None:
        return None
    vae, evidence = case
    cc.condition(vae, evidence[:1], seed=0)
    before, start = peak_mib(), time.perf_counter()
    posterior = cc.condition(vae, evidence, seed=0)
    seconds = time.perf_counter() - start
    peak = peak_mib() - before
    answers = sum(t.nbytes for t in (posterior.draws, evidence.values, evidence.mask)) / 2**20
    start = time.perf_counter()
    posterior.mean()
    of_mean = time.perf_counter() - start
    start = time.perf_counter()
    labels = [verdict.label for verdict in posterior.verdicts]
    of_verdicts = time.perf_counter() - start
    return {
        "num": num,
        "seconds": seconds / num,
        "decodes": sum(stage.decodes for stage in posterior.trace).mean().item(),
        "trusted": labels.count("trusted"),
        "log_evidence": posterior.log_evidence.tolist() if num <= 1000 else [],
        "peak_mib": peak,
        "answers_mib": answers,
        "seconds_of_mean": of_mean,
        "seconds_of_verdicts": of_verdicts,
    }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
