"""Measures `Auto` on decoders and likelihoods of many kinds: times, verdicts and errors.

log p(x) is compared with sums over fine grids, or for trained models with two long runs of tempered
SMC. A trusted answer is wrong if its error exceeds 0.1 nats plus 4 standard errors, its own and the
reference's combined.
"""

import json
import time

import torch
from other_decoder_cases import KEPT, PRODUCTS, TRAINED, Case
from table import Row, Section, Setup
from torch import Tensor

import crosscoding as cc
from crosscoding.methods import Auto, TemperedSMC

_ERROR = 0.1
_QUICK = "beta-binomial, D = 8"


def measure(setup: Setup) -> Section:
    section = Section()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, make in (PRODUCTS | TRAINED).items():
        if not setup.quick or name == _QUICK:
            row, section.figures[name] = _measure(name, make())
            section.rows.append(row)
    torch.set_num_threads(threads)
    return section


def _measure(name: str, case: Case) -> tuple[Row, dict[str, list]]:
    cc.Bank.of(case.vae)
    start = time.process_time()
    posterior = cc.condition(case.vae, case.evidence, Auto(), seed=0)
    seconds = (time.process_time() - start) / len(case.evidence.values)
    exact, error = _reference(name, case)
    off = (posterior.log_evidence.double() - exact).abs()
    trusted = posterior.trusted
    limit = _ERROR + 4 * torch.hypot(posterior.log_evidence_error.double(), error)
    wrong = int((trusted & (off > limit)).sum())
    labels = [verdict.label for verdict in posterior.verdicts]
    among = f"{off[trusted].max():.2g} nats among these, " if trusted.any() else ""
    row = Row(
        name,
        "no trusted answer wrong",
        f"{int(trusted.sum())} of {len(labels)} trusted; largest error {among}{off.max():.2g} nats "
        f"among all; {seconds:.2g} s per query",
        wrong == 0,
        "against exact sums over grids"
        if case.exact
        else f"against tempered SMC, which is accurate to {error.max():.1g} nats",
    )
    figures = {
        "errors": off.tolist(),
        "reference_errors": error.tolist(),
        "labels": labels,
        "processor_seconds": [seconds],
    }
    return row, figures


def _reference(name: str, case: Case) -> tuple[Tensor, Tensor]:
    """log p(x) of each query and its error; cached if it takes long."""
    if case.exact is not None:
        exact = case.exact()
        return exact, torch.zeros_like(exact)
    path = KEPT / f"{name}.json"
    if not path.is_file():
        method = TemperedSMC(num_particles=1024, num_moves=3, num_leapfrog=4)
        runs = [cc.condition(case.vae, case.evidence, method, seed=seed) for seed in (11, 12)]
        found = {
            "log_evidence": [run.log_evidence.tolist() for run in runs],
            "error": [run.log_evidence_error.tolist() for run in runs],
        }
        path.write_text(json.dumps(found))
    stored = json.loads(path.read_text())
    runs = torch.tensor(stored["log_evidence"], dtype=torch.double)
    errors = torch.tensor(stored["error"], dtype=torch.double)
    apart = 0.5 * (runs[0] - runs[1]).abs()
    return runs.mean(0), torch.maximum(0.7 * errors.mean(0), apart)
