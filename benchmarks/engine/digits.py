"""Measures errors and times of `Auto` on batches of partly observed digits."""

import math
import statistics
import time

import modes
import reference
import torch
from queries import digit_queries, kinds
from table import Row, Section, Setup

import crosscoding as cc

_RUNS = 3
_NUM_REFERENCED = 25  # queries in 20 dimensions that get a reference, which takes long


def timed(vae: cc.VAE, evidence: cc.Evidence, runs: int = _RUNS) -> tuple[cc.Posterior, float]:
    """The answer of `Auto`, and the median seconds of calls after the model's bank is built."""
    cc.Bank.of(vae)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        posterior = cc.condition(vae, evidence, method=cc.methods.Auto(), seed=0)
        seconds.append(time.perf_counter() - start)
    return posterior, statistics.median(seconds)


def answer_figures(source: str, posterior: cc.Posterior, num: int, seconds: float) -> dict:
    """The figures of a batch of answers that every section records."""
    return {
        "num": num,
        "seconds_per_query": seconds / num,
        "source": source,
        "labels": [verdict.label for verdict in posterior.verdicts],
        "stages": {stage.name: int((stage.seconds > 0).sum()) for stage in posterior.trace},
        "stage_seconds": {s.name: s.seconds.sum() for s in posterior.trace},
        "kinds": kinds(num),
    }


def two_d(setup: Setup) -> Section:
    vae, num = cc.zoo.load("mnist-2d"), setup.num(1000, 20)
    evidence = digit_queries(num)
    posterior, seconds = timed(vae, evidence)
    # The same answers with more draws kept: with 1,000, the masses are noisy themselves.
    more = cc.condition(vae, evidence, cc.methods.Auto(num_draws=10_000), seed=0)
    known, regions, exact = [], [], []
    for part in reference.exact_parts(vae, evidence):
        known.append(part.log_evidence)
        exact.append(part.sample(1000, seed=1))
        cells = (part.draws, part.log_weights, part._findings.cell_width)
        regions += [modes.Regions(*(c[:, b] for c in cells)) for b in range(len(known[-1]))]
    log_evidence = torch.cat(known)
    errors = (posterior.log_evidence - log_evidence).abs()
    masses = {
        name: torch.tensor([found.error(draws[:, b]) for b, found in enumerate(regions)])
        for name, draws in {
            "mass_errors": posterior.draws,
            "mass_errors_of_10000": more.draws,
            "mass_errors_of_1000_exact": torch.cat(exact, 1),
        }.items()
    }
    figures = answer_figures("mnist-2d", posterior, num, seconds) | {
        "errors": errors,
        **masses,
        "num_modes": [found.num for found in regions],
        "log_evidence": log_evidence,
    }
    called = f"{num:,} queries in one call"
    several = sum(found.num > 1 for found in regions)
    largest = masses["mass_errors_of_10000"]
    within = (largest <= 0.02).double().mean().item()
    mean, tail = errors.mean().item(), errors.double().quantile(0.99).item()
    how = "against Grid(tolerance=1e-4)"
    rows = [
        Row(
            f"mnist-2d, {called}: |log p(x) error|",
            "mean ≤ 0.01, 99 % ≤ 0.05 nats",
            f"mean {mean:.2g}, 99 % {tail:.2g}, largest {errors.max():.2g}",
            mean <= 0.01 and tail <= 0.05,
            how,
        ),
        Row(
            f"mnist-2d, {called}: seconds",
            "≤ 2 ms per query",
            f"{1e3 * seconds / num:.3g} ms per query",
            seconds / num <= 0.002,
            f"median of {_RUNS} calls, with the bank already built",
        ),
        Row(
            f"mnist-2d, {called}: masses of modes",
            "within 0.02",
            f"{within:.1%} of queries within 0.02; largest {largest.max():.2g}",
            largest.max().item() <= 0.02,
            f"a mode is a connected region above {modes.SHARE:.0%} of the highest exact density, "
            f"with all that is nearest to it ({several} queries have several). The error is the "
            "largest one of a mode's mass, with 10,000 draws kept. With the usual 1,000 draws, the "
            f"largest error is {masses['mass_errors'].max():.2g}; with 1,000 exact draws, it is "
            f"{masses['mass_errors_of_1000_exact'].max():.2g}",
        ),
    ]
    return Section(rows, figures)


def twenty_d(setup: Setup) -> Section:
    vae, num = cc.zoo.load("mnist-20d"), setup.num(200, 3)
    evidence = digit_queries(num)
    posterior, seconds = timed(vae, evidence, setup.num(_RUNS, 1))
    alone = [timed(vae, evidence[i], 1)[1] for i in range(min(num, 10))]
    target = cc.VAETarget(vae, evidence).flatten()
    step = max(num // _NUM_REFERENCED, 1) | 1  # odd, so that all kinds of evidence take part
    some = torch.arange(num)[::step]
    known = reference.smc("mnist-20d", target.select(some))
    errors = (posterior.log_evidence[some] - known.log_evidence).abs()
    masses, modes_found = modes.mass_errors(
        target.select(some).prepare(), known.draws, posterior.draws[:, some]
    )

    def of_all(part: torch.Tensor) -> torch.Tensor:
        return torch.full((num,), math.nan).index_copy(0, some, part.float())

    figures = answer_figures("mnist-20d", posterior, num, seconds) | {
        "errors": of_all(errors),
        "mass_errors": of_all(masses),
        "num_modes": of_all(modes_found),
        "log_evidence": of_all(known.log_evidence),
        "reference_errors": of_all(known.error),
        "seconds_alone": alone,
    }
    called = f"{num:,} queries in one call"
    within = (errors <= 0.1).double().mean().item()
    settings = reference.ANNEALING
    rows = [
        Row(
            f"mnist-20d, {called}: |log p(x) error|",
            "95 % within 0.1 nats",
            f"{within:.1%} within 0.1; median {errors.median():.2g}, largest {errors.max():.2g}",
            within >= 0.95,
            f"{len(some)} of them, against tempered SMC with {settings.num_particles:,} particles "
            f"in {settings.num_islands} islands, {settings.num_moves} moves of "
            f"{settings.num_leapfrog} steps, and as many seeds as a standard error of "
            f"{reference.WANTED_ERROR} needs (largest {known.error.max():.2g})",
        ),
        Row(
            f"mnist-20d, {called}: seconds",
            "≤ 50 ms per query",
            f"{1e3 * seconds / num:.3g} ms per query",
            seconds / num <= 0.05,
            f"median of {setup.num(_RUNS, 1)} calls, with the bank already built",
        ),
        Row(
            "mnist-20d, one query alone: seconds",
            "≤ 0.5 s",
            f"median {statistics.median(alone):.2g} s, longest {max(alone):.2g}",
            statistics.median(alone) <= 0.5,
            f"median over {len(alone)} queries, one call each",
        ),
    ]
    return Section(rows, figures)
