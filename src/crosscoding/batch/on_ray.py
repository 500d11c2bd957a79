"""Shards answered by Ray Data: actors load the model, on one machine or a cluster.

Ray chooses where actors run, replaces those that die, retries their shards, and adds actors within
limits. Only shard numbers and records pass through Ray; each actor reads rows and writes answers
itself, so all machines must see the source and the folder under the same path.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from crosscoding.batch.engines import Engine
from crosscoding.batch.sources.base import SourceChangedError, needs
from crosscoding.batch.worker import Job, Record, Worker

_MOST_BLOCKS = 10_000  # an actor answers, and Ray retries, the shards of a block together


def ray_is_running() -> bool:
    """Whether this program has called `ray.init`."""
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def on_ray(workers: int | tuple[int, int] | None, address: str | None, num_gpus: float) -> Engine:
    """An engine of Ray actors.

    Args:
        workers: Number of actors, or the least and the most; None: from one to as many as fit.
        address: Address of the cluster, as for `ray.init`; None: that of a cluster that this
            program has joined.
        num_gpus: GPUs, or the share of one, that each actor needs.
    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise needs("a cluster", "ray") from None

    def answer(job: Job, shards: Sequence[int]) -> Iterator[Record]:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        pool = workers
        if pool is None:
            room = ray.cluster_resources()
            most = room.get("GPU", 0) / num_gpus if num_gpus else room.get("CPU", 1)
            pool = (1, max(int(most), 1))
        return _records(job, shards, pool, num_gpus)

    return answer


def _records(
    job: Job, shards: Sequence[int], pool: int | tuple[int, int], num_gpus: float
) -> Iterator[Record]:
    import ray.data  # pyright: ignore[reportMissingImports]

    least, most = (pool, pool) if isinstance(pool, int) else pool
    numbers = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=min(len(shards), _MOST_BLOCKS)
    )
    done = numbers.map_batches(
        _Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=1,
        num_gpus=num_gpus or None,
    )
    for row in done.iter_rows():
        _raise_again(*row["fault"])
        if row["record"]:
            yield Record(**json.loads(row["record"]))


class _Actor:
    """A worker as Ray Data calls it: takes the number of a shard as a batch, returns its record.

    Errors that the driver handles are returned as data, since Ray would retry a shard that raised.
    """

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        (shard,) = batch["shard"].tolist()
        try:
            record = self._worker.answer(shard)
        except (OSError, SourceChangedError) as error:
            number = getattr(error, "errno", None) or 0
            words = getattr(error, "strerror", None) or str(error)
            return {"record": [""], "fault": [[type(error).__name__, str(number), words]]}
        text = "" if record is None else json.dumps(asdict(record))
        return {"record": [text], "fault": [["", "0", ""]]}


def _raise_again(kind: str, number: str, words: str) -> None:
    """Raise the error that an actor reported, if any."""
    if kind == SourceChangedError.__name__:
        raise SourceChangedError(words)
    if kind:
        raise OSError(int(number), words)
