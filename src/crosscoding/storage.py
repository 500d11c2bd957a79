"""Folders of one safetensors file and one JSON file: read without running anything they hold.

The JSON holds a SHA-256 of every tensor and of the rest of the JSON: what is damaged, missing or
left over is noticed. It is no signature: whoever changes a folder on purpose can write new ones.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from crosscoding.errors import ModelFormatError

_TENSORS, _DESCRIPTION = "tensors.safetensors", "description.json"
_MAX_DESCRIPTION_BYTES = 4 * 2**20
_CHECKSUMS = "checksums"
_WITHOUT_CHECKSUMS = ("vae",)  # kinds that were written before there were any

Parts = tuple[dict[str, Tensor], dict[str, Any]]
"""What an object is saved as: its tensors by name, and the rest as JSON."""


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under names that begin with `prefix.`"""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def write_folder(path: Path, kind: str, parts: Parts) -> None:
    """Write parts to a folder that does not exist yet or holds the same kind, whole or not at all.

    Raises:
        ValueError: Something else is at path, or it cannot be written.
    """
    if path.exists() and not _holds(path, kind):
        raise ValueError(f"expected a new folder or a saved {kind} at {path}, got something else")
    tensors = {name: tensor.contiguous().clone() for name, tensor in parts[0].items()}
    description = {"kind": kind, **parts[1]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        save_file(tensors, written / _TENSORS)
        description[_CHECKSUMS] = checksums(tensors, description)
        (written / _DESCRIPTION).write_text(json.dumps(description, indent=1))
        written.chmod(0o755)
        if path.exists():
            for name in (_TENSORS, _DESCRIPTION):
                os.replace(written / name, path / name)
        else:
            written.rename(path)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def read_folder(path: Path, kind: str) -> Parts:
    """Read what `write_folder` wrote.

    Raises:
        ModelFormatError: The folder does not hold this kind of thing, or is damaged. Folders of
            kinds that are older than checksums may have none.
    """
    for name in (_DESCRIPTION, _TENSORS):
        if not (path / name).is_file():
            raise ModelFormatError(f"expected a saved {kind} in {path}, and {name} is missing")
    description = _read_description(path, kind)
    tensors_path = path / _TENSORS
    try:
        tensors = load_file(tensors_path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFormatError(f"expected safetensors in {tensors_path}: {error}") from error
    given = description.pop(_CHECKSUMS, None)
    if given is not None or kind not in _WITHOUT_CHECKSUMS:
        _check(given, checksums(tensors, description), path)
    return tensors, description


def checksums(tensors: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of each tensor (its dtype, shape and bytes) and of the description, in hex."""
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
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def _check(given: Any, found: dict[str, Any], path: Path) -> None:
    """Raise ModelFormatError unless what was written is what is there."""
    if not isinstance(given, dict) or not isinstance(given.get("tensors"), dict):
        raise ModelFormatError(f"expected checksums in {path / _DESCRIPTION}, got none")
    written, there = given["tensors"], found["tensors"]
    for name in sorted(written.keys() | there.keys()):
        if written.get(name) != there.get(name):
            how = "damaged" if name in written and name in there else "missing or left over"
            raise ModelFormatError(f"expected {path} as it was saved: tensor {name!r} is {how}")
    if given.get("description") != found["description"]:
        raise ModelFormatError(f"expected {path / _DESCRIPTION} as it was saved: it was changed")


def _read_description(path: Path, kind: str) -> dict[str, Any]:
    description_path = path / _DESCRIPTION
    if description_path.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise ModelFormatError(f"expected {description_path} under {_MAX_DESCRIPTION_BYTES} bytes")
    try:
        description = json.loads(description_path.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"expected JSON in {description_path}: {error}") from error
    if not isinstance(description, dict) or description.get("kind") != kind:
        raise ModelFormatError(f"expected the description of a {kind} in {description_path}")
    return description


def _holds(path: Path, kind: str) -> bool:
    """Whether the folder has the description of this kind of thing."""
    try:
        return (path / _DESCRIPTION).is_file() and bool(_read_description(path, kind))
    except ModelFormatError:
        return False
