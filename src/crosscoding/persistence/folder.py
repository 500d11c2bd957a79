"""Folders of one safetensors file and one JSON file, read without running any code in them.

The JSON holds a SHA-256 of every tensor and of the rest of the JSON, so anything damaged, missing
or left over is detected. This is not a signature: whoever changes a folder on purpose can write new
checksums.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, contiguous_format, uint8

from crosscoding.errors import ModelFormatError, first_line
from crosscoding.persistence.pickles import way_out

_DESCRIPTION = "description.json"
_TENSORS = (
    "tensors.safetensors",
    "tensors-2.safetensors",
)  # used in turn when a folder is replaced
_TENSORS_FILE = "tensors_file"  # field that names one of them; by default the first
_MAX_BYTES = 4 * 2**20  # largest JSON: the description, and the header of the tensors file
_MAX_DEPTH = 50
_CHECKSUMS = "checksums"

T = TypeVar("T")
Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""The saved form of an object: its tensors by name, and everything else as JSON."""


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors, with `prefix.` put before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names begin with `prefix.`, which is removed."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def write_folder(path: Path, kind: str, parts: Contents) -> None:
    """Write parts to a new folder or over one of the same kind; either everything or nothing.

    If there is an older one, the new one becomes valid when its description, which names its
    tensors file, replaces the old description. A failure before that leaves the old one intact,
    unless it is a power cut, as data are not flushed to disk. Links are followed.

    Raises:
        ValueError: Something else is at path, or it cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        _write(path, kind, parts, _tensors_there(path, kind))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise ValueError(f"cannot write to {path}: {why}") from error


def _write(path: Path, kind: str, parts: Contents, taken: str | None) -> None:
    """Write parts beside the old ones, to the unused tensors file, and move them into place."""
    file = next(name for name in _TENSORS if name != taken)
    tensors = {name: tensor.contiguous().clone() for name, tensor in parts[0].items()}
    description = {"kind": kind, **parts[1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.parent / f".{path.name}-{uuid4().hex[:8]}"
    written.mkdir()
    try:
        save_file(tensors, written / file)
        description[_CHECKSUMS] = checksums(tensors, description)
        if file != _TENSORS[0]:
            description[_TENSORS_FILE] = file
        (written / _DESCRIPTION).write_text(json.dumps(description, indent=1))
        if taken is None:
            written.rename(path)
        else:
            os.replace(written / file, path / file)
            os.replace(written / _DESCRIPTION, path / _DESCRIPTION)
            for name in set(_TENSORS) - {file}:
                (path / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(written, ignore_errors=True)


class Folder:
    """A folder that `write_folder` wrote. Its description is read now, its tensors on request.

    Args:
        path: The folder.
        kind: The kind of object that it must hold.

    Attributes:
        description: The JSON.
        shapes: The shape of each tensor, by name.

    Raises:
        ModelFormatError: The folder does not hold this kind of object, or is damaged.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        _check_file(path, _DESCRIPTION, kind)
        self.description = _read_description(path, kind)
        file = self.description.pop(_TENSORS_FILE, _TENSORS[0])
        if file not in _TENSORS:
            raise ModelFormatError(f"expected {' or '.join(_TENSORS)} in {path}, got {file!r:.80}")
        _check_file(path, file, kind)
        self._tensors = path / file
        self.shapes = _shapes_in(self._tensors)

    def read(self) -> Contents:
        """Tensors and description, after their checksums have been checked.

        Raises:
            ModelFormatError: Something is damaged, or has no checksum.
        """
        try:
            tensors = load_file(self._tensors)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise _no_safetensors(self._tensors, error) from error
        description = dict(self.description)
        given = description.pop(_CHECKSUMS, None)
        _check(given, checksums(tensors, description), self.path)
        return tensors, description


def read_folder(path: Path, kind: str) -> Contents:
    """Read what `write_folder` wrote; errors as `Folder`."""
    return Folder(path, kind).read()


def checksums(tensors: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of each tensor (dtype, shape and bytes) and of the description, in hex."""
    text = json.dumps(description, sort_keys=True)
    return {
        "tensors": {name: _digest(tensor) for name, tensor in sorted(tensors.items())},
        "description": hashlib.sha256(text.encode()).hexdigest(),
    }


def fingerprint(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """One SHA-256 of tensors and description, in hex."""
    text = json.dumps(checksums(tensors, description), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # possible for a single number taken from a larger tensor
        flat = flat.clone(memory_format=contiguous_format)
    digest.update(flat.view(uint8).numpy().data)
    return digest.hexdigest()


def _check(given: Any, found: dict[str, Any], path: Path) -> None:
    """Raise ModelFormatError unless the given checksums are those found."""
    if not isinstance(given, dict) or not isinstance(given.get("tensors"), dict):
        raise ModelFormatError(f"expected checksums in {path / _DESCRIPTION}, got none")
    written, there = given["tensors"], found["tensors"]
    for name in sorted(written.keys() | there.keys()):
        if written.get(name) != there.get(name):
            how = "damaged" if name in written and name in there else "missing or left over"
            raise ModelFormatError(f"expected {path} as it was saved: tensor {name!r} is {how}")
    if given.get("description") != found["description"]:
        raise ModelFormatError(f"expected {path / _DESCRIPTION} as it was saved: it was changed")


def _check_file(folder: Path, name: str, kind: str) -> None:
    """Raise ModelFormatError unless a regular file of this name is in the folder itself."""
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "missing"
        raise ModelFormatError(
            f"expected a saved {kind} in {folder}, but it is {what}{_way_out(folder)}"
        )
    path = folder / name
    if not path.is_file():  # a pipe or a device might never end
        what = "not a regular file" if path.exists() else "missing"
        advice = next(filter(None, map(_way_out, sorted(folder.iterdir()))), "")
        raise ModelFormatError(f"expected a saved {kind} in {folder}, but {name} is {what}{advice}")
    if path.resolve().parent != folder.resolve():
        raise ModelFormatError(
            f"expected {path} in its folder, got a link to {path.resolve()}; copy the file there"
        )


def _way_out(path: Path) -> str:
    """The end of a message about a file: what to do if it is a pickle, else ""."""
    said = way_out(path)
    return f"; {said}" if said else ""


def _shapes_in(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a file, read from its header, as it may exceed memory."""
    total = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_BYTES:
            raise ModelFormatError(
                f"expected safetensors in {path} with a header under {_MAX_BYTES} bytes, got one "
                f"of {size}{_way_out(path)}"
            )
        if total < 8 + size or not size:
            raise ModelFormatError(
                f"expected safetensors in {path}, got a file of {total} bytes that ends within its "
                f"header, as if cut off{_way_out(path)}"
            )
        try:
            header = json.loads(file.read(size).decode(), object_pairs_hook=_without_repeats)
            entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
            return {name: [int(length) for length in entry["shape"]] for name, entry in entries}
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise _no_safetensors(path, error) from error


def _no_safetensors(path: Path, error: Exception) -> ModelFormatError:
    return ModelFormatError(f"expected safetensors in {path}: {first_line(error)}")


def _read_description(path: Path, kind: str) -> dict[str, Any]:
    description_path = path / _DESCRIPTION
    if description_path.stat().st_size > _MAX_BYTES:
        raise ModelFormatError(f"expected {description_path} under {_MAX_BYTES} bytes")
    try:
        text = description_path.read_text(encoding="utf-8")
        description = json.loads(text, object_pairs_hook=_without_repeats)
        _check_depth(description)
    except (ValueError, RecursionError) as error:
        said = error if description_path.stat().st_size else "it is empty"
        raise ModelFormatError(f"expected JSON in {description_path}: {said}") from error
    if not isinstance(description, dict) or description.get("kind") != kind:
        raise ModelFormatError(f"expected the description of a {kind} in {description_path}")
    return description


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; repeated names are refused, as readers would disagree on their value."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an object contains the same name twice")
    return entries


def _check_depth(description: Any) -> None:
    """Raise ValueError if lists and objects are nested too deeply for recursion."""
    level: list[Any] = [[description]]
    for _ in range(_MAX_DEPTH):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [value for part in parts for value in part if isinstance(value, (dict, list))]
        if not level:
            return
    raise ValueError(f"lists and objects are nested more than {_MAX_DEPTH} deep")


def _tensors_there(path: Path, kind: str) -> str | None:
    """The tensors file of the object saved at a path, or None if nothing is there.

    Raises:
        ValueError: Something else is there.
    """
    if not path.exists():
        return None
    try:
        if (path / _DESCRIPTION).is_file():
            return str(_read_description(path, kind).get(_TENSORS_FILE, _TENSORS[0]))
    except ModelFormatError:
        pass
    raise ValueError(f"expected a new folder or a saved {kind} at {path}, got something else")
