"""`crosscoding batch`: answers all rows of a file into a folder."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from crosscoding.batch import Estimate, Progress, Result, StoppedError, estimate
from crosscoding.batch import run as run_batch
from crosscoding.batch.sources.opening import is_array
from crosscoding.cli.console import err, note, out, use_one_thread
from crosscoding.cli.models import load_model
from crosscoding.cli.observed_elements import parse_mask
from crosscoding.cli.paths import expanded
from crosscoding.errors import counted
from crosscoding.formats.table_style import TableStyle
from crosscoding.methods import Auto
from crosscoding.methods import method as method_named
from crosscoding.model.vae import VAE
from crosscoding.progress import in_words

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, which schedulers know
_INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    model: str
    source: str
    out: Path
    observe: str | None
    method: str | None
    style: TableStyle
    allow_code: bool
    settings: dict[str, Any]
    engine: dict[str, Any]


def run(request: Request, *, dry_run: bool, as_json: bool) -> int:
    """Run the request, or estimate its time and disk space; returns the exit code."""
    use_one_thread()
    vae = load_model(request.model, allow_code=request.allow_code, decoder=None)
    method = method_named(request.method or "auto")
    method = Auto(purpose="interval") if method == Auto() else method
    options = {
        "method": method,
        "observe": _observed(request, vae),
        "allow_code": request.allow_code,
    }
    options |= {"style": request.style, **request.settings}
    if dry_run:
        _show_estimate(estimate(request.model, request.source, **options), request, as_json)
        return 0
    try:
        result = run_batch(
            request.model,
            request.source,
            request.out,
            **options,
            **request.engine,
            on_progress=_print_line if as_json else None,
            progress=not as_json,
        )
    except StoppedError as error:
        err.print(f"[yellow]stopped:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return TRY_AGAIN
    _show(result, as_json)
    if result.complete:
        return 0
    return _INTERRUPTED if result.interrupted else TRY_AGAIN


def _observed(request: Request, vae: VAE) -> Tensor | str | None:
    """A mask for all rows, or a file with one for each; None: all values that are present."""
    if request.observe is None:
        return None
    kind, _, words = request.observe.partition(":")
    if kind == "mask" and is_array(expanded(words)):
        return expanded(words)
    return parse_mask(request.observe, vae.data_shape, seed=request.settings["seed"])


def _print_line(progress: Progress) -> None:
    _print_json(vars(progress))


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _show_estimate(found: Estimate, request: Request, as_json: bool) -> None:
    if as_json:
        _print_json(vars(found))
        return
    table = Table(show_header=False)
    asked = request.engine["workers"] or 1
    workers = asked[-1] if isinstance(asked, tuple) else asked  # the most of them
    table.add_row("rows", f"{found.rows:,}")
    table.add_row("shards", f"{found.shards:,}")
    time = in_words(found.seconds / workers)
    table.add_row("time", f"about {time} with {counted(workers, 'worker')}")
    table.add_row("disk", f"about {found.bytes / 1e6:,.3g} MB in {request.out}")
    table.add_row("sample", f"{counted(found.sample, 'row')}, {found.rejected} rejected")
    out.print(table)


def _show(result: Result, as_json: bool) -> None:
    figures = {
        "rows": result.rows,
        "answered": result.answered,
        "rejected": result.rejected,
        "verdicts": result.verdicts,
        "complete": result.complete,
        "seconds": result.seconds,
        "out": str(result.out),
    }
    if as_json:
        _print_json(figures)
        return
    note(*result.notes)
    table = Table(show_header=False)
    table.add_row("answered", f"{result.answered:,} of {result.rows:,} rows")
    table.add_row("rejected", f"{result.rejected:,}")
    for purpose, labels in result.verdicts.items():
        words = ", ".join(f"{num:,} {label}" for label, num in labels.items())
        table.add_row(f"verdicts on {purpose}", words)
    table.add_row("seconds", f"{result.seconds:.1f}")
    out.print(table)
    if result.rejected:
        note(f"{result.out / 'rejected.jsonl'} says why rows were rejected")
    if not result.complete:
        note("stopped early; run the same command again to resume")
    out.print(f"wrote answers and a manifest to {result.out}", markup=False)
