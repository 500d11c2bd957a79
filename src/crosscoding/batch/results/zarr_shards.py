"""A shard as a Zarr group: arrays whose first dimension counts the rows that were answered.

Its arrays are `row`, `mean`, `low`, `high`, further quantiles and draws in the shape of the data,
`log_evidence`, `log_evidence_error`, `ess`, and for each purpose a verdict, `mean_verdict` and so
on, as a number: 0 trusted, 1 approximate, 2 unreliable.
"""

from pathlib import Path

import numpy as np

from crosscoding.batch.answers import Answers
from crosscoding.result.check import LABELS

SUFFIX = ".zarr"


def write_zarr_shard(path: Path, answers: Answers) -> None:
    """Write a shard to a new folder."""
    import zarr  # pyright: ignore[reportMissingImports]

    group = zarr.open_group(path, mode="w-")
    group.attrs["verdicts"] = list(LABELS)
    codes = {
        f"{purpose}_verdict": np.array([LABELS.index(label) for label in labels], dtype=np.uint8)
        for purpose, labels in answers.verdicts.items()
    }
    for name, array in {"row": answers.rows.numbers, **answers.arrays, **codes}.items():
        group.create_array(name, data=np.ascontiguousarray(array))
