"""Measures other libraries on the same decoder and the same evidence as crosscoding.

    make peers        or        python benchmarks/peers/run.py --num-queries 12

A query is an MNIST test digit with 5, 15 or 25 % of its pixels observed at random, or one quadrant.
Each peer's script runs in a separate environment (requirements.txt beside this file) on
problem.npz, which holds the decoder, the evidence and reference values of log p(x). The result is
the wall-clock time, without compilation, until the error of log p(x) is below 0.1 nats. Errors are
evaluated at checkpoints. Two choices favour the peers: they may stop at the first checkpoint that
is accurate enough, and the best of their estimates counts. Writes benchmarks/results/peers.json.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problem_file import Problem

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import Grid, Variational
from crosscoding.random import generator_from

HERE = Path(__file__).parent
SCRIPTS = ("numpyro_peers.py", "pyro_peers.py", "blackjax_peers.py")
KINDS = ("5 %", "15 %", "25 %", "quadrant")
NUM_CHECKS = 8  # points at which a peer's log p(z, x) is compared with ours


def queries(vae: cc.VAE, num: int) -> cc.Evidence:
    """Queries about test digits, with the kinds of mask in turn."""
    digits, _ = cc.zoo.digits()
    index = torch.arange(num) * 7 % len(digits)
    return cc.Evidence(digits[index], torch.stack([_mask(vae.data_shape, i) for i in range(num)]))


def _mask(shape: torch.Size, i: int) -> torch.Tensor:
    kind, turn = KINDS[i % len(KINDS)], i // len(KINDS)
    if kind == "quadrant":
        halves = ((0, 13), (14, 27))
        return cc.rectangle_mask(shape, rows=halves[turn % 2], columns=halves[turn // 2 % 2])
    return cc.random_mask(shape, int(kind.split()[0]) / 100, seed=i)


def reference(vae: cc.VAE, evidence: cc.Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x) of each query and its standard error, in nats.

    Exact up to three latent dimensions. Above, by importance sampling from a mixture of a Gaussian
    fit, a wider copy and the prior, which is accurate as long as the fit is good.
    """
    if vae.latent_dim <= 3:
        posterior = cc.condition(vae, evidence, Grid(tolerance=1e-4), seed=0)
        return posterior.log_evidence, posterior.log_evidence_error
    posterior = cc.condition(vae, evidence, Variational(Gaussian()), seed=0)
    return defensive_importance(cc.VAETarget(vae, evidence), posterior)


@torch.no_grad()
def defensive_importance(
    target: cc.VAETarget, posterior: cc.Posterior, rounds: int = 100, num: int = 1000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Importance sampling from 0.6 q + 0.3 (q scaled by 1.3) + 0.1 prior, q the Gaussian fit."""
    generator = generator_from(1)
    mean = posterior.sample(20_000, seed=generator).mean(0)
    dim, wider = target.latent_dim, 1.3
    log_weights = []
    for _ in range(rounds):
        z = posterior.sample(num, seed=generator)
        pick = torch.rand(z.shape[:-1], generator=generator)[..., None]
        z = torch.where(pick < 0.6, z, mean + wider * (z - mean))
        z = torch.where(pick < 0.9, z, torch.randn(z.shape, generator=generator))
        narrow = posterior.log_prob(z) + np.log(0.6)
        wide = posterior.log_prob(mean + (z - mean) / wider) - dim * np.log(wider) + np.log(0.3)
        prior = target.log_prior(z) + np.log(0.1)
        log_q = torch.stack([narrow, wide, prior]).logsumexp(0)
        log_weights.append(target.log_joint(z) - log_q)
    log_weights = torch.cat(log_weights)
    log_mean = log_weights.logsumexp(0) - np.log(len(log_weights))
    relative = (log_weights - log_mean).exp()
    return log_mean, relative.std(0) / np.sqrt(len(log_weights))


def problem_of(vae: cc.VAE, evidence: cc.Evidence, log_evidence: np.ndarray) -> Problem:
    """The problem for the peers, from a decoder of two linear layers with a ReLU in between."""
    first, second = (m for m in vae.decoder.modules() if isinstance(m, torch.nn.Linear))
    z = torch.randn(NUM_CHECKS, vae.latent_dim, generator=generator_from(2))
    target = cc.VAETarget(vae, evidence)
    log_joint = target.log_joint(z[:, None].expand(-1, len(evidence.values), -1))
    arrays = {
        "weight_0": first.weight.mT,
        "bias_0": first.bias,
        "weight_1": second.weight.mT,
        "bias_1": second.bias,
        "values": evidence.values.flatten(1),
        "mask": evidence.mask.flatten(1),
        "check_z": z,
        "check_log_joint": log_joint.mT,
    }
    arrays = {name: np.ascontiguousarray(a.detach().numpy()) for name, a in arrays.items()}
    return Problem(**arrays, log_evidence=log_evidence)


def run_script(script: str, problem: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one peer's script and return its rows; if it fails, the rows so far and the reason."""
    out = problem.with_name(f"{script}.json")
    python = HERE / ".venv" / "bin" / "python"
    options = {
        "seed": args.seed,
        "budget-seconds": args.budget_seconds,
        "batch-budget-seconds": args.batch_budget_seconds,
        "num-alone": args.num_alone,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    failure = None
    try:
        command = [str(python), str(HERE / script), str(problem), str(out), *flags]
        done = subprocess.run(command, timeout=args.time_limit, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            failure = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        failure = f"stopped after {args.time_limit:.0f} s"
    except OSError as error:
        failure = f"cannot start: {error}; `make peers` sets up its environment"
    rows = json.loads(out.read_text()) if out.exists() else []
    return rows + ([{"peer": script, "failed": failure}] if failure else [])


def main() -> None:
    args = _arguments()
    given = dict(part.split("=", 1) for part in args.reference)
    rows: list[dict[str, Any]] = []
    for model in args.models:
        vae = cc.zoo.load(model)
        evidence = queries(vae, args.num_queries)
        if model in given:
            with np.load(given[model]) as stored:
                log_evidence, error = stored["log_evidence"][: args.num_queries], 0.0
        else:
            found = [figure.numpy() for figure in reference(vae, evidence)]
            log_evidence, error = found[0], float(found[1].max())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(args.keep or folder) / f"{model}.npz"
            problem_of(vae, evidence, log_evidence).save(path)
            for script in args.scripts:
                for row in run_script(script, path, args):
                    rows.append({"model": model, "reference_error": error, **row})
                    print(_line(rows[-1]), flush=True)
        _write(args.out, rows, args)


def _line(row: dict[str, Any]) -> str:
    name = f"{row['model']}, {row['peer']}, {row.get('form', '-')}"
    if "failed" in row:
        return f"{name}: {row['failed']}"
    times = [query["seconds_to_0.1"] for query in row["queries"]]
    reached = [time for time in times if time is not None]
    middle = f", median {np.median(reached):.3g} s" if reached else ""
    worst = max(abs(query["final_error"] or np.inf) for query in row["queries"])
    return f"{name}: reached {len(reached)} of {len(times)}{middle}; worst error {worst:.2g} nats"


def _write(path: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    result = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "num_queries": args.num_queries,
        "kinds": KINDS,
        "seed": args.seed,
        "rows": rows,
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-queries", type=int, default=8)
    parser.add_argument("--num-alone", type=int, default=4, help="queries also answered alone")
    parser.add_argument("--budget-seconds", type=float, default=10.0, help="for a single query")
    parser.add_argument("--batch-budget-seconds", type=float, default=30.0, help="for a batch")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds per script")
    parser.add_argument("--quick", action="store_true", help="one query alone, two in a batch")
    parser.add_argument("--models", nargs="+", default=["mnist-2d", "mnist-20d"])
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reference",
        nargs="*",
        default=[],
        metavar="MODEL=FILE",
        help="npz with log_evidence (Q,) of at least these queries, in the order of `queries`",
    )
    parser.add_argument("--keep", help="folder in which to keep problem.npz and raw rows")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "results" / "peers.json", help="results file"
    )
    args = parser.parse_args()
    if args.quick:
        args.num_queries, args.num_alone = 2, 1
        args.budget_seconds = args.batch_budget_seconds = 5.0
    return args


if __name__ == "__main__":
    main()
