"""`crosscoding reproduce`: runs the paper's figures and comparisons on this implementation."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import crosscoding
from crosscoding.cli.console import err, out, output_folder, print_json
from crosscoding.experiments.catalogue import EXPERIMENTS, chosen
from crosscoding.experiments.experiment import Context, Experiment
from crosscoding.experiments.recorded_runs import Record, run, run_all
from crosscoding.progress import followed, silent

_OF_PART = 0.9  # most progress that a part of an experiment reports, as others may follow


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    names: list[str]
    folder: Path
    quick: bool
    seed: int
    data: Path | None
    models: Path | None
    device: str
    changes: list[str]


def list_all(*, as_json: bool) -> None:
    """List every experiment and what it shows."""
    if as_json:
        rows = [{"name": e.name, "title": e.title, "wanted": e.wanted} for e in _all()]
        print_json(rows)
        return
    table = Table("name", "what it shows", "expected, according to the paper")
    for each in _all():
        table.add_row(each.name, each.title, each.wanted)
    out.print(table)


def reproduce(request: Request, *, as_json: bool) -> None:
    """Run the requested experiments; report which were measured, kept, or could not be run."""
    if not request.names:
        raise ValueError("expected the name of a figure, or all; --list shows the names")
    experiments = chosen(request.names)
    changes = dict(_change(text) for text in request.changes)
    if changes:
        experiments = [each.with_settings(changes) for each in experiments]
    folder = output_folder(request.folder)
    data = _folder(request.data, "CROSSCODING_DATA")
    models = _folder(request.models, "CROSSCODING_MODELS")
    device = _device(request.device)
    rows: list[dict[str, object]] = []

    def done(experiment: Experiment, record: Record | None, what: str) -> None:
        seconds = None if record is None else record["seconds"]
        rows.append({"name": experiment.name, "seconds": seconds, "state": what})
        took = "" if seconds is None else f"{seconds:8.1f} s"
        err.print(f"{experiment.name:9} {took:>10}  {what}", markup=False, highlight=False)

    with followed("reproducing", silent, shown=True) as track:

        def report(share: float, what: str) -> None:
            """Progress of one part of an experiment."""
            track((len(rows) + _OF_PART * share) / len(experiments), what)

        context = Context(
            folder,
            seed=request.seed,
            data=data,
            models=models,
            device=device,
            report=report,
        )
        _run(experiments, context, request, done)
    if as_json:
        print_json(rows)
    else:
        out.print(f"wrote pictures and numbers to {folder}", markup=False)


def _run(
    experiments: list[Experiment],
    context: Context,
    request: Request,
    done: Callable[[Experiment, Record | None, str], None],
) -> None:
    """Run experiments. One that cannot be run raises, or is skipped if `all` was requested."""
    version = crosscoding.__version__
    if "all" in request.names:
        run_all(experiments, context, quick=request.quick, version=version, done=done)
        return
    for each in experiments:
        record, was_there = run(each, context, quick=request.quick, version=version)
        done(each, record, "kept" if was_there else "measured")


def _folder(given: Path | None, variable: str) -> Path | None:
    """The given folder, or the one that the environment variable names.

    Raises:
        ValueError: It is not a folder.
    """
    named = str(given) if given is not None else os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "" if given is not None else f" from {variable}"
        raise ValueError(f"expected a folder, got {folder}{source}")
    return folder


def _change(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE into a setting and its value, which is JSON."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value, parse_constant=_no_number)
    except ValueError:
        raise ValueError(
            f"expected a setting as NAME=VALUE, such as burn_in=1000, got {text!r}"
        ) from None


def _no_number(word: str) -> float:
    raise ValueError(f"expected a number, got {word}")


def _device(name: str) -> str:
    """Check that torch can use a device.

    Raises:
        ValueError: It cannot.
    """
    try:
        (torch.zeros(1, device=name) + 1).item()
    except (RuntimeError, AssertionError) as error:  # builds without CUDA assert
        raise ValueError(
            f"expected a device that torch can use, got {name!r}: {str(error).splitlines()[0]}"
        ) from error
    return name


def _all() -> list[Experiment]:
    return list(EXPERIMENTS.values())
