"""What an experiment is: settings, something to measure with them, and pictures of what came out.

`measure` gives a `Result`, numbers and tensors and no more, and `draw` makes pictures of a result
alone, so that a picture can be drawn again without measuring. Long work is done in parts
(`Context.part`), each kept as soon as it is finished: a run that is interrupted goes on after the
last of them. Experiments that ask for the same part with the same settings share it.
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
    """An experiment needs a model or data that is not there."""


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        numbers: For JSON; None where there is no number.
        tensors: What is too big for JSON, by name.
    """

    numbers: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Context:
    """Where an experiment finds its data and models, and keeps its parts.

    Args:
        folder: Of the results; parts are kept in `parts` below it.
        seed: Decides every random number.
        data: Folder of data sets, or None.
        models: Folder of others' models, or None.
        device: Where models of faces are run; results are the same to rounding only.
        report: Called with the share of a part that is done, and a word on what goes on.

    Attributes:
        seconds_kept, processor_seconds_kept: What the parts took that were found finished.
        devices: Where the parts ran, all of them.
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
        """The result of work, from an earlier run where there is one with the same settings.

        Args:
            name: Of the part; of lower-case letters, digits and hyphens.
            settings: All that decides the result, besides the seed.
            work: Does it.
            device: Where it runs.
        """
        key = {"settings": plain(settings), "seed": self.seed}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / "parts" / f"{name}-{digest}"
        with suppress(ModelFormatError):  # not there, or damaged: it is done again
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
        """A file of the folder of others' models; errors as `data_file`."""
        return _file_in(self.models, name, "models", "--models", "CROSSCODING_MODELS")


@dataclass(frozen=True)
class Experiment:
    """A figure or a comparison of the paper.

    Args:
        name: What the command knows it by.
        title: What it shows.
        wanted: What must be seen, by the paper.
        full: Settings, a frozen dataclass, as close to the paper's as can be.
        quick: Settings that take a minute or so.
        measure: From settings and a context to a result.
        draw: From a result to pictures, by the names of their files without ending.
        subjects: What else decides the result, by name, as a digest: models, files.
        pages: From a result to text files, by name.
        changed: Settings that are other than they were, by name.
        parallel: Whether its decoders are so large that it gains by all cores; small fits lose.

    `subjects` raises UnavailableError where the experiment cannot be run.
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
        """The experiment with some of its settings, full and quick, as JSON has them.

        Raises:
            ValueError: It has no such setting, or of another type; says which it has.
        """
        return replace(
            self,
            full=_changed(self.name, self.full, changes),
            quick=_changed(self.name, self.quick, changes),
            changed=dict(changes),
        )


def plain(value: object) -> Any:
    """The value as JSON has it: dataclasses as dicts, tensors as lists, NaN and infinity as None.

    A method, and whatever else JSON does not know, is described by its `repr`.
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
    """The settings with changes, each of the type that was there."""
    known = {each.name: getattr(settings, each.name) for each in fields(settings)}
    new: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"expected a setting of {name}, got {key!r}; it has {has}")
        wanted = plain(known[key])
        if not _alike(value, wanted):
            raise ValueError(f"expected {key} of {name} as {wanted!r} is, got {value!r}")
        new[key] = tuple(value) if isinstance(value, list) else value
    return replace(settings, **new)


def _alike(value: object, wanted: object) -> bool:
    """Whether a value is of the type of another; a list, if it is not empty and all of it is."""
    if isinstance(value, list) and isinstance(wanted, list):
        return bool(value) and all(_alike(each, wanted[0]) for each in value)
    if isinstance(wanted, float) and isinstance(value, int) and not isinstance(value, bool):
        return True
    return type(value) is type(wanted)


def _file_in(folder: Path | None, name: str, what: str, option: str, variable: str) -> Path:
    if folder is None:
        raise UnavailableError(
            f"expected a folder of {what} with {name}; name it with {option} or in {variable}"
        )
    if not (folder / name).is_file():
        raise UnavailableError(f"expected {name} in the folder of {what} {folder}: no such file")
    return folder / name
