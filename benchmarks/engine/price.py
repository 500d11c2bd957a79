"""Measures what an answer costs on decoders of many kinds, here and in another version.

Each case runs in a process of its own. If CROSSCODING_BEFORE names a checkout of another version,
that one answers the same queries (or the first of them, where it takes minutes), in turn.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from table import ROOT, Row, Section, Setup

_SCRIPT = Path(__file__).with_name("price_cases.py")
# Queries, how many of them the other version answers, and what is wanted: times as fast, decodes
# per query, share trusted.
_CASES: dict[str, tuple[int, int, float | None, int | None, float]] = {
    "table": (1000, 1000, 25, 2000, 0.98),
    "linear 2": (1000, 100, 1000, None, 1.0),
    "linear 32": (1000, 100, 1000, None, 1.0),
    "linear 512": (100, 10, 1000, None, 1.0),
    "wide": (200_000, 20_000, 20, None, 1.0),
    "mnist-2d": (1000, 1000, 4, None, 1.0),
    "mnist-20d": (200, 200, 5, 9000, 0.95),
    "mnist-10d-conv": (24, 8, 12, 6000, 0.9),
    "celeba-10d-conv": (2, 0, None, None, 0.9),
    "tvae 0.3": (12, 0, None, 6000, 0.9),
    "tvae 0.1": (12, 0, None, 6000, 0.9),
    "tvae 0.03": (12, 0, None, 6000, 0.9),
    "tvae 0.01": (12, 0, None, 6000, 0.9),
}
_SECONDS = {"celeba-10d-conv": 3.0, "wide": 30 / 200_000} | {
    name: 0.2 for name in _CASES if name.startswith("tvae")
}
_QUICK = ("table", "linear 2")


def measure(setup: Setup) -> Section:
    section = Section()
    for name, (num, num_before, factor, decodes, share) in _CASES.items():
        if setup.quick and name not in _QUICK:
            continue
        found = _in_a_child(name, setup.num(num, 5), ROOT)
        if found is None:
            continue
        other = os.environ.get("CROSSCODING_BEFORE")
        before = other and num_before and _in_a_child(name, setup.num(num_before, 5), Path(other))
        found["before"] = before or setup.earlier("price").get(name, {}).get("before")
        section.figures[name] = found
        section.rows.append(_row(name, found, factor, decodes, share))
    return section


def _row(
    name: str, found: dict[str, Any], factor: float | None, decodes: int | None, share: float
) -> Row:
    before, num = found["before"], found["num"]
    ratio = before["seconds"] / found["seconds"] if before else None
    wanted, met = [f"≥ {share:.0%} trusted"], [found["trusted"] >= share * num]
    if decodes:
        wanted.append(f"≤ {decodes:,} decodes")
        met.append(found["decodes"] <= decodes)
    if name in _SECONDS:
        wanted.append(f"≤ {1e3 * _SECONDS[name]:.3g} ms")
        met.append(found["seconds"] <= _SECONDS[name])
    if factor:
        wanted.append(f"≥ {factor:,.0f} times as fast")
        met.append(ratio is not None and ratio >= factor)
    how = f"{num:,} queries in one call"
    if before:
        how += (
            f"; the version before the redesign took {before['decodes']:,.0f} decodes and "
            f"{1e3 * before['seconds']:.3g} ms a query, {before['trusted']} of {before['num']:,} "
            "trusted"
        )
    if num > 10_000:
        how += (
            f"; peak memory {found['peak_mib']:,.0f} MiB, {found['answers_mib']:,.0f} of which are "
            f"the answers; mean() {found['seconds_of_mean']:.2g} s, verdicts "
            f"{found['seconds_of_verdicts']:.2g} s"
        )
    faster = f", {ratio:.3g} times as fast as before" if ratio else ""
    return Row(
        f"price: {name}",
        ", ".join(wanted),
        f"{found['decodes']:,.0f} decodes, {1e3 * found['seconds']:.3g} ms a query, "
        f"{found['trusted']:,} of {num:,} trusted{faster}",
        all(met),
        how,
    )


def _in_a_child(name: str, num: int, version: Path) -> dict[str, Any] | None:
    sources = [str(version / "src"), str(version / "crosscoding-faces" / "src")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources)}
    command = [sys.executable, str(_SCRIPT), name, str(num)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)
