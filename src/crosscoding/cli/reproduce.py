"""`crosscoding reproduce`: the paper's figures and comparisons on our own implementation."""

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

_OF_PART = 0.9  # of an experiment: how many parts it has is not known


@dataclass(frozen=True)
class Request:
    """What is wanted, as it was given on the command line."""

    names: list[str]
    folder: Path
    quick: bool
    seed: int
    data: Path | None
    models: Path | None
    device: str
    changes: list[str]


def list_all(*, as_json: bool) -> None:
    """Print every experiment with what it shows."""
    if as_json:
        rows = [{"name": e.name, "title": e.title, "wanted": e.wanted} for e in _all()]
        print_json(rows)
        return
    table = Table("name", "what it shows", "what must be seen, by the paper")
    for each in _all():
        table.add_row(each.name, each.title, each.wanted)
    out.print(table)


def reproduce(request: Request, *, as_json: bool) -> None:
    """Run what is asked for; say what was measured, what was there, and what cannot be run."""
    if not request.names:
        raise ValueError("expected the name of a figure, or all; --list shows what there is")
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

    with followed("reproducing", silent, shown=True) as told:

        def report(share: float, what: str) -> None:
            """Of a part of an experiment, which may have several."""
            told((len(rows) + _OF_PART * share) / len(experiments), what)

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
        out.print(f"pictures and numbers are in {folder}", markup=False)


def _run(
    experiments: list[Experiment],
    context: Context,
    request: Request,
    done: Callable[[Experiment, Record | None, str], None],
) -> None:
    """What cannot be run is an error, unless all are asked for: then it is passed over."""
    version = crosscoding.__version__
    if "all" in request.names:
        run_all(experiments, context, quick=request.quick, version=version, done=done)
        return
    for each in experiments:
        record, was_there = run(each, context, quick=request.quick, version=version)
        done(each, record, "kept" if was_there else "measured")


def _folder(given: Path | None, variable: str) -> Path | None:
    """The folder that was given, or that the environment names.

    Raises:
        ValueError: It is no folder.
    """
    named = str(given) if given is not None else os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "" if given is not None else f", which {variable} names"
        raise ValueError(f"expected a folder, got {folder}{source}")
    return folder


def _change(text: str) -> tuple[str, Any]:
    """A setting and its value from NAME=VALUE, the value as JSON has it."""
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
    """The name of a device that torch can use.

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
