"""The driver of a run: finds the shards that are left, has them answered, and keeps records."""

import errno
import json
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crosscoding.batch.engines import Engine, here
from crosscoding.batch.errors import StoppedError
from crosscoding.batch.folder import Folder, checksum
from crosscoding.batch.manifest import check_same, write_manifest
from crosscoding.batch.models import folder_for_workers
from crosscoding.batch.rows import rows_for
from crosscoding.batch.signals import stopping_on_signals
from crosscoding.batch.sources.base import SourceChangedError
from crosscoding.batch.worker import Job, Record
from crosscoding.model.vae import VAE

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        rows, of: Number of rows done, whether answered or rejected, and of all rows.
        rejected: Number of rows rejected.
        shards: Finished shards.
        rows_per_second: Rate of this run; None at its beginning.
        seconds_left: Time left at this rate; None at the beginning.
    """

    rows: int
    of: int
    rejected: int
    shards: int
    rows_per_second: float | None
    seconds_left: float | None


Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        out: The folder.
        manifest: The content of its manifest.json.
        complete: Whether all rows are done; if not, the run was told to stop.
        rows: Number of rows in the source.
        answered, rejected: Number of rows that were answered, and of those that could not be.
        verdicts: By purpose, the number of answers with each label.
        notes: What a user should know, such as shards that had to be answered again.
        interrupted: Whether it was stopped by Ctrl-C.
        seconds: Wall-clock time of this run.
    """

    out: Path
    manifest: dict[str, Any]
    notes: tuple[str, ...]
    interrupted: bool
    seconds: float

    @property
    def complete(self) -> bool:
        return self.manifest["complete"]

    @property
    def rows(self) -> int:
        return self.manifest["source"]["rows"]

    @property
    def answered(self) -> int:
        return self.manifest["answered"]

    @property
    def rejected(self) -> int:
        return self.manifest["rejected"]

    @property
    def verdicts(self) -> dict[str, dict[str, int]]:
        return self.manifest["verdicts"]


@dataclass(frozen=True, eq=False)
class Driver:
    """Runs a job.

    Args:
        job: The job.
        vae: Its model.
        name: Name or folder from which workers load the model; None: it is saved for them.
        request: The run's model, source and settings, for the manifest.
        grace: Seconds after SIGTERM in which workers may finish their current shards.
        listener: Called with the progress after each shard.
    """

    job: Job
    vae: VAE
    name: str | None
    request: dict[str, Any]
    grace: float
    listener: Listener

    def run(self, engine: Engine) -> Result:
        """Answer the remaining shards with an engine."""
        try:
            return self._run(engine)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise StoppedError(
                f"no space for further results in {self.job.out} ({error.strerror}); finished "
                "shards are kept: free some space and run again"
            ) from error

    def _run(self, engine: Engine) -> Result:
        began, folder = time.monotonic(), self.job.folder
        folder.make()
        with folder.locked():
            check_same(folder, self.request)
            folder.sweep()
            done, notes = self._done(folder)
            if len(done) < self.job.num_shards:
                before = self._in_order(folder, done)
                write_manifest(folder, self.request, before, complete=False)
            with stopping_on_signals(folder.stop, self.grace) as signals:
                self._answer(engine, self._for_workers(engine, folder), done)
            complete = len(done) == self.job.num_shards
            if not complete and not folder.stop.asked():
                raise StoppedError(
                    f"workers left {self.job.num_shards - len(done)} of {self.job.num_shards} "
                    f"shards unanswered in {self.job.out}; run again"
                )
            folder.stop.clear()
            records = self._in_order(folder, done)
            manifest = write_manifest(folder, self.request, records, complete=complete)
        seconds = time.monotonic() - began
        return Result(self.job.out, manifest, tuple(notes), signal.SIGINT in signals, seconds)

    def _for_workers(self, engine: Engine, folder: Folder) -> Job:
        """The job, with a model that other processes can load."""
        if engine is here:
            return self.job
        name = self.name or folder_for_workers(self.vae, folder)
        path = Path(name)  # workers may run in another folder
        return replace(self.job, model=str(path.resolve()) if path.is_dir() else name)

    def _done(self, folder: Folder) -> tuple[dict[int, tuple[int, int]], list[str]]:
        """Numbers of rows and rejected rows by finished shard, and notes about damaged shards."""
        done, notes = {}, []
        for shard in range(self.job.num_shards):
            record = Record.read(folder.record(shard))
            if record is None or record.run != self.job.run:
                continue
            path = folder.shard(shard)
            if not path.exists() or checksum(path) != record.sha256:
                what = "changed" if path.exists() else "removed"
                notes.append(f"shard {shard} was {what}, so it is answered again")
                continue
            self._check_rows(record, surely=not done)
            done[shard] = record.stop - record.start, len(record.rejected)
        return done, notes

    def _check_rows(self, record: Record, *, surely: bool) -> None:
        """Raise SourceChangedError if the rows of a finished shard have changed.

        They are read again if the stamps of their files have changed or, if `surely`, in any case.
        """
        job = self.job
        if not surely and record.stamp == job.inputs.stamp(record.start, record.stop):
            return
        rows = record.start, record.stop
        now = rows_for(self.vae, job.inputs, *rows, job.settings.observe)
        if now.digest() != record.input:
            raise SourceChangedError(
                f"expected {job.inputs.words} to be unchanged, but rows {rows[0]} to "
                f"{rows[1] - 1}, which are already answered in {job.out}, have changed; choose "
                "another folder for the new rows"
            )

    def _answer(self, engine: Engine, job: Job, done: dict[int, tuple[int, int]]) -> None:
        """Have the remaining shards answered, and report progress."""
        began, total, new = time.monotonic(), self.job.inputs.num_rows, 0
        rows, rejected = (sum(counts) for counts in zip((0, 0), *done.values(), strict=True))
        left = [shard for shard in range(self.job.num_shards) if shard not in done]
        with job.folder.log.open("a", encoding="utf-8") as log:
            self._tell(Progress(rows, total, rejected, len(done), None, None), log)
            for record in engine(job, left) if left else ():
                done[record.shard] = record.stop - record.start, len(record.rejected)
                new += record.stop - record.start
                rejected += len(record.rejected)
                rate = new / max(time.monotonic() - began, 1e-9)
                rest = (total - rows - new) / rate
                self._tell(Progress(rows + new, total, rejected, len(done), rate, rest), log)

    def _tell(self, progress: Progress, log: Any) -> None:
        log.write(json.dumps({"time": time.time(), **vars(progress)}) + "\n")
        log.flush()
        self.listener(progress)

    def _in_order(self, folder: Folder, done: Iterable[int]) -> Iterable[Record]:
        for shard in sorted(done):
            record = Record.read(folder.record(shard))
            if record is not None:
                yield record
