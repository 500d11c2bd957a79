"""Runs experiments and records the results; keeps what is already finished.

For each experiment NAME, a folder holds NAME.json (settings, seed, whatever else determines the
result, versions, seconds, numbers), NAME.safetensors (if there are tensors), and every picture as
PNG and SVG. NAME.json is written last: if it exists and matches, the experiment is finished.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from crosscoding import plots
from crosscoding.experiments.experiment import Context, Experiment, Result, UnavailableError, plain

Record = dict[str, Any]


def run(
    experiment: Experiment,
    context: Context,
    *,
    quick: bool = False,
    version: str = "",
) -> tuple[Record, bool]:
    """Measure, draw and record an experiment, unless it is already finished.

    Args:
        experiment: What to run.
        context: Folder, seed, data and models.
        quick: Whether to use the quick settings.
        version: Version of this package, for the record.
    Returns:
        The content of NAME.json, and whether it existed already.
    Raises:
        UnavailableError: The experiment needs a model or data that is missing.
    """
    settings = experiment.quick if quick else experiment.full
    key = {
        "settings": plain(settings),
        "quick": quick,
        "seed": context.seed,
        "subjects": experiment.subjects(context),
    }
    kept = finished(experiment.name, context.folder)
    if kept is not None and all(kept.get(name) == value for name, value in key.items()):
        return kept, True
    load = _load()
    with _threads(_num_cores() if experiment.parallel else None) as threads:
        result, took = _timed(experiment, settings, context)
    record = {"name": experiment.name, "title": experiment.title, **key, **took}
    devices = sorted(context.devices) or ["cpu"]
    machine = {"devices": devices, "threads": threads, "load_before": load}
    record |= {"machine": machine, "versions": _versions(version)}
    record["changed"] = plain(experiment.changed)
    record["numbers"] = plain(result.numbers)
    _write(experiment, result, record, context.folder)
    return record, False


def run_all(
    experiments: Iterable[Experiment],
    context: Context,
    *,
    quick: bool = False,
    version: str = "",
    done: Callable[[Experiment, Record | None, str], None] = lambda *each: None,
) -> None:
    """Run experiments one after the other, skipping those that cannot be run here.

    Args:
        experiments: What to run, in this order.
        context: As in `run`.
        quick: As in `run`.
        version: As in `run`.
        done: Called after each experiment with its record and "measured" or "kept", or with None
            and the reason why it was skipped.
    """
    for experiment in experiments:
        try:
            record, was_there = run(experiment, context, quick=quick, version=version)
        except UnavailableError as error:
            done(experiment, None, str(error))
        else:
            done(experiment, record, "kept" if was_there else "measured")


def finished(name: str, folder: Path) -> Record | None:
    """The record of a finished experiment whose files all exist; None otherwise."""
    path = folder / f"{name}.json"
    try:
        record = json.loads(path.read_text())
        files = record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if all((folder / file).is_file() for file in files) else None


def _timed(
    experiment: Experiment, settings: object, context: Context
) -> tuple[Result, dict[str, float]]:
    """The result and its running times; parts kept from earlier runs count with their own times."""
    context.seconds_kept = context.processor_seconds_kept = 0.0
    context.devices.clear()
    start, processor_start = time.perf_counter(), time.process_time()
    result = experiment.measure(settings, context)
    seconds = time.perf_counter() - start + context.seconds_kept
    processor_seconds = time.process_time() - processor_start + context.processor_seconds_kept
    took = {
        "seconds": seconds,
        "seconds_of_which_kept": context.seconds_kept,
        "processor_seconds": processor_seconds,
    }
    return result, {name: round(value, 2) for name, value in took.items()}


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """Set torch's number of threads within the block; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        torch.set_num_threads(before)


def _num_cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _versions(version: str) -> dict[str, str]:
    return {
        "crosscoding": version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _write(experiment: Experiment, result: Result, record: Record, folder: Path) -> None:
    """Write all files of an experiment; the record last, and atomically."""
    files: list[str] = []
    for name, text in experiment.pages(result).items():
        (folder / name).write_text(text)
        files.append(name)
    if result.tensors:
        files.append(f"{experiment.name}.safetensors")
        tensors = {name: tensor.contiguous().clone() for name, tensor in result.tensors.items()}
        save_file(tensors, folder / files[-1])
    for name, figure in experiment.draw(result).items():
        files += plots.save(figure, folder / name)
    record["files"] = files
    written = folder / f".{experiment.name}.json"
    written.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    written.replace(folder / f"{experiment.name}.json")


def _load() -> float | None:
    """Mean number of processes that wanted a core in the last minute; None if unknown."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
