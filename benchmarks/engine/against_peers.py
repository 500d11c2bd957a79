"""Compares `Auto` with other libraries, on the queries and results of benchmarks/peers."""

import json
import math
import statistics
from typing import Any

import reference
import torch
from digits import timed
from queries import peer_queries
from table import RESULTS, Row, Section, Setup

import crosscoding as cc

_WANTED = {
    ("mnist-2d", "batch"): 1000.0,
    ("mnist-20d", "batch"): 100.0,
    ("mnist-2d", "alone"): 5.0,
    ("mnist-20d", "alone"): 5.0,
}


def measure(setup: Setup) -> Section:
    path = RESULTS / "peers.json"
    if not path.is_file():
        how = "needs benchmarks/results/peers.json: make peers"
        return Section([Row("peers", "", "", None, how)])
    peers = json.loads(path.read_text())
    asked = [row for row in peers["rows"] if row.get("queries")]
    num_alone = max((len(row["queries"]) for row in asked if row["form"] == "alone"), default=0)
    ours = {
        model: _ours(model, setup.num(peers["num_queries"], 2), setup.num(num_alone, 1), setup)
        for model in sorted({row["model"] for row in peers["rows"]})
    }
    pairs = [_pair(row, ours[row["model"]][row["form"]]) for row in asked]
    rows = []
    for (model, form), wanted in _WANTED.items():
        some = [p for p in pairs if (p["model"], p["form"]) == (model, form)]
        if not some:
            continue
        own = ours[model][form]
        least = min(some, key=lambda p: p["ratio_to_0.1"])
        whole = min(some, key=lambda p: p["ratio_total"])
        error = statistics.median(own["errors"])
        many = setup.earlier(model) if form == "batch" else {}
        at_scale = ""
        if many:
            ratio = least["seconds_to_0.1"] / many["seconds_per_query"]
            at_scale = f"; with {many['num']:,} of ours in one call {ratio:.3g}"
        num = len(own["errors"])
        what = f"{num} queries in one call" if form == "batch" else "one query alone"
        rows.append(
            Row(
                f"{model}, {what}, against every peer",
                f"≥ {wanted:g} times as fast",
                f"{least['ratio_to_0.1']:.3g} ({least['peer']}); for whole runs "
                f"{whole['ratio_total']:.3g} ({whole['peer']}){at_scale}",
                least["ratio_to_0.1"] >= wanted,
                f"ours: {1e3 * statistics.median(own['seconds']):.3g} ms per query, median error "
                f"{error:.2g} nats. Peers: median seconds until the error is below 0.1 nats, which "
                "they cannot know themselves. The smallest ratio counts",
            )
        )
    return Section(rows, {"ours": ours, "pairs": pairs, "peers_machine": peers["machine"]})


def _ours(model: str, num: int, num_alone: int, setup: Setup) -> dict[str, Any]:
    vae = cc.zoo.load(model)
    evidence = peer_queries(vae, num)
    if vae.latent_dim <= 3:
        parts = reference.exact_parts(vae, evidence)
        known = torch.cat([part.log_evidence for part in parts])
    else:
        target = cc.VAETarget(vae, evidence).flatten()
        known = reference.smc(f"peers-{model}", target).log_evidence
    batch, seconds = timed(vae, evidence, setup.num(5, 1))
    alone = [timed(vae, evidence[i], setup.num(3, 1)) for i in range(num_alone)]
    return {
        "batch": {
            "seconds": [seconds / num] * num,
            "errors": (batch.log_evidence - known).abs().tolist(),
        },
        "alone": {
            "seconds": [each for _, each in alone],
            "errors": [abs(float(p.log_evidence - known[i])) for i, (p, _) in enumerate(alone)],
        },
    }


def _pair(row: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A peer's figures and ours. A query that never comes within 0.1 nats takes infinitely long."""
    queries = row["queries"]
    reached = [q["seconds_to_0.1"] for q in queries]
    to_tolerance = statistics.median(math.inf if t is None else t for t in reached)
    total = statistics.median(q["seconds_total"] for q in queries)
    seconds = statistics.median(own["seconds"])
    errors = [math.inf if q["final_error"] is None else abs(q["final_error"]) for q in queries]
    return {
        "model": row["model"],
        "form": row["form"],
        "peer": row["peer"],
        "version": row["version"],
        "seconds_to_0.1": to_tolerance,
        "seconds_total": total,
        "reached": sum(t is not None for t in reached),
        "num": len(queries),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "our_seconds": seconds,
        "our_median_error": statistics.median(own["errors"]),
        "our_largest_error": max(own["errors"]),
        "ratio_to_0.1": to_tolerance / seconds,
        "ratio_total": total / seconds,
        "points": [[q["seconds_total"], abs(e)] for q, e in zip(queries, errors, strict=True)],
    }
