"""Measures how many "trusted" answers are right, here and on mirrored decoders.

A mirrored decoder has p(z|x) = p(−z|x), so exactly half of the mass lies on each side of 0 in any
direction. A lost mode violates this visibly.
"""

import math
from typing import Any

import modes
import reference
import torch
from queries import problems
from table import Row, Section, Setup

import crosscoding as cc
from crosscoding.methods import Auto

_ERROR, _MASS_ERROR = 0.1, 0.05
_DIMS, _SEEDS, _SCALES, _NUM = (2, 4, 8), (0, 1, 2, 3), (0.1, 0.3), 4
_EARLIER = ("mnist-2d", "mnist-20d", "blocks")


def measure(setup: Setup) -> Section:
    sources = {name: _answers(setup.earlier(name)) for name in _EARLIER}
    absent = [name for name, answers in sources.items() if not answers]
    sources["mirrored"] = _mirrored(setup)
    everything = [answer for answers in sources.values() for answer in answers]
    known = [a for a in everything if a["error"] is not None and a["mass_error"] is not None]
    trusted = [answer for answer in known if answer["label"] == "trusted"]
    right = [answer for answer in trusted if _is_right(answer)]
    share = len(right) / max(len(trusted), 1)
    beyond = [a for a in trusted if not _is_right(a) and not _within_noise(a)]
    by_source = ", ".join(
        f"{name} {sum(_is_right(a) for a in some)} of {len(some)}"
        for name, some in ((n, [a for a in trusted if a["source"] == n]) for n in sources)
    )
    rows = [
        Row(
            f"{len(trusted):,} “trusted” answers on {', '.join(sources)}",
            f"≥ 99 % within {_ERROR} nats and masses within {_MASS_ERROR}",
            f"{share:.2%}" if trusted else "",
            share >= 0.99 if trusted and not absent else None,
            f"right: {by_source}. Of the {len(trusted) - len(right)} wrong ones, {len(beyond)} are "
            "wrong by more than 2 standard errors of the reference and the kept draws. "
            f"{len(everything) - len(known)} answers have no reference"
            + (f"; {', '.join(absent)} not measured yet" if absent else ""),
        )
    ]
    for name, wanted in (("mnist-2d", 0.9), ("mnist-20d", 0.7)):
        labels = [answer["label"] for answer in sources[name]]
        part = labels.count("trusted") / max(len(labels), 1)
        measured = f"{part:.1%}" if labels else "not measured yet"
        met = part >= wanted if labels else None
        how = f"the {len(labels):,} queries of the rows above"
        rows.append(Row(f"{name}: share trusted", f"≥ {wanted:.0%}", measured, met, how))
    return Section(rows, {"answers": everything, "wrong": [a for a in trusted if not _is_right(a)]})


def _is_right(answer: dict[str, Any]) -> bool:
    return answer["error"] <= _ERROR and answer["mass_error"] <= _MASS_ERROR


def _within_noise(answer: dict[str, Any]) -> bool:
    """Whether 2 standard errors of the reference and the draws could explain the error."""
    noise = 0.5 / math.sqrt(answer["num_draws"])
    close = answer["error"] <= _ERROR + 2 * answer["reference_error"]
    return close and answer["mass_error"] <= _MASS_ERROR + 2 * noise


def _answers(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary per answer from a section's figures, for one model or one per dimension."""
    groups = [figures] if "labels" in figures else figures.values()
    found = []
    for group in groups:
        exact = [0.0] * len(group["labels"])
        names = ("errors", "mass_errors", "labels")
        parts = zip(*(group[n] for n in names), group.get("reference_errors", exact), strict=True)
        found += [_answer(group["source"], *part) for part in parts]
    return found


def _answer(
    source: str, error: float | None, mass_error: float, label: str, reference_error: float
) -> dict[str, Any]:
    return {
        "source": source,
        "label": label,
        "error": error,
        "mass_error": mass_error,
        "reference_error": reference_error,
        "num_draws": 1000,
    }


def _mirrored(setup: Setup) -> list[dict[str, Any]]:
    found = []
    for dim in _DIMS[: setup.num(3, 2)]:
        for seed in _SEEDS[: setup.num(4, 1)]:
            for scale in _SCALES:
                found += _of_one_decoder(dim, seed, scale)
    return found


def _of_one_decoder(dim: int, seed: int, scale: float) -> list[dict[str, Any]]:
    data_dim = 6 if seed % 2 == 0 else max(6, dim)
    vae = problems().mirrored_vae(dim, data_dim, scale, seed)
    truth = vae.sample_prior(_NUM, seed=seed)
    mask = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[:, 0] = True
    evidence = cc.Evidence(truth, mask)
    posterior = cc.condition(vae, evidence, Auto(), seed=0)
    if dim == 2:
        exact = reference.exact_parts(vae, evidence)
        log_evidence = torch.cat([part.log_evidence for part in exact])
        unsure = torch.zeros_like(log_evidence)
    else:
        name = f"mirrored-{dim}-{seed}-{scale}"
        known = reference.smc(name, cc.VAETarget(vae, evidence).flatten())
        unsure = known.error
        poor = ~(unsure <= 2 * reference.WANTED_ERROR)
        log_evidence = known.log_evidence.masked_fill(poor, math.nan)
    errors = (posterior.log_evidence - log_evidence).abs().tolist()
    errors = [error if math.isfinite(error) else None for error in errors]
    masses = modes.half_error(posterior.draws).tolist()
    labels = [verdict.label for verdict in posterior.verdicts]
    parts = zip(errors, masses, labels, unsure.tolist(), strict=True)
    rows = [_answer("mirrored", *part) for part in parts]
    return [row | {"dim": dim, "seed": seed, "scale": scale} for row in rows]
