"""How Auto does on models of many shapes and likelihoods: seconds, errors, and what it trusted.

    make others        or        python benchmarks/others/run.py --only "student"

Seconds are of the processor, one thread. log p(x) is held against exact sums of grids, or, of
trained models, two long runs of tempered SMC; "wrong" counts trusted answers further off than 0.1
nats and 4 standard errors, those of the reference included.
"""

import argparse
import json
import time

import torch
from models import KEPT, PRODUCTS, TRAINED, Case

import crosscoding as cc
from crosscoding.methods import Auto, TemperedSMC

_HEAD = (
    f"{'model':50} {'s/query':>8} {'trusted':>8} {'rough':>6} {'worst':>6} {'worst trusted':>13}"
    "  wrong  stages"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--no-truth", action="store_true", help="times and verdicts only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(_HEAD)
    for name, make in (PRODUCTS | TRAINED).items():
        if args.only in name:
            print(line(name, make(), truth=not args.no_truth), flush=True)


def line(name: str, case: Case, *, truth: bool) -> str:
    cc.Bank.of(case.vae)
    start = time.process_time()
    posterior = cc.condition(case.vae, case.evidence, Auto(), seed=0)
    seconds = (time.process_time() - start) / len(case.evidence.values)
    labels = [verdict.label for verdict in posterior.verdicts]
    stages = ", ".join(
        f"{stage.name} {stage.seconds.sum():.1f}s {stage.decodes.sum() / 1000:.0f}k"
        for stage in posterior.trace
    )
    text = f"{name:50} {seconds:8.2f} {labels.count('trusted'):8} {labels.count('approximate'):6}"
    if not truth:
        return f"{text}  {stages}"
    exact, error = reference(name, case)
    off = (posterior.log_evidence.double() - exact).abs()
    trusted = posterior.trusted
    limit = 0.1 + 4 * torch.hypot(posterior.log_evidence_error.double(), error)
    wrong = int((trusted & (off > limit)).sum())
    worst = off[trusted].max() if trusted.any() else torch.tensor(torch.nan)
    return f"{text} {off.max():6.3f} {worst:13.3f}  {wrong:5}  {stages}"


def reference(name: str, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x) of each query and its error; worked out once where it takes long."""
    if case.exact is not None:
        exact = case.exact()
        return exact, torch.zeros_like(exact)
    path = KEPT / f"{name}.json"
    if not path.is_file():
        method = TemperedSMC(num_particles=1024, num_moves=3, num_leapfrog=4)
        runs = [cc.condition(case.vae, case.evidence, method, seed=seed) for seed in (11, 12)]
        path.write_text(
            json.dumps(
                {
                    "log_evidence": [run.log_evidence.tolist() for run in runs],
                    "error": [run.log_evidence_error.tolist() for run in runs],
                }
            )
        )
    stored = json.loads(path.read_text())
    runs = torch.tensor(stored["log_evidence"], dtype=torch.double)
    errors = torch.tensor(stored["error"], dtype=torch.double)
    apart = 0.5 * (runs[0] - runs[1]).abs()
    return runs.mean(0), torch.maximum(0.7 * errors.mean(0), apart)


if __name__ == "__main__":
    main()
