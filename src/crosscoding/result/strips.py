"""Small pictures of completions for notebooks."""

from typing import Any

import torch

from crosscoding.display import Strip
from crosscoding.errors import counted
from crosscoding.plots import images_of, is_picture, png_bytes, sheet
from crosscoding.result.picture_answers import images_for, limits_of, rows_of
from crosscoding.result.views import View

_QUERIES, _DRAWS = 3, 6
_PIXELS = 84  # width to which smaller pictures are magnified, about
_MOST_PIXELS = 128  # side above which pixels are left out
_FEWEST_DRAWS = 8


def strip_of_posterior(posterior: Any, operations: float) -> tuple[Strip, ...]:
    """What was observed, the mean and draws of the first queries.

    Args:
        posterior: The answers.
        operations: Multiply-adds that this may take; nothing is shown if they are not enough.
    """
    vae, queries = posterior.target.model, list(range(min(posterior.batch_shape.numel(), _QUERIES)))
    shape = tuple(vae.data_shape)
    if not is_picture(shape) or len(images_of(torch.zeros(1, *shape).numpy(), shape)) > 1:
        return ()
    num = int(operations / max(posterior.target.operations * 2 * len(queries), 1.0))
    if num < _FEWEST_DRAWS:
        return ()
    view = View(posterior._of(queries), [str(query) for query in queries], 0)
    images = images_for(view, shape, _DRAWS, num_for_mean=min(num - _DRAWS, 128))
    own = next(iter(images.values()))
    limits = limits_of(view, [own])
    rows = [rows_of(own, query, limits, spread=None) for query in queries]
    height, width = rows[0][0].shape[:2]
    thin = -(-max(height, width) // _MOST_PIXELS)
    rows = [[picture[::thin, ::thin] for picture in row] for row in rows]
    magnify = max(_PIXELS * thin // width, 1)
    canvas = sheet(rows, gap=2)
    several = f" of the first {len(queries)} queries" if posterior.batch_shape.numel() > 1 else ""
    words = f"Observed, mean, and {counted(_DRAWS, 'draw')}{several}"
    return (Strip(png_bytes(canvas, magnify=1), words, magnify * canvas.shape[1]),)
