"""What amortised cross-coders save: answers of `Auto` with and without, on the same queries.

    python benchmarks/amortise.py table table-512 mnist-20d [--seconds 300] [--queries 200]

Trains a network for each case, or takes that of an earlier run in out/amortise, and writes
benchmarks/results/amortise.json. Times are CPU seconds of one thread, which load from others hardly
changes. Queries are those of the engine's benchmark. The first call of each model is not counted.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import crosscoding as cc
from crosscoding.diagnostics import importance_ess

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "engine"))

from price_cases import CASES  # noqa: E402

_NUM_DRAWS = 1000  # of bare proposals
_MASKS = {"mnist-20d": (0.05, 0.15, 0.25), "table": (0.7,), "table-512": (0.7,)}


def wide_table(num: int) -> tuple[cc.VAE, cc.Evidence]:
    """As `table`, with a decoder 8-512-512-30, which costs over 100 times as much."""
    torch.manual_seed(0)
    sizes, layers = (8, 512, 512, 30), list[torch.nn.Module]()
    for before, after in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.Tanh()]
    decoder = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for layer in decoder[::2]:
            layer.weight.mul_(1.5)
    vae = cc.VAE(decoder, 8, cc.likelihoods.Gaussian(0.5))
    mask = torch.rand(num, 30, generator=torch.Generator().manual_seed(1)) < 0.7
    return vae, cc.Evidence(vae.sample_prior(num, seed=2), mask)


_CASES = {**CASES, "table-512": wide_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=sorted(_CASES))
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, by the clock")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--twins", type=int, default=200, help="simulated queries, for ranks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = ROOT / "benchmarks" / "results" / "amortise.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.cases:
        kept[name] = measured(name, args.seconds, args.queries, args.twins)
        print(name, json.dumps(kept[name], indent=1), flush=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")


def measured(name: str, seconds: float, num: int, num_twins: int) -> dict[str, Any]:
    """The figures of a case."""
    case = _CASES[name](num)
    if case is None:
        raise SystemExit(f"{name} needs CROSSCODING_MODELS and CROSSCODING_DATA")
    vae, evidence = case
    fast, training = trained(name, vae, seconds)
    record = fast.amortised.record
    without, others = answered(vae, evidence)
    found, answers = answered(fast, evidence)
    gap = (answers.log_evidence - others.log_evidence).abs()
    both = answers.trusted & others.trusted
    saved = (without["cpu_ms"] - found["cpu_ms"]) / 1e3
    return {
        "queries": num,
        "training": training,
        "bound": [record.bound, record.error],
        "outside": record.outside,
        "shares": record.to_json()["shares"],
        "coverage": record.to_json()["coverage"],
        "bare": bare(fast, evidence),
        "without": without,
        "with": found,
        "gap": {"median": float(gap[both].median()), "largest": float(gap[both].max())},
        "pays_after": training["cpu_seconds"] / saved if saved > 0 else None,
        "ranks": ranks(name, fast, num_twins) if num_twins else None,
    }


def trained(name: str, vae: cc.VAE, seconds: float) -> tuple[cc.VAE, dict[str, float]]:
    """The model with a network: that of an earlier run, or one that is trained now."""
    folder = ROOT / "out" / "amortise" / name
    figures = folder.with_suffix(".json")
    if not figures.is_file():
        start = time.process_time()
        checkpoint = folder.with_name(f"{name}-checkpoint")
        fast = cc.amortise(vae, max_seconds=seconds, checkpoint=checkpoint, seed=0)
        record = fast.amortised.record
        fast.save(folder)
        cpu = time.process_time() - start
        figures.write_text(json.dumps({"cpu_seconds": cpu, "steps": record.steps}))
    fast = vae.with_amortised(cc.load_vae(folder).amortised)
    return fast, json.loads(figures.read_text())


def answered(vae: cc.VAE, evidence: cc.Evidence) -> tuple[dict[str, float], cc.Posterior]:
    """CPU milliseconds and decodes per query, and how many are trusted."""
    cc.condition(vae, evidence[:1], seed=0)
    start, num = time.process_time(), len(evidence.values)
    posterior = cc.condition(vae, evidence, seed=0, progress=False)
    cpu = time.process_time() - start
    decodes = sum(stage.decodes for stage in posterior.trace)
    used = [stage for stage in posterior.trace if stage.name == "amortised"]
    others = ("bank", "amortised", "look", "closed form")
    later = sum(stage.decodes for stage in posterior.trace if stage.name not in others)
    figures = {
        "cpu_ms": 1e3 * cpu / num,
        "decodes": float(decodes.mean()),
        "median_decodes": float(decodes.median()),
        "trusted": int(posterior.trusted.sum()),
    }
    if used:
        figures["left_to_others"] = int((torch.as_tensor(later) > 0).sum())
    return figures, posterior


@torch.no_grad()
def bare(vae: cc.VAE, evidence: cc.Evidence) -> dict[str, float]:
    """ESS per draw of the network's own proposals."""
    shares = []
    for start in range(0, len(evidence.values), 50):
        some = evidence[start : start + 50]
        proposal = vae.amortised.propose(some.values, some.exact)
        generator = torch.Generator().manual_seed(0)
        z, log_q = proposal.rsample_and_log_prob(_NUM_DRAWS, generator=generator)
        target = cc.VAETarget(vae, some).flatten()
        shares.append(importance_ess(target.log_joint(z) - log_q) / _NUM_DRAWS)
    ess = torch.cat(shares).double()
    levels = ess.quantile(torch.tensor([0.5, 0.1], dtype=torch.double))
    return dict(zip(("median", "tenth"), levels.tolist(), strict=True))


def ranks(name: str, vae: cc.VAE, num: int) -> dict[str, float]:
    """p-value of uniform ranks of simulated z and data among trusted answers, and their number."""
    shares = _MASKS.get(name, (0.1, 0.2))
    masks = torch.stack([mask_of(vae, share, seed) for seed, share in enumerate(shares)])
    report = cc.calibrate(vae, masks, num=num, seed=1, progress=False)
    trusted = report.ranks.select(report.trusted)
    return {"num": num, "trusted": int(report.trusted.sum()), "p": float(trusted.p_value())}


def mask_of(vae: cc.VAE, share: float, seed: int) -> Tensor:
    return cc.random_mask(vae.data_shape, share, seed=seed)


if __name__ == "__main__":
    main()
