"""Measures time per query and peak memory as the batch grows.

    python benchmarks/engine/scale.py mnist-2d 10000

measures a single call and prints the result as JSON. Every call runs in its own process, because
peak memory is a figure of the process.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from queries import digit_queries
from table import Row, Section, Setup

import crosscoding as cc

_SIZES = {"mnist-2d": (10, 100, 1000, 10_000), "mnist-20d": (10, 100, 1000)}
_QUICK = {"mnist-2d": (2, 5, 10), "mnist-20d": (2,)}


def measure(setup: Setup) -> Section:
    rows, figures = [], {}
    for model, sizes in (_QUICK if setup.quick else _SIZES).items():
        calls = figures[model] = [_in_a_child(model, size) for size in sizes]
        largest = calls[-1]
        per_query = ", ".join(f"{1e3 * c['seconds'] / c['num']:.3g}" for c in calls)
        rows.append(
            Row(
                f"{model}, batches of {', '.join(f'{size:,}' for size in sizes)}",
                "none",
                f"{per_query} ms per query; peak memory {largest['peak_mib']:,.0f} MiB",
                None,
                "one call each in its own process, after a first call for 1 query that builds the "
                "bank. Peak memory is that of the largest batch; "
                f"{largest['before_mib']:,.0f} MiB of it are torch, the model, the digits and the "
                "bank",
            )
        )
    return Section(rows, figures)


def _in_a_child(model: str, size: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), model, str(size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib() -> float:
    """Peak memory so far. On Linux, ru_maxrss would include the parent's memory."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _call(model: str, size: int) -> dict[str, Any]:
    vae, evidence = cc.zoo.load(model), digit_queries(size)
    cc.condition(vae, evidence[0], cc.methods.Auto(), seed=0)
    before = peak_mib()
    start = time.perf_counter()
    cc.condition(vae, evidence, cc.methods.Auto(), seed=0)
    seconds = time.perf_counter() - start
    return {"num": size, "seconds": seconds, "before_mib": before, "peak_mib": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(_call(sys.argv[1], int(sys.argv[2]))))
