"""Measures how long the paper's cross-coders take, and how close they come to convergence.

    make speed

Every query is a test digit with 5, 15 or 25 % of its pixels observed at random. The shortfall is
the C-ELBO, in nats, that a fit still gains if it continues with eight times the draws and a sixth
of the learning rate until that stalls, too; both are measured on the same 20,000 fresh draws. Times
are for the whole call of `cc.condition`: start, fit and figures. Prints the results and writes them
to benchmarks/results/speed.json.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import crosscoding as cc
from crosscoding.crosscoders import FCN, Fitted, Gaussian, Planar
from crosscoding.methods import Variational
from crosscoding.random import generator_from

MODELS = ("mnist-20d", "mnist-2d")
NUM_ALONE = 6
NUM_IN_BATCH = 50
FRACTIONS = (0.05, 0.15, 0.25)
REPEATS = 3


def queries(vae: cc.VAE, num: int) -> cc.Evidence:
    digits, _ = cc.zoo.digits()
    index = torch.arange(num) * 7 % len(digits)
    masks = [
        cc.random_mask(vae.data_shape, FRACTIONS[i % len(FRACTIONS)], seed=i) for i in range(num)
    ]
    return cc.Evidence(digits[index], torch.stack(masks))


def shortfall(vae: cc.VAE, evidence: cc.Evidence, method: Variational, fitted: Fitted) -> float:
    """C-ELBO that the fit gains if it continues, in nats, averaged over its queries."""
    target = cc.VAETarget(vae, evidence).flatten()
    num_draws, learning_rate = method._tuning
    longer = replace(method, num_draws=8 * num_draws, learning_rate=learning_rate / 6)
    converged, _ = longer.fit(
        target, fitted.params, generator=generator_from(1), report=lambda share, what: None
    )
    with torch.no_grad():
        values = []
        for fit in (fitted, converged):
            z, log_q = fit.rsample_and_log_prob(20_000, generator=generator_from(2))
            values.append((target.log_joint(z) - log_q).mean(0))
    return (values[1] - values[0]).mean().item()


def alone(vae: cc.VAE, method: Variational) -> dict[str, float]:
    evidence = queries(vae, NUM_ALONE)
    seconds, shortfalls = [], []
    for i in range(NUM_ALONE):
        posterior = cc.condition(vae, evidence[i], method, seed=i)
        seconds.append(posterior.seconds)
        fitted = posterior._findings.fitted
        assert fitted is not None
        shortfalls.append(shortfall(vae, evidence[i], method, fitted))
    return {
        "median_seconds": statistics.median(seconds),
        "longest_seconds": max(seconds),
        "median_shortfall": statistics.median(shortfalls),
        "largest_shortfall": max(shortfalls),
    }


def in_batch(vae: cc.VAE, method: Variational, num: int) -> float:
    """Median seconds of one call for a batch of queries."""
    evidence = queries(vae, num)
    return statistics.median(
        cc.condition(vae, evidence, method, seed=i).seconds for i in range(REPEATS)
    )


def import_seconds() -> dict[str, float]:
    """Time that `import crosscoding` adds to `import torch`, the median of 7 interpreters."""
    code = (
        "import time; t = time.perf_counter(); import torch; u = time.perf_counter(); "
        "import crosscoding; print(u - t, time.perf_counter() - u)"
    )
    runs = [
        [float(v) for v in subprocess.check_output([sys.executable, "-c", code]).split()]
        for _ in range(7)
    ]
    torch_seconds, ours = zip(*runs, strict=True)
    return {"torch": statistics.median(torch_seconds), "added": statistics.median(ours)}


def main() -> None:
    methods = {"GVI": Gaussian(), "NF, 16 layers": Planar(16), "FCN": FCN()}
    result: dict[str, object] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "import_seconds": import_seconds(),
    }
    for model in MODELS:
        vae = cc.zoo.load(model)
        for name, crosscoder in methods.items():
            if isinstance(crosscoder, FCN) and vae.latent_dim > 3:
                continue
            method = Variational(crosscoder)
            start = time.perf_counter()
            figures = alone(vae, method)
            if isinstance(crosscoder, Gaussian):
                seconds = in_batch(vae, method, NUM_IN_BATCH)
                figures[f"seconds_of_{NUM_IN_BATCH}_in_one_call"] = seconds
            result[f"{model}, {name}"] = figures
            print(f"{model}, {name}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)
    path = Path(__file__).parent / "results" / "speed.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"import: {result['import_seconds']}; wrote {path}")


if __name__ == "__main__":
    main()
