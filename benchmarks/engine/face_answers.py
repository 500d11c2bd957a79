"""Measures what an answer about a face costs, whether it is trusted, and whether twins agree."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from queries import face_mask, face_queries, faces_vae
from table import Row, Section, Setup

import crosscoding as cc
from crosscoding.errors import counted
from crosscoding.random import generator_from

_MODELS: dict[str, Callable[[], cc.VAE | None]] = {
    "anime-64d": lambda: cc.zoo.load("anime-64d"),
    "the zoo's celeba-100d": lambda: cc.zoo.load("celeba-100d"),
    "the paper's celeba-100d": faces_vae,
}
_REAL = ("the zoo's celeba-100d", "the paper's celeba-100d")  # anime has no faces to observe
_KINDS = ("eyes", "5 %", "quarter")
_MOST, _SECONDS = 10, 1800.0  # faces of each kind, and time after which no further one is asked
_WANTED_SECONDS, _WANTED_ESS, _WANTED_SHARE = 60.0, 100.0, 0.9
_NUM_DRAWS = 500  # of z and of the picture, per twin


def measure(setup: Setup) -> Section:
    """One face after the other: a twin of each model and kind, a real face of each, and again."""
    loaded = {name: load() for name, load in _MODELS.items()}
    models = {name: vae for name, vae in loaded.items() if vae is not None}
    figures: dict[str, list[dict[str, Any]]] = {}
    start = time.perf_counter()
    for i in range(setup.num(_MOST, 1)):
        for name, vae in models.items():
            for kind in _KINDS[: setup.num(3, 1)]:
                if time.perf_counter() - start < _SECONDS:
                    found = _answer(vae, kind, i, real=i % 2 == 1 and name in _REAL)
                    figures.setdefault(f"{name}, {kind}", []).append(found)
                    print(f"    {name}, {kind}: {found}", flush=True)
    return Section([_row(name, answers) for name, answers in figures.items()], figures)


def _answer(vae: cc.VAE, kind: str, i: int, *, real: bool) -> dict[str, Any]:
    faces = face_queries(vae, i + 1, kind) if real else None
    z, twins = vae.simulate(1, generator=generator_from(1000 + i))
    data, mask = twins[0] if faces is None else faces.values[i], face_mask(vae, kind)
    start = time.perf_counter()
    posterior = cc.condition(vae, cc.Evidence(data, mask), seed=0, progress=False)
    seconds = time.perf_counter() - start
    shown = posterior.predict(_NUM_DRAWS, seed=1)[:, ~mask]
    return {
        "is_twin": faces is None,
        "seconds": seconds,
        "decodes": sum(float(stage.decodes) for stage in posterior.trace),
        "ess": float(posterior.ess),
        "log_evidence": float(posterior.log_evidence),
        "log_evidence_error": float(posterior.log_evidence_error),
        "purposes": dict(posterior.verdicts[0].purposes),
        "covers_elements": _covered(data[~mask], shown),
        "covers_z": _covered(z[0], posterior.sample(_NUM_DRAWS, seed=2)) if faces is None else None,
    }


def _covered(truth: torch.Tensor, draws: torch.Tensor) -> float:
    """Share of the elements of truth (D,) in the 90 % intervals of draws (S, D)."""
    low, high = draws.quantile(torch.tensor([0.05, 0.95]), dim=0)
    return ((truth >= low) & (truth <= high)).double().mean().item()


def _row(name: str, answers: list[dict[str, Any]]) -> Row:
    num, twins = len(answers), [a for a in answers if a["is_twin"]]
    intervals = sum(a["purposes"]["interval"] == "trusted" for a in answers)
    both = sum(a["purposes"]["mean"] == a["purposes"]["interval"] == "trusted" for a in answers)
    seconds, error = (
        statistics.median(a[key] for a in answers) for key in ("seconds", "log_evidence_error")
    )
    least = min(a["ess"] for a in answers)
    met = both >= _WANTED_SHARE * num and seconds <= _WANTED_SECONDS and least >= _WANTED_ESS
    return Row(
        name,
        f"≤ {_WANTED_SECONDS:g} s, ESS ≥ {_WANTED_ESS:g}, mean and interval trusted for "
        f"≥ {_WANTED_SHARE:.0%}",
        f"{counted(num, 'face')}, {num - len(twins)} of them real: {seconds:.0f} s, "
        f"ESS ≥ {least:.0f}, mean and interval trusted for {both}, interval for {intervals}",
        met,
        f"each face alone; seconds are a median, on {counted(torch.get_num_threads(), 'thread')}; "
        f"{_coverage(twins)}. Standard error of log p(x): {error:.2g} nats (median)",
    )


def _coverage(twins: list[dict[str, Any]]) -> str:
    if not twins:
        return "no twins"
    z, seen = (statistics.mean(a[key] for a in twins) for key in ("covers_z", "covers_elements"))
    several = len(twins) > 1
    error = statistics.stdev(a["covers_z"] for a in twins) / math.sqrt(len(twins)) if several else 0
    return (
        f"{counted(len(twins), 'twin')}, whose 90 % intervals cover {z:.1%}"
        + (f" ± {error:.1%}" if several else "")
        + f" of z and {seen:.1%} of what is missing"
    )
