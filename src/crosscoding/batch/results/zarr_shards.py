"""A shard as a Zarr group: arrays whose first dimension runs over the answered rows.

Its arrays are `row`, `mean`, `low`, `high`, further quantiles and draws in the shape of the data,
`log_evidence`, `log_evidence_error`, `ess`, and for each purpose a verdict, `mean_verdict` and so
on, as a number: 0 trusted, 1 approximate, 2 unreliable; and `seconds`, the row's share of its
block's time, the only array that may differ between two runs.
"""

from pathlib import Path

import numpy as np

from crosscoding.batch.answers import Answers
from crosscoding.batch.folder import checksum
from crosscoding.result.check import LABELS

SUFFIX = ".zarr"


def write_zarr_shard(path: Path, answers: Answers) -> str:
    """Write a shard to a new folder, and return a SHA-256 of all its arrays but `seconds`."""
    import zarr  # pyright: ignore[reportMissingImports]

    group = zarr.open_group(path, mode="w-")
    group.attrs["verdicts"] = list(LABELS)
    codes = {
        f"{purpose}_verdict": np.array([LABELS.index(label) for label in labels], dtype=np.uint8)
        for purpose, labels in answers.verdicts.items()
    }
    arrays = {"row": answers.rows.numbers, **answers.arrays, **codes}
    seconds = arrays.pop("seconds")
    for name, array in arrays.items():
        group.create_array(name, data=np.ascontiguousarray(array))
    digest = checksum(path)
    group.create_array("seconds", data=seconds)
    return digest


def schema_of(path: Path) -> dict[str, str]:
    """The types of a shard's arrays, and the shapes of their rows, by name."""
    import zarr  # pyright: ignore[reportMissingImports]

    arrays = dict(zarr.open_group(path, mode="r").arrays())
    return {name: f"{arrays[name].dtype} {arrays[name].shape[1:]}" for name in sorted(arrays)}
