"""Folders of one safetensors file and one JSON file: read without running anything they hold."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosscoding.errors import ModelFormatError

_TENSORS, _DESCRIPTION = "tensors.safetensors", "description.json"
_MAX_DESCRIPTION_BYTES = 4 * 2**20

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
    tensors, description = parts
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, written / _TENSORS)
        (written / _DESCRIPTION).write_text(json.dumps({"kind": kind, **description}, indent=1))
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
        ModelFormatError: The folder does not hold this kind of thing, or is damaged.
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
    return tensors, description


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
