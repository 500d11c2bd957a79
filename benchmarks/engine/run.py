"""Measures errors, times and verdicts of the cascade against its targets.

    make engine        or        python benchmarks/engine/run.py --only mnist-2d blocks

Measures one section after the other in one process and writes benchmarks/results/engine.json after
each. docs/benchmarks.md and its pictures are generated from that file; --render does only this.
With --quick, a few queries show that everything runs, and all results go to out/benchmarks.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import against_peers
import calibration
import closed_forms
import digits
import face_answers
import faces
import other_decoders
import price
import report
import scale
import verdicts
from table import RESULTS, ROOT, Section, Setup, context

SECTIONS: dict[str, Callable[[Setup], Section]] = {
    "mnist-2d": digits.two_d,
    "mnist-20d": digits.twenty_d,
    "celeba-100d": faces.elbo,
    "faces": face_answers.measure,
    "linear": closed_forms.linear,
    "blocks": closed_forms.blocks,
    "price": price.measure,
    "calibration": calibration.measure,
    "verdicts": verdicts.measure,
    "others": other_decoders.measure,
    "peers": against_peers.measure,
    "machinery": faces.machinery,
    "scale": scale.measure,
}


def main() -> None:
    args = _arguments()
    quick = ROOT / "out" / "benchmarks"
    results = quick / "engine.json" if args.quick else RESULTS / "engine.json"
    docs = quick if args.quick else ROOT / "docs"
    if not args.render:
        measure(results, args.only, args.quick)
    report.render(json.loads(results.read_text()), docs)
    print(f"wrote {results} and {docs / 'benchmarks.md'}")


def measure(path: Path, names: list[str], quick: bool) -> None:
    """Measure the named sections; others in the file stay as they are."""
    kept: dict[str, Any] = json.loads(path.read_text())["sections"] if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)

    def earlier(name: str) -> dict[str, Any]:
        return kept.get(name, {}).get("figures", {})

    for name in (name for name in SECTIONS if name in names):
        print(f"{name} ...", flush=True)
        about, start = context(), time.perf_counter()
        section = SECTIONS[name](Setup(quick, earlier)).to_json()
        seconds = time.perf_counter() - start
        kept[name] = {"quick": quick, "seconds": seconds, "context": about, **section}
        ordered = {name: kept[name] for name in SECTIONS if name in kept}
        path.write_text(json.dumps({"sections": ordered}, indent=1) + "\n")
        for row in section["rows"]:
            print(f"  {row['target']}: {row['measured']} ({report.word(row['met'])})", flush=True)
        print(f"  {seconds:.0f} s", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="few queries; to out/benchmarks")
    parser.add_argument("--render", action="store_true", help="only generate the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
