"""The folder of a run: what is where, who may write, and how to stop.

manifest.json        what was asked and found, the same for every run with the same settings
shards/              the answers; a shard gets its name only when it is complete
records/             a JSON file for each finished shard: checksums, rejected rows, seconds
rejected.jsonl       rows that cannot be answered, with the reason
log.jsonl            progress, one line after each shard
model/               the model, if it was passed as an object and several processes load it
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from crosscoding.errors import ModelFormatError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_DIGITS = 8  # of a shard's number: names sort like numbers up to 100 million shards


class Folder:
    """The folder of a run.

    Args:
        path: Where it is, or will be.
        suffix: Suffix of the shards' names.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self._suffix = path, suffix
        self.manifest = path / "manifest.json"
        self.rejected = path / "rejected.jsonl"
        self.log = path / "log.jsonl"
        self.model = path / "model"
        self.stop = StopFile(path / ".stop")

    def make(self) -> None:
        """Create the folders that are missing.

        Raises:
            ValueError: They cannot be created.
        """
        try:
            for name in ("shards", "records"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"expected a writable folder for the results, got {self.path}: {error.strerror}"
            ) from None

    def shard(self, number: int) -> Path:
        """Where a shard is, once it is finished."""
        return self.shard_named(f"shard-{number:0{_DIGITS}d}{self._suffix}")

    def shard_named(self, name: str) -> Path:
        """Where the shard of this name is."""
        return self.path / "shards" / name

    def record(self, number: int) -> Path:
        """Where the record of a shard is."""
        return self.path / "records" / f"{number:0{_DIGITS}d}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for one run. The lock ends with the process, however that ends.

        Raises:
            ValueError: Another run has locked it, or the system has no such locks.
        """
        if fcntl is None:
            raise ValueError("expected a system with flock, such as Linux or macOS")
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ValueError(
                    f"expected no other run in {self.path}, but {file.read() or 'one'} is at work; "
                    "wait for it, or choose another folder"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield

    def sweep(self) -> None:
        """Remove what earlier runs left unfinished."""
        self.stop.clear()
        for place in (self.path, self.path / "shards", self.path / "records"):
            for path in place.glob(".tmp-*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class StopFile:
    """Tells workers in all processes and on all machines to stop.

    Args:
        path: A file that all of them see.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self) -> None:
        """Ask workers to begin no further shard."""
        self._path.touch()

    def demand(self) -> None:
        """Ask workers to abandon their current shards as well."""
        self._path.write_text("now")

    def asked(self) -> bool:
        """Whether workers should begin no further shard."""
        return self._path.exists()

    def demanded(self) -> bool:
        """Whether workers should abandon their current shards."""
        try:
            return self._path.stat().st_size > 0
        except OSError:
            return False

    def clear(self) -> None:
        """Withdraw the request to stop."""
        self._path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: even after a crash, its name refers to complete content."""
    written = path.with_name(f".tmp-{uuid4().hex}")
    try:
        with written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
    _sync_folder(path.parent)


def move_whole(written: Path, path: Path) -> None:
    """Move a finished folder to its final name, replacing an earlier one."""
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if path.exists():
        shutil.rmtree(path)
    os.rename(written, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder, in hex."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        found.update(f"{file.relative_to(path)} {checksum(file)}\n".encode())
    return found.hexdigest()


def num_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, completely or not at all."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        ModelFormatError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFormatError(f"expected JSON in {path}, got something else: {error}") from None
