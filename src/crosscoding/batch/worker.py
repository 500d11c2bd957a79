"""`Worker`: loads the model and answers one shard after another.

Every engine runs this same code: in this process, in worker processes or in Ray actors. A worker
writes its own shards and returns only a record of each, so nothing large is sent between processes.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from crosscoding.batch.answers import Answers, answers_to
from crosscoding.batch.folder import (
    Folder,
    checksum,
    move_whole,
    num_bytes,
    read_json,
    write_whole,
)
from crosscoding.batch.inputs import Inputs
from crosscoding.batch.models import load_model
from crosscoding.batch.results import parquet_shards, zarr_shards
from crosscoding.batch.rows import rows_for
from crosscoding.batch.settings import Settings
from crosscoding.errors import ModelFormatError
from crosscoding.model.vae import VAE

_SUFFIXES = {"parquet": parquet_shards.SUFFIX, "zarr": zarr_shards.SUFFIX}


class GivenUpError(Exception):
    """A shard was abandoned because the run must stop at once."""


@dataclass(frozen=True)
class Record:
    """The record of a finished shard.

    Attributes:
        shard: The shard's number.
        start, stop: Its range of rows in the source.
        answered: Number of rows that were answered.
        rejected: Row number and reason for each of the others.
        verdicts: By purpose, the number of answers with each label.
        file: Name of the shard's file or folder.
        sha256: Checksum of the file, or of all files in the folder.
        answers_sha256: Checksum of its contents without the seconds that rows took.
        bytes: Size of the file or folder.
        input: SHA-256 of the rows as the model got them.
        stamp: Sizes, times and inodes of the source's files that contain these rows.
        seconds: Time that the answers took.
        run: Digest of the run that it belongs to.
    """

    shard: int
    start: int
    stop: int
    answered: int
    rejected: list[list[Any]]
    verdicts: dict[str, dict[str, int]]
    file: str
    sha256: str
    answers_sha256: str
    bytes: int
    input: str
    stamp: list[list[int]]
    seconds: float
    run: str

    def write(self, path: Path) -> None:
        """Write the record, with its own checksum."""
        content = asdict(self)
        text = json.dumps({"record": content, "sha256": _digest(content)})
        write_whole(path, text.encode())

    @staticmethod
    def read(path: Path) -> "Record | None":
        """Read a record; None if it is missing or damaged."""
        try:
            content = read_json(path)
            own = content["record"]
            return Record(**own) if content["sha256"] == _digest(own) else None
        except (OSError, ModelFormatError, KeyError, TypeError):
            return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a worker needs to know.

    Attributes:
        model: The model, or the folder that it is loaded from.
        allow_code: Whether the folder may name classes to import.
        inputs: The rows.
        settings: What to answer.
        out: The folder of the run.
        run: Digest of model, source and settings.
    """

    model: VAE | str
    allow_code: bool
    inputs: Inputs
    settings: Settings
    out: Path
    run: str

    @property
    def num_shards(self) -> int:
        return -(-self.inputs.num_rows // self.settings.shard_rows)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the one after its last."""
        start = shard * self.settings.shard_rows
        return start, min(start + self.settings.shard_rows, self.inputs.num_rows)

    @property
    def folder(self) -> Folder:
        return Folder(self.out, _SUFFIXES[self.settings.format])


class Worker:
    """Answers shards of a job.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._folder = job, job.folder
        vae = job.model
        if not isinstance(vae, VAE):
            vae = load_model(vae, allow_code=job.allow_code)
        self._vae = vae.to(job.settings.device)

    def answer(self, shard: int) -> Record | None:
        """Answer a shard and write it, first its file, then its record.

        Returns:
            The record; None if the run is to stop.
        Raises:
            SourceChangedError, OSError, ValueError: A file cannot be read or written.
        """
        if self._folder.stop.asked():
            return None
        try:
            return self._answer(shard, *self._job.rows_of(shard))
        except GivenUpError:
            return None

    def sample(self, num: int) -> Record:
        """Answer the first rows, as a shard of their own."""
        return self._answer(0, 0, num)

    def _answer(self, shard: int, start: int, stop: int) -> Record:
        job, began = self._job, time.perf_counter()
        rows = rows_for(self._vae, job.inputs, start, stop, job.settings.observe)
        with _one_thread():
            answers = answers_to(self._vae, rows, job.settings, job.settings.max_bytes, self._go_on)
        path = self._folder.shard(shard)
        digest = self._write(path, answers)
        record = Record(
            shard,
            start,
            stop,
            len(answers.rows),
            [list(pair) for pair in sorted((rows.rejected | answers.rejected).items())],
            {purpose: dict(sorted(Counter(v).items())) for purpose, v in answers.verdicts.items()},
            path.name,
            checksum(path),
            digest,
            num_bytes(path),
            rows.digest(),
            job.inputs.stamp(start, stop),
            time.perf_counter() - began,
            job.run,
        )
        record.write(self._folder.record(shard))
        return record

    def _write(self, path: Path, answers: Answers) -> str:
        """Write a shard, and return the digest of its answers."""
        settings = self._job.settings
        if settings.format == "parquet":
            names, table = self._job.inputs.source.names, self._vae.table
            content, digest = parquet_shards.parquet_shard(answers, settings, table, names)
            write_whole(path, content)
            return digest
        written = path.with_name(f".tmp-{uuid4().hex}")
        digest = zarr_shards.write_zarr_shard(written, answers)
        move_whole(written, path)
        return digest

    def _go_on(self, share: float, what: str) -> None:
        """Called about once a second; raises GivenUpError if the run must stop at once."""
        if self._folder.stop.demanded():
            raise GivenUpError


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that answers are the same, bit for bit, in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
