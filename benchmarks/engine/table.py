"""Defines a row of the table, a section of the benchmark, and the description of the machine."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from queries import digits_source

import crosscoding as cc

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Row:
    """One row of the table: what is measured, its target, the result, and how it was measured.

    Attributes:
        met: Whether the target is met; None if there is none, or it was not measured.
    """

    target: str
    wanted: str
    measured: str
    met: bool | None
    how: str


@dataclass
class Section:
    """The results of one part of the benchmark: rows of the table, and the figures behind them."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "figures": _plain(self.figures)}


@dataclass(frozen=True)
class Setup:
    """The settings of a section.

    Attributes:
        quick: Whether to use only a few queries, to see that everything runs.
        earlier: Returns the figures of a section that was measured before, or {}.
    """

    quick: bool
    earlier: Callable[[str], dict[str, Any]]

    def num(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def context() -> dict[str, Any]:
    """Describe the machine, and how busy it was."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "crosscoding": cc.__version__,
        "digits": digits_source(),
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _plain(value: Any) -> Any:
    """Convert tensors and arrays to lists, and NaN and infinity, which JSON lacks, to None."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
