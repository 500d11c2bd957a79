"""The settings of a run: what decides its answers, besides the model and the source."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoding.errors import check_count, unknown_name
from crosscoding.methods import Auto, Method
from crosscoding.model.vae import VAE

FORMATS = ("parquet", "zarr")
NUM_DRAWS = 1000  # per row, for quantiles: the level of the 0.05 quantile is then 0.05 ± 0.007


@dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a run; the manifest lists them, and a run resumes only with the same ones.

    Args:
        method: How rows are answered.
        seed: Seed of all random numbers.
        observe: Which elements are observed, boolean, in the shape of a datum; None: all that are
            present.
        level: Probability of the intervals.
        quantiles: Levels of further quantiles.
        draws: Number of draws of each complete row.
        shard_rows: Number of rows per shard.
        format: "parquet" or "zarr".
        keep: Columns that are copied to the results.
        max_bytes: Approximate working memory, which decides how many rows are answered at once.
        device: Where the model runs.
    """

    method: Method
    seed: int
    observe: np.ndarray | None
    level: float
    quantiles: tuple[float, ...]
    draws: int
    shard_rows: int
    format: str
    keep: tuple[str, ...]
    max_bytes: int
    device: str

    @property
    def levels(self) -> list[float]:
        """Levels of all quantiles: both ends of intervals, then the others."""
        return [0.5 - self.level / 2, 0.5 + self.level / 2, *self.quantiles]

    @property
    def quantile_names(self) -> list[str]:
        """A name for each of the levels."""
        return ["low", "high", *(f"q{level!r}" for level in self.quantiles)]

    def to_json(self) -> dict[str, Any]:
        """The settings as the manifest lists them."""
        mask = (
            None
            if self.observe is None
            else hashlib.sha256(np.packbits(self.observe).tobytes()).hexdigest()
        )
        return {
            "method": repr(self.method),
            "seed": self.seed,
            "observe": mask,
            "level": self.level,
            "quantiles": list(self.quantiles),
            "draws": self.draws,
            "shard_rows": self.shard_rows,
            "format": self.format,
            "keep": list(self.keep),
            "max_bytes": self.max_bytes,
            "device": torch.device(self.device).type,
        }


def checked_settings(
    vae: VAE,
    *,
    method: Method | None,
    seed: int,
    observe: "Tensor | np.ndarray | None",
    level: float,
    quantiles: Sequence[float],
    draws: int,
    shard_rows: int,
    format: str,
    keep: Sequence[str],
    max_bytes: int,
    device: str | None,
) -> Settings:
    """Check the settings of a run against its model, and return them.

    Raises:
        TypeError, ValueError: One has the wrong type or value, or does not suit the model.
    """
    method = Auto(purpose="interval") if method is None else method
    if not isinstance(method, Method):
        raise TypeError(f"expected method to be one of crosscoding.methods, got {method!r}")
    if getattr(method, "max_seconds", None) is not None:
        raise ValueError(
            "expected a method without max_seconds, as answers would depend on how busy the "
            "machine is; limit it by max_decodes"
        )
    check_count("seed", seed, 0)
    check_count("draws", draws, 0)
    check_count("shard_rows", shard_rows, 1)
    if draws > NUM_DRAWS:
        raise ValueError(f"expected at most {NUM_DRAWS} draws of each row, got {draws}")
    for name, share in (("level", level), *(("quantiles", q) for q in quantiles)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"expected {name} from 0 to 1, got {share!r}")
    if len(set(quantiles)) < len(quantiles):
        raise ValueError(f"expected distinct quantiles, got {list(quantiles)}")
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format == "zarr" and (vae.table is not None or keep):
        raise ValueError(
            "expected format='parquet' for the columns of a table, got 'zarr', which takes only "
            "numbers"
        )
    if len(set(keep)) < len(keep):
        raise ValueError(f"expected distinct columns to keep, got {list(keep)}")
    check_count("max_bytes", max_bytes, 1)
    return Settings(
        method,
        seed,
        _checked_mask(observe, vae),
        float(level),
        tuple(map(float, quantiles)),
        draws,
        shard_rows,
        format,
        tuple(keep),
        max_bytes,
        _checked_device(device, vae),
    )


def _checked_device(device: str | None, vae: VAE) -> str:
    try:
        return str(vae.device if device is None else torch.device(device))
    except (RuntimeError, TypeError):
        raise ValueError(f"expected a device such as 'cpu' or 'cuda:0', got {device!r}") from None


def _checked_mask(observe: "Tensor | np.ndarray | None", vae: VAE) -> np.ndarray | None:
    if observe is None:
        return None
    mask = np.asarray(observe)
    if mask.dtype != np.bool_ or mask.shape != tuple(vae.data_shape):
        raise ValueError(
            f"expected observe as booleans of shape {tuple(vae.data_shape)}, got {mask.dtype} of "
            f"shape {mask.shape}"
        )
    return mask
