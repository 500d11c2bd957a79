"""Where the rows of a run are read from: the source and, with it, masks and covariates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosscoding.batch.settings import Settings
from crosscoding.batch.sources.base import Source
from crosscoding.batch.sources.covariate_sources import (
    CovariateArrays,
    CovariateColumns,
    CovariateSource,
    leaves,
)
from crosscoding.batch.sources.opening import holds_pixels, is_array, open_array, open_source
from crosscoding.errors import counted
from crosscoding.formats.table_style import TableStyle
from crosscoding.model.vae import VAE


@dataclass(frozen=True, eq=False)
class Inputs:
    """Where the rows of a run are read from.

    Attributes:
        source: The data.
        keep: Columns of the source that are copied to the results.
        pixels: Whether the source's numbers are pixels from 0 to 255.
        masks: Which elements are observed, one mask per row; None: no masks were given.
        covariates: What the decoder takes besides z; None: nothing is read.
    """

    source: Source
    keep: tuple[str, ...]
    pixels: bool
    masks: Source | None = None
    covariates: CovariateSource | None = None

    @property
    def num_rows(self) -> int:
        return self.source.num_rows

    @property
    def beside(self) -> list[Source]:
        """Sources other than the main one; each has as many rows."""
        covariates = () if self.covariates is None else self.covariates.sources
        return [*(() if self.masks is None else (self.masks,)), *covariates]

    @property
    def words(self) -> str:
        """What messages call the files."""
        beside = ", with its masks or covariates," if self.beside else ""
        return f"{self.source.path}{beside}"

    def stamp(self, start: int, stop: int) -> list[list[int]]:
        """Stamps, taken on opening, of all files that contain these rows."""
        return [own for source in (self.source, *self.beside) for own in source.stamp(start, stop)]

    def describe(self) -> dict[str, Any]:
        """The inputs for the manifest."""
        found = self.source.describe()
        if self.masks is not None:
            found["masks"] = self.masks.describe()
        if self.covariates is not None:
            found["given"] = self.covariates.describe()
        return found


def open_inputs(
    source: str | Path,
    vae: VAE,
    style: TableStyle,
    settings: Settings,
    masks: str | Path | None,
    given: str | Path | Sequence[str] | None,
) -> Inputs:
    """Open the source of a run and, if given, its masks and covariates.

    Args:
        source, masks, given: As `source`, `observe` and `given` of `batch.run`.
        vae: The model.
        style: How a text file is written.
        settings: The settings of the run.
    Raises:
        ImportError: A library that reads one of them is not installed.
        ValueError: One of them does not exist, or does not fit the model or the source.
    """
    words = [str(given)] if isinstance(given, (str, Path)) else [str(name) for name in given or ()]
    covariates = _covariates(words, vae, style.of(Path(source).suffix.lower()))
    keep, every = settings.keep, settings.shard_rows
    more = () if covariates is None else covariates.columns
    beside = (*keep, *(name for name in more if name not in keep))
    opened = open_source(str(source), vae, style, every, beside)
    if covariates is not None and more:
        covariates.read(np.arange(1), opened.read(0, 1).kept)  # raises unless they are numbers
    own = None if masks is None else open_array(str(masks), tuple(vae.data_shape))
    found = Inputs(opened, keep, holds_pixels(opened, vae, every), own, covariates)
    for other in found.beside:
        if other.num_rows != opened.num_rows:
            raise ValueError(
                f"expected a row in {other.path} for each of the {opened.num_rows} rows of "
                f"{opened.path}, got {counted(other.num_rows, 'row')}"
            )
    return found


def _covariates(words: Sequence[str], vae: VAE, style: TableStyle) -> CovariateSource | None:
    """Covariates from columns, or from one file of arrays.

    Raises:
        ImportError, ValueError: As `open_inputs`.
    """
    _check_wanted(vae, words)
    arrays = [name for name in words if is_array(name)]
    if arrays and len(words) > 1:
        raise ValueError(f"expected given as columns or one file of arrays, got {', '.join(words)}")
    if arrays:
        return CovariateArrays(arrays[0], vae.examples)
    return CovariateColumns(tuple(words), vae.examples, vae.table, style) if words else None


def _check_wanted(vae: VAE, given: Sequence[str]) -> None:
    """Raise ValueError unless covariates are given where the decoder takes them, and only there."""
    takes = vae.examples is not None
    if given and not takes:
        raise ValueError(
            "expected given only for a model whose decoder takes covariates beside z, got "
            f"{', '.join(given)}; to copy a column to the results, use keep"
        )
    if takes and vae.given is None and not given:
        names = ", ".join(leaf.name for leaf in leaves(vae.examples))
        raise ValueError(
            f"expected given, as the model's decoder takes covariates beside z ({names}): name "
            "their columns, or a file of arrays with a row for each row of the source"
        )
