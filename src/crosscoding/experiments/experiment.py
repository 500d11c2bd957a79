"""Defines an experiment: settings, a function that measures, and one that draws the result.

`measure` returns a `Result`, which holds only numbers and tensors, and `draw` needs nothing else,
so pictures can be drawn again without measuring. Long work is split into parts (`Context.part`),
each saved as soon as it is finished, so an interrupted run resumes after the last one. Experiments
that need the same part with the same settings share it.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from crosscoding.errors import ModelFormatError
from crosscoding.methods import Method, Report, silent
from crosscoding.persistence.folder import read_folder, write_folder


class UnavailableError(ValueError):
    """Raised when an experiment needs a model or data that is missing."""


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        numbers: For JSON; None where there is no number.
        tensors: What is too large for JSON, by name.
    """

    numbers: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Context:
    """Where an experiment finds its data and models, and saves its parts.

    Args:
        folder: Folder of the results; parts are saved in its subfolder `parts`.
        seed: Seed of all random numbers.
        data: Folder of data sets, or None.
        models: Folder of other authors' models, or None.
        device: Device for the models of faces; results agree between devices up to rounding.
        report: Called with the finished share of a part and a description of the current step.

    Attributes:
        seconds_kept, processor_seconds_kept: Time that already finished parts took.
        devices: All devices that parts ran on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        data: Path | None = None,
        models: Path | None = None,
        device: str = "cpu",
        report: Report = silent,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.data = data
        self.models = models
        self.device = device
        self.report = report
        self.seconds_kept = 0.0
        self.processor_seconds_kept = 0.0
        self.devices: set[str] = set()

    def part(
        self, name: str, settings: object, work: Callable[[], Result], *, device: str = "cpu"
    ) -> Result:
        """Do a part of the work, or load its result from an earlier run with the same settings.

        Args:
            name: Name of the part, in lower-case letters, digits and hyphens.
            settings: Everything that determines the result, except the seed.
            work: Computes the result.
            device: The device it runs on.
        """
        key = {"settings": plain(settings), "seed": self.seed}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / "parts" / f"{name}-{digest}"
        with suppress(ModelFormatError):  # missing or damaged: computed again
            tensors, description = read_folder(path, "part")
            self.seconds_kept += description["seconds"]
            self.processor_seconds_kept += description["processor_seconds"]
            self.devices.add(description.get("device", "cpu"))
            return Result(description["numbers"], tensors)
        start, processor_start = time.perf_counter(), time.process_time()
        result = work()
        self.devices.add(device)
        description = {
            "name": name,
            **key,
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor_start,
            "device": device,
            "numbers": plain(result.numbers),
        }
        write_folder(path, "part", (result.tensors, description))
        return Result(description["numbers"], result.tensors)

    def data_file(self, name: str) -> Path:
        """A file of the data folder.

        Raises:
            UnavailableError: There is no such folder or file.
        """
        return _file_in(self.data, name, "data", "--data", "CROSSCODING_DATA")

    def model_file(self, name: str) -> Path:
        """A file of the folder of other authors' models; raises like `data_file`."""
        return _file_in(self.models, name, "models", "--models", "CROSSCODING_MODELS")


@dataclass(frozen=True)
class Experiment:
    """A figure or a comparison of the paper.

    Args:
        name: Its name on the command line.
        title: What it shows.
        wanted: What it should show, according to the paper.
        full: Settings as close to the paper's as possible, a frozen dataclass.
        quick: Settings that take about a minute.
        measure: Maps settings and a context to a result.
        draw: Maps a result to figures, keyed by file name without suffix.
        subjects: Digests of whatever else determines the result (models, files), by name. Raises
            UnavailableError if the experiment cannot be run.
        pages: Maps a result to text files, by name.
        changed: Settings changed by `with_settings`, by name.
        parallel: Whether to use all cores, which helps large decoders and slows down small fits.
    """

    name: str
    title: str
    wanted: str
    full: Any
    quick: Any
    measure: Callable[[Any, Context], Result]
    draw: Callable[[Result], Mapping[str, Figure]]
    subjects: Callable[[Context], dict[str, str]] = lambda context: {}
    pages: Callable[[Result], Mapping[str, str]] = lambda result: {}
    changed: Mapping[str, Any] = field(default_factory=dict)
    parallel: bool = False

    def with_settings(self, changes: Mapping[str, Any]) -> "Experiment":
        """The experiment with some settings changed, both full and quick.

        Args:
            changes: New values by name, as read from JSON.

        Raises:
            ValueError: There is no such setting (the message lists them), or its type differs.
        """
        return replace(
            self,
            full=_changed(self.name, self.full, changes),
            quick=_changed(self.name, self.quick, changes),
            changed=dict(changes),
        )


def plain(value: object) -> Any:
    """Convert a value for JSON: dataclasses to dicts, tensors to lists, NaN and infinity to None.

    Methods, and all else that JSON cannot represent, become their `repr`.
    """
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, (type, Method)):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return repr(value)


def _changed(name: str, settings: Any, changes: Mapping[str, Any]) -> Any:
    """The settings with changes, whose types must match."""
    known = {each.name: getattr(settings, each.name) for each in fields(settings)}
    new: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"expected a setting of {name}, got {key!r}; it has {has}")
        wanted = plain(known[key])
        if not _alike(value, wanted):
            raise ValueError(f"expected {key} of {name} to be like {wanted!r}, got {value!r}")
        new[key] = tuple(value) if isinstance(value, list) else value
    return replace(settings, **new)


def _alike(value: object, wanted: object) -> bool:
    """Whether a value has the type of another. A list must not be empty, and all its items fit."""
    if isinstance(value, list) and isinstance(wanted, list):
        return bool(value) and all(_alike(each, wanted[0]) for each in value)
    if isinstance(wanted, float) and isinstance(value, int) and not isinstance(value, bool):
        return True
    return type(value) is type(wanted)


def _file_in(folder: Path | None, name: str, what: str, option: str, variable: str) -> Path:
    if folder is None:
        raise UnavailableError(
            f"expected a folder of {what} with {name}; give it with {option} or in {variable}"
        )
    if not (folder / name).is_file():
        raise UnavailableError(f"expected {name} in the folder of {what} {folder}: no such file")
    return folder / name
