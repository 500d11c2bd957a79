"""`run` and `estimate`, the functions that a user calls."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.batch.driver import Driver, Listener, Progress, Result
from crosscoding.batch.engines import Engine, here, in_processes
from crosscoding.batch.inputs import open_inputs
from crosscoding.batch.manifest import asked, run_digest
from crosscoding.batch.models import load_model
from crosscoding.batch.on_ray import on_ray, ray_is_running
from crosscoding.batch.results.parquet_shards import check_names
from crosscoding.batch.settings import checked_settings
from crosscoding.batch.worker import Job, Worker
from crosscoding.clock import MAX_BYTES
from crosscoding.conditioning import condition
from crosscoding.covariates import mapped
from crosscoding.errors import check_count
from crosscoding.evidence import Evidence
from crosscoding.formats.table_style import TableStyle
from crosscoding.methods import Method
from crosscoding.model.vae import VAE
from crosscoding.progress import followed, silent

_SAMPLE = 200  # rows that are answered for an estimate


def run(
    model: VAE | str | Path,
    source: str | Path,
    out: str | Path,
    *,
    method: Method | None = None,
    seed: int = 0,
    observe: Tensor | np.ndarray | str | Path | None = None,
    given: str | Path | Sequence[str] | None = None,
    level: float = 0.9,
    quantiles: Sequence[float] = (),
    draws: int = 0,
    keep: Sequence[str] = (),
    shard_rows: int = 1000,
    format: str = "parquet",
    workers: int | tuple[int, int] | None = None,
    address: str | None = None,
    num_gpus: float = 0.0,
    device: str | None = None,
    allow_code: bool = False,
    style: TableStyle | None = None,
    max_bytes: int = MAX_BYTES,
    grace: float = 60.0,
    on_progress: Callable[[Progress], None] | None = None,
    progress: bool = True,
) -> Result:
    """Answer all rows of a source, shard by shard, into a folder; run it again to resume.

    The answer to a row depends on the row, the seed, the model and the settings, but not on the
    worker or on how often the run was interrupted. With another shard size it agrees up to Monte
    Carlo error, because matrix products of other sizes are rounded differently. Rows that the model
    cannot take are listed in `rejected.jsonl` with the reason, and do not stop the run.

    Args:
        model: A VAE, the name of a model in the zoo, or a folder that `VAE.save` wrote.
        source: FILE.csv, .tsv, .txt, .parquet, .npy, .npz (or .npz:NAME for one array), a Zarr
            array or group (or PATH:NAME), or a folder of .parquet files or of pictures. Empty
            cells, nulls and NaN are missing. The columns of a model with a table are found by name.
        out: Folder for the results: a new one, or that of the run to resume.
        method: How rows are answered; by default `methods.Auto(purpose="interval")`.
        seed: Seed of all random numbers, ≥ 0.
        observe: Which elements are observed, boolean, in the shape of a datum; or an array file as
            for `source`, with a mask of zeros and ones for each row. A row that lacks an observed
            value is rejected. By default, all values that are present are observed.
        given: Covariates, for a model whose decoder takes them: columns of a CSV or Parquet source,
            one for each number, in order; or FILE.npy, .npz (or .npz:NAME) or Zarr, with
            a row for each row of the source. If they are several tensors, the file has an array for
            each key, such as "site". Rows whose covariates the decoder cannot take are rejected.
        level: Probability of the intervals from `low` to `high`, 0 to 1.
        quantiles: Levels of further quantiles.
        draws: Number of draws of each complete row, at most 1000.
        keep: Columns of a CSV or Parquet source that the model does not get, such as a key; they
            are copied to the results.
        shard_rows: Number of rows per shard, ≥ 1: the most work that a dying worker loses.
        format: Format of the shards: "parquet", or "zarr" for data without columns.
        workers: Number of processes on this machine; None: this process alone. On Ray: number of
            actors, or the least and the most; None: from 1 to as many as there is room for.
        address: Address of a Ray cluster, such as "auto". Without it, Ray is still used if this
            program has called `ray.init`.
        num_gpus: GPUs, or the share of one, that each Ray actor needs.
        device: Where the model runs; by default a GPU if num_gpus > 0, else where it is now.
        allow_code: Whether a model's folder may name classes to import, which runs their code.
        style: How a CSV file is written, `batch.TableStyle`.
        max_bytes: Approximate working memory of each worker, besides the model. Like all settings,
            it must be the same when a run is resumed.
        grace: Seconds after SIGTERM in which workers may finish their current shards. Ctrl-C stops
            at once. Either way, the result's `complete` is False.
        on_progress: Called after each shard.
        progress: Whether to show progress on a terminal or in a notebook.

    Returns:
        The folder of the results, and counts of rows and verdicts.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value, the source does not suit the
            model, the folder contains another run, or another run is using it.
        ImportError: A library that the source, format or engine needs is not installed.
        batch.SourceChangedError: The source changed while it was read, or since then.
        batch.StoppedError: The disk is full, or workers keep dying.

    Example:
        >>> import tempfile, numpy as np, crosscoding as cc
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "digits.npy", cc.zoo.digits()[0][:4].numpy())
        >>> upper_half = cc.rectangle_mask((28, 28), rows=(0, 13))
        >>> result = cc.batch.run(
        ...     "mnist-2d", folder / "digits.npy", folder / "out", observe=upper_half
        ... )
        >>> result.complete, result.answered, result.rejected
        (True, 4, 0)
    """
    job, vae, request = _planned(
        *(model, source, out, style, allow_code),
        method=method,
        seed=seed,
        observe=observe,
        given=given,
        level=level,
        quantiles=quantiles,
        draws=draws,
        shard_rows=shard_rows,
        format=format,
        keep=keep,
        max_bytes=max_bytes,
        device=device or ("cuda" if num_gpus else None),
    )
    engine = _engine(workers, address, num_gpus)
    name = None if isinstance(model, VAE) else str(model)
    with _listener(on_progress, progress) as listener:
        return Driver(job, vae, name, request, grace, listener).run(engine)


@dataclass(frozen=True)
class Estimate:
    """The time and disk space of a run, estimated from its first rows.

    Attributes:
        rows, shards: Number of rows and of shards in the run.
        sample: Number of rows that the estimate tried.
        rejected: How many of these were rejected.
        seconds: Computing time for one worker on this machine.
        bytes: Size of the results.
    """

    rows: int
    shards: int
    sample: int
    rejected: int
    seconds: float
    bytes: int


def estimate(
    model: VAE | str | Path,
    source: str | Path,
    *,
    allow_code: bool = False,
    style: TableStyle | None = None,
    device: str | None = None,
    max_bytes: int = MAX_BYTES,
    **settings: Any,
) -> Estimate:
    """Estimate the time and disk space of a run from up to 200 of its first rows.

    Nothing is written except to a temporary folder.

    Args:
        model, source, allow_code, style, device, max_bytes: As for `run`.
        settings: Any of `method`, `seed`, `observe`, `given`, `level`, `quantiles`, `draws`,
            `keep`, `shard_rows` and `format` of `run`.
    Raises:
        TypeError, ValueError, ImportError: As `run`.
    """
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        given = {**_DEFAULTS, "max_bytes": max_bytes, "device": device, **settings}
        job, _, _ = _planned(model, source, folder, style, allow_code, **given)
        job.folder.make()
        worker, num = Worker(job), min(_SAMPLE, job.inputs.num_rows, job.settings.shard_rows)
        worker.sample(1)  # the first call on a model also decodes points that later calls reuse
        began = time.perf_counter()
        record = worker.sample(num)
        seconds = time.perf_counter() - began
    return Estimate(
        job.inputs.num_rows,
        job.num_shards,
        num,
        len(record.rejected),
        seconds * job.inputs.num_rows / num,
        round(record.bytes * job.inputs.num_rows / num),
    )


_DEFAULTS = {
    "method": None,
    "seed": 0,
    "observe": None,
    "given": None,
    "level": 0.9,
    "quantiles": (),
    "draws": 0,
    "keep": (),
    "shard_rows": 1000,
    "format": "parquet",
}


def _planned(
    model: VAE | str | Path,
    source: str | Path,
    out: str | Path,
    style: TableStyle | None,
    allow_code: bool,
    **settings: Any,
) -> tuple[Job, VAE, dict[str, Any]]:
    """The job, its model, and its description for the manifest; nothing is written yet.

    Raises:
        TypeError, ValueError, ImportError: As `run`.
    """
    vae = model if isinstance(model, VAE) else load_model(model, allow_code=allow_code)
    given, observe = settings.pop("given"), settings.pop("observe")
    masks, mask = (observe, None) if isinstance(observe, (str, Path)) else (None, observe)
    checked = checked_settings(vae, observe=mask, **settings)
    _check_libraries(checked.format)
    _check_serves(vae, checked.method)
    inputs = open_inputs(source, vae, style or TableStyle(), checked, masks, given)
    if checked.format == "parquet":
        check_names(checked, vae.table, inputs.source.names)
    request = asked(vae, inputs, checked)
    job = Job(
        model=vae,
        allow_code=allow_code,
        inputs=inputs,
        settings=checked,
        out=Path(out).absolute(),
        run=run_digest(request),
    )
    return job, vae, request


def _check_serves(vae: VAE, method: Method) -> None:
    """Raise ValueError if the method cannot serve the model; it is tried on zero rows."""
    nothing = torch.zeros(0, *vae.data_shape, dtype=vae.dtype, device=vae.device)
    given = mapped(lambda tensor: tensor[:0], vae.examples) if vae.given is None else None
    evidence = Evidence(nothing, nothing.bool(), given=given)
    condition(vae, evidence, method, seed=0, progress=False)


def _check_libraries(format: str) -> None:
    """Raise ImportError if the library that writes this format is not installed."""
    from importlib.util import find_spec

    from crosscoding.batch.sources.base import needs

    module = {"parquet": "pyarrow", "zarr": "zarr"}[format]
    if find_spec(module) is None:
        raise needs(f"results in {format}", module)


def _engine(workers: int | tuple[int, int] | None, address: str | None, num_gpus: float) -> Engine:
    """Ray if there is a cluster, processes if a number is given, otherwise this process."""
    counts = () if workers is None else workers if isinstance(workers, tuple) else (workers,)
    for count in counts:
        check_count("workers", count, 1)
    if address is not None or ray_is_running():
        return on_ray(workers, address, num_gpus)
    if isinstance(workers, tuple) or num_gpus:
        raise ValueError(
            "expected workers as a range, and num_gpus, only on Ray; give an address, or call "
            "ray.init() first"
        )
    return here if workers is None else in_processes(workers)


@contextmanager
def _listener(on_progress: Listener | None, shown: bool) -> Iterator[Listener]:
    """A function that passes progress on to the caller and, if `shown`, to a display."""
    with followed("batch", silent, shown) as display:

        def listen(now: Progress) -> None:
            words = f"{now.rows:,} of {now.of:,} rows"
            if now.rows_per_second is not None:
                words += f", {now.rows_per_second:.3g} a second"
            display(now.rows / now.of, words)
            if on_progress is not None:
                on_progress(now)

        yield listen
