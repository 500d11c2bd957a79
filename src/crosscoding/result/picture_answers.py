"""Answers as pictures: what was observed, mean, uncertainty and draws, one row per query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosscoding.errors import counted
from crosscoding.likelihoods import Bernoulli
from crosscoding.plots import (
    Panels,
    Picture,
    colour,
    draw_sheet,
    images_of,
    mark_evidence,
    panels_on,
    plain,
    uncertainty,
    value_range,
)
from crosscoding.result.look import Look
from crosscoding.result.views import View

_SIDE = 0.95  # inches of a picture
_MOST_CHANNELS = 8


@dataclass(frozen=True)
class Images:
    """The numbers of one grey or colour picture per query, or of one channel: (…, B, C, H, W).

    Args:
        observed: Which elements are known exactly.
        partly: Which are known in part.
        seen: What is shown as observed: values, and means elsewhere.
        mean: E[t|x].
        std: Standard deviations.
        draws: E[t|z] at draws of z, shape (num, B, C, H, W).
    """

    observed: NDArray[np.bool_]
    partly: NDArray[np.bool_]
    seen: NDArray[np.floating]
    mean: NDArray[np.floating]
    std: NDArray[np.floating]
    draws: NDArray[np.floating]


def draw_pictures(view: View, look: Look, given: Any) -> Panels:
    """A sheet of pictures; one for each channel if there are not 1 or 3."""
    shape = picture_shape(view, look.shape)
    images = _chosen(images_for(view, shape, look.num), look.only)
    limits = look.limits or limits_of(view, images.values())
    names = [f"observed{_sums(view)}", "mean", "uncertainty"]
    names += [f"draw {n + 1}" for n in range(look.num)]
    num = len(view.names)
    ratio, gap = shape_ratio(images)
    extra = 0.45 if len(images) == 1 else 0.7
    size = (_SIDE * len(names) + 0.9, _SIDE * num * ratio + extra)
    panels = panels_on(given, (1, len(images)), size, columns=1)
    for axes, (name, own) in zip(panels[0], images.items(), strict=True):
        top = float(np.nanmax(own.std)) if np.isfinite(own.std).any() else 0.0
        titles = [*names[:2], f"uncertainty\n0 to {top:.2g}", *names[3:]]
        rows = [rows_of(own, query, limits, spread=top) for query in range(num)]
        labels = [plain(title.replace(": ", "\n")) for title in view.titles]
        draw_sheet(axes, rows, labels, titles, gap=gap)
        axes.tick_params(labelsize=8, pad=2)
        if name:
            axes.set_title(name, fontsize=10, loc="left")
    return panels


def picture_shape(view: View, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The shape in which data are shown.

    Raises:
        ValueError: It has another number of elements than the data.
    """
    data_shape = tuple(view.target.model.data_shape)
    shape = data_shape if wanted is None else tuple(wanted)
    size = view.target.model.data_size
    if int(np.prod(shape)) != size:
        raise ValueError(
            f"expected a shape of {counted(size, 'element')}, like data of shape {data_shape}, "
            f"got {shape}"
        )
    return shape


def images_for(
    view: View, shape: Sequence[int], num: int, *, num_for_mean: int = 256
) -> dict[str, Images]:
    """The numbers of all pictures, by the name of their channel; "" if there is one picture."""
    known, (mean, std) = view.known, view.moments(num_for_mean)
    seen = np.where(np.isnan(known.value), mean, known.value)
    draws = view.means_at_draws(num)

    def of(flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return images_of(flat.reshape(-1, *shape), shape)

    exact, partly, seen, mean, std = map(of, (known.exact, known.partly, seen, mean, std))
    return {
        name: Images(
            observed=exact[name],
            partly=partly[name],
            seen=seen[name],
            mean=mean[name],
            std=std[name],
            draws=pictures.reshape(num, len(view.names), *pictures.shape[1:]),
        )
        for name, pictures in of(draws).items()
    }


def rows_of(
    images: Images, query: int, limits: tuple[float, float], *, spread: float | None
) -> list[Picture]:
    """A query's pictures: what was observed, mean, uncertainty (unless `spread` is None), draws."""
    exact, partly = images.observed[query].any(0), images.partly[query].any(0)
    tint = images.mean.shape[1] == 1

    def marked(data: NDArray[np.floating], *, hide: bool = False) -> Picture:
        picture = colour(np.nan_to_num(data, nan=sum(limits) / 2), *limits)
        return mark_evidence(picture, exact, hide=hide, tint=tint, partly=partly & ~exact)

    found = [marked(images.seen[query], hide=True), marked(images.mean[query])]
    if spread is not None:
        found.append(uncertainty(images.std[query].mean(0), spread))
    return found + [marked(draw[query]) for draw in images.draws]


def limits_of(view: View, images: Any) -> tuple[float, float]:
    """The values shown as black and white."""
    if isinstance(view.target.model.likelihood, Bernoulli):
        return 0.0, 1.0
    shown = [part.ravel() for own in images for part in (own.seen, own.mean, own.draws)]
    return value_range(np.concatenate(shown))


def shape_ratio(images: dict[str, Images]) -> tuple[float, int]:
    """A picture's height divided by its width, and the gap between pictures in their pixels."""
    height, width = next(iter(images.values())).mean.shape[-2:]
    return height / width, max(round(0.06 * width), 1)


def _chosen(images: dict[str, Images], only: Sequence[str | int] | None) -> dict[str, Images]:
    """Some channels, by number; by default all, or the first of many."""
    names = list(images)
    if only is None:
        return {name: images[name] for name in names[:_MOST_CHANNELS]}
    wrong = [c for c in only if isinstance(c, bool) or not isinstance(c, int)]
    wrong += [c for c in only if c not in wrong and not 0 <= int(c) < len(names)]
    if wrong or not only:
        raise ValueError(
            f"expected numbers of channels from 0 to {len(names) - 1} in only, got "
            f"{wrong[0] if wrong else 'none'}"
        )
    return {names[int(c)]: images[names[int(c)]] for c in only}


def _sums(view: View) -> str:
    num = view.known.num_sums
    return f"\nand {counted(num, 'sum')}" if num else ""
