"""The interface to the peers' scripts: they read problem.npz and write a list of rows.

It needs only NumPy. problem.npz holds a decoder z -> ReLU(z W0 + b0) W1 + b1 = logits, with weights
of shape (in, out), and the queries:

    weight_0 (D, H), bias_0 (H,), weight_1 (H, 784), bias_1 (784,)
    values (Q, 784), mask (Q, 784)     evidence; True = observed
    log_evidence (Q,)                  reference log p(x), nats
    check_z (K, D), check_log_joint (Q, K)   log p(z, x), which a peer's model must reproduce
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 0.1  # nats; the clock stops when the error of log p(x) is below this
NUM_DRAWS = 1_000  # fresh draws for the C-ELBO and the importance estimate
NUM_MANY = 10_000  # fresh draws for the second importance estimate
LOG_JOINT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Problem:
    """Decoder and queries, with the shapes above, in float32."""

    weight_0: np.ndarray
    bias_0: np.ndarray
    weight_1: np.ndarray
    bias_1: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    log_evidence: np.ndarray
    check_z: np.ndarray
    check_log_joint: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Problem":
        with np.load(path) as stored:
            return cls(**dict(stored))

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @property
    def latent_dim(self) -> int:
        return self.weight_0.shape[0]

    @property
    def num_queries(self) -> int:
        return len(self.values)

    def evidence(self) -> dict[str, np.ndarray]:
        """Last layer, values and mask of every query, restricted to observed elements.

        Each query's observed elements come first, and all are cut to the length R of the query
        with the most evidence: weight (Q, H, R), bias, values and mask (Q, R). Decoding all 784
        elements takes three to four times as long, even as one product shared by a batch.
        """
        most = int(self.mask.sum(1).max())
        index = np.argsort(~self.mask, axis=1, kind="stable")[:, :most]
        return {
            "weight": np.ascontiguousarray(self.weight_1.T[index].transpose(0, 2, 1)),
            "bias": self.bias_1[index],
            "values": np.take_along_axis(self.values, index, 1),
            "mask": np.take_along_axis(self.mask, index, 1),
        }

    def check(self, log_joint: np.ndarray) -> None:
        """Raise ValueError unless a peer's log_joint (Q, K) at check_z agrees with ours."""
        difference = float(np.abs(np.asarray(log_joint) - self.check_log_joint).max())
        if not difference < LOG_JOINT_TOLERANCE:
            raise ValueError(
                f"expected the model's log p(z, x) to agree to {LOG_JOINT_TOLERANCE} nats with "
                f"the problem's, got a difference of {difference:.3g}"
            )


class Track:
    """Tracks the errors of estimates of log p(x) of B queries over time.

    For each estimate, it records the seconds until the error is first within TOLERANCE (possibly by
    chance), the seconds until it stays so for the rest of the run, and the last error.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self._reference = np.atleast_1d(reference).astype(float)
        self._first: dict[str, np.ndarray] = {}
        self._since: dict[str, np.ndarray] = {}
        self._final: dict[str, np.ndarray] = {}
        self._extra: dict[str, np.ndarray] = {}

    def add(self, seconds: float, estimates: dict[str, Any], **extra: Any) -> None:
        """Record estimates after `seconds`; each (B,), or () for B = 1."""
        for name, estimate in estimates.items():
            error = self._reference - np.atleast_1d(np.asarray(estimate, dtype=float))
            first = self._first.setdefault(name, np.full(len(error), math.nan))
            since = self._since.setdefault(name, np.full(len(error), math.nan))
            within = np.abs(error) <= TOLERANCE
            first[within & np.isnan(first)] = seconds
            since[within & np.isnan(since)] = seconds
            since[~within] = math.nan
            self._final[name] = error
        self._extra |= {name: np.atleast_1d(np.asarray(v, float)) for name, v in extra.items()}

    def done(self) -> bool:
        """Whether every estimate has been within the tolerance for every query."""
        return all(not np.isnan(first).any() for first in self._first.values())

    def queries(self, seconds_total: float) -> list[dict[str, Any]]:
        """One dictionary per query; in a batch, a query's seconds are the batch's divided by B."""
        size = len(self._reference)
        rows = []
        for i in range(size):
            estimates = {
                name: {
                    "seconds_to_0.1": _number(self._first[name][i] / size),
                    "seconds_to_stay": _number(self._since[name][i] / size),
                    "final_error": _number(self._final[name][i]),
                }
                for name in self._first
            }
            times = [e["seconds_to_0.1"] for e in estimates.values()]
            stays = [e["seconds_to_stay"] for e in estimates.values()]
            errors = [e["final_error"] for e in estimates.values()]
            rows.append(
                {
                    "seconds_to_0.1": min((t for t in times if t is not None), default=None),
                    "seconds_to_stay": min((t for t in stays if t is not None), default=None),
                    "final_error": min((e for e in errors if e is not None), key=abs, default=None),
                    "seconds_total": seconds_total / size,
                    "estimates": estimates,
                    **{name: _number(values[i]) for name, values in self._extra.items()},
                }
            )
        return rows


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Peer:
    """One method of a library.

    Args:
        name: Name of its row.
        settings: What a reader needs to know to repeat the measurement.
        prepare: Called with the problem, the form ("alone" or "batch") and the seed. Compiles, runs
            once to warm up, and returns a function that answers: it is called with the indices of
            the queries, the track and the budget in seconds, and returns the seconds it took.
    """

    name: str
    settings: dict[str, Any]
    prepare: Callable[["Problem", str, int], Callable[[np.ndarray, Track, float], float]]


def main(library: str, version: str, peers: dict[str, Peer]) -> None:
    """Run the command line of a peer's script; every row is written as soon as it is measured."""
    args = _arguments(list(peers))
    problem = Problem.load(args.problem)
    rows: list[dict[str, Any]] = []
    for key in args.peers:
        for form in args.forms:
            print(f"{peers[key].name}, {form}: ", end="", flush=True, file=sys.stderr)
            row = {"peer": peers[key].name, "library": library, "version": version, "form": form}
            try:
                row |= _measure(problem, peers[key], form, args)
            except Exception as error:  # a peer that fails gets a row that says so
                row |= {"failed": f"{type(error).__name__}: {error}"}
            rows.append(row)
            args.out.write_text(json.dumps(rows, indent=2) + "\n")
            print(_summary(row), flush=True, file=sys.stderr)


def _measure(problem: Problem, peer: Peer, form: str, args: argparse.Namespace) -> dict[str, Any]:
    num_alone = min(args.num_alone, problem.num_queries)
    everything = np.arange(problem.num_queries)
    groups = [everything[i : i + 1] for i in range(num_alone)] if form == "alone" else [everything]
    budget = args.budget_seconds if form == "alone" else args.batch_budget_seconds
    start = time.perf_counter()
    answer = peer.prepare(problem, form, args.seed)
    compile_seconds = time.perf_counter() - start
    queries = []
    for group in groups:
        track = Track(problem.log_evidence[group])
        seconds = answer(group, track, budget)
        for index, query in zip(group, track.queries(seconds), strict=True):
            queries.append({"query": int(index), **query})
    return {
        "settings": peer.settings,
        "compile_seconds": compile_seconds,
        "budget_seconds": budget,
        "queries": queries,
    }


def _summary(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    times = [q["seconds_to_0.1"] for q in row["queries"]]
    reached = sorted(t for t in times if t is not None)
    middle = f"{reached[len(reached) // 2]:.3g} s" if reached else "–"
    worst = max((abs(q["final_error"] or math.inf) for q in row["queries"]), default=math.nan)
    each = sum(q["seconds_total"] for q in row["queries"]) / len(times)
    return (
        f"reached {len(reached)} of {len(times)}, median {middle}; worst final error "
        f"{worst:.3g} nats; {each:.3g} s per query; {row['compile_seconds']:.1f} s to compile"
    )


def _arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("problem", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-seconds", type=float, default=30.0, help="for a single query")
    parser.add_argument("--batch-budget-seconds", type=float, default=60.0, help="for a batch")
    parser.add_argument("--num-alone", type=int, default=3, help="queries to answer alone")
    parser.add_argument("--forms", nargs="+", default=["alone", "batch"])
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    return parser.parse_args()
