"""Parses `--observe`: which elements of a datum are observed."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from crosscoding.cli.paths import expanded
from crosscoding.formats.pixels import read_picture
from crosscoding.masks import random_mask, rectangle_mask


def parse_mask(spec: str, shape: Sequence[int], *, seed: int) -> Tensor:
    """The mask that `--observe` describes.

    Args:
        spec: See `crosscoding condition --help`.
        shape: Shape of the datum, (*channels, height, width), or (columns,) for a table row.
        seed: Seed of random masks.
    Raises:
        ValueError: The description is malformed, or selects pixels that do not exist.
    """
    if len(shape) == 1:
        return parse_mask(spec, (1, *shape), seed=seed)[0]
    kind, _, rest = spec.partition(":")
    if kind == "rows":
        return rectangle_mask(shape, rows=_span(rest, spec))
    if kind == "columns":
        return rectangle_mask(shape, columns=_span(rest, spec))
    if kind == "rectangle":
        rows, _, columns = rest.partition(",")
        return rectangle_mask(shape, rows=_span(rows, spec), columns=_span(columns, spec))
    if kind == "random":
        try:
            fraction = float(rest)
        except ValueError:
            raise _unreadable(spec) from None
        picture_mask = random_mask(shape[-2:], fraction, seed=seed)
    elif kind == "mask":
        picture_mask = read_picture(expanded(Path(rest)), (1, *shape[-2:]), binary=True)[0] > 127
    else:
        raise _unreadable(spec)
    return picture_mask.expand(tuple(shape)).clone()


def _span(text: str, spec: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        return int(first), int(last if dash else first)
    except ValueError:
        raise _unreadable(spec) from None


def _unreadable(spec: str) -> ValueError:
    return ValueError(
        f"expected --observe as rows:0-13, columns:0-13, rectangle:0-13,14-27, random:0.05 or "
        f"mask:FILE, got {spec!r}"
    )
