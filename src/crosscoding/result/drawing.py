"""`Posterior.plot`: pictures of answers, of any model's data and of z.

It asks the posterior and hands arrays to `plots`, which knows nothing else. The modules that draw
are imported when they are needed, as matplotlib takes longer to load than this package.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from crosscoding.columns import TableEvidence
from crosscoding.errors import counted
from crosscoding.result.look import Look
from crosscoding.result.views import View
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crosscoding.plots import Panels

_USUAL_QUERIES = {"pictures": 4, "elements": 3, "columns": 1, "latent": 1}


def drawn(posterior: Any, look: Look, given: Any) -> "Axes | Panels":
    """Draw answers on the caller's axes, or on those of a new figure."""
    from matplotlib.axes import Axes

    look.check()
    kind = look.kind or usual_kind(posterior.target, look.shape)
    _check_kind(posterior.target, kind)
    queries = chosen_queries(look.queries, posterior.batch_shape.numel(), _USUAL_QUERIES[kind])
    view = View(posterior._of(queries), [name_of(posterior, q) for q in queries], look.seed)
    if kind == "pictures":
        from crosscoding.result.picture_answers import draw_pictures as draw
    elif kind == "elements":
        from crosscoding.result.element_pictures import draw_elements as draw
    elif kind == "columns":
        from crosscoding.result.column_pictures import draw_columns as draw
    else:
        from crosscoding.result.latent_pictures import draw_latent as draw
    panels = draw(view, look, given)
    return given if isinstance(given, Axes) else panels


def usual_kind(target: Any, shape: Sequence[int] | None) -> str:
    """How the answers of a target are usually drawn."""
    from crosscoding.plots import is_picture

    if not isinstance(target, VAETarget):
        return "latent"
    if target.model.table is not None and shape is None:
        return "columns"
    return "pictures" if is_picture(shape or target.model.data_shape) else "elements"


def _check_kind(target: Any, kind: str) -> None:
    """Raise ValueError if there is nothing of this kind to draw."""
    if kind == "latent":
        if target is not None and target.is_discrete:
            raise ValueError(
                "expected continuous latents for kind='latent', got discrete ones; "
                "posterior.draws has them"
            )
        return
    if target is None:
        raise ValueError(
            "expected a posterior with a decoder, got one that was loaded without its model; "
            "pass it: Posterior.load(path, vae=...), or draw kind='latent'"
        )
    if not isinstance(target, VAETarget):
        raise ValueError(
            f"expected a posterior with a decoder for kind={kind!r}, got that of a bare density; "
            "use kind='latent'"
        )
    if kind == "columns" and target.model.table is None:
        raise ValueError(
            "expected a model with a table for kind='columns', VAE(..., table=...), got one "
            "without; use kind='elements'"
        )


def chosen_queries(queries: int | Sequence[int] | None, num: int, usual: int) -> list[int]:
    """Numbers of queries of a flattened batch.

    Raises:
        TypeError: They are not integers.
        ValueError: There are none, or one is out of range.
    """
    if not num:
        raise ValueError("expected at least one query to draw, got an empty batch")
    if queries is None:
        return list(range(min(num, usual)))
    wanted = [queries] if isinstance(queries, int) else list(queries)
    for query in wanted:
        if isinstance(query, bool) or not isinstance(query, int):
            raise TypeError(f"expected numbers of queries, got {query!r}")
        if not -num <= query < num:
            raise ValueError(
                f"expected queries from 0 to {num - 1}, of the flattened batch of "
                f"{counted(num, 'query', 'queries')}, got {query}"
            )
    if not wanted:
        raise ValueError("expected at least one query to draw, got none")
    return [query % num for query in wanted]


def name_of(posterior: Any, query: int) -> str:
    """What a query is called: its row's label in a DataFrame, or its place in the batch."""
    target, shape = posterior.target, posterior.batch_shape
    if isinstance(target, VAETarget) and isinstance(target.evidence, TableEvidence):
        return f"row {target.evidence.frame.index[query]}"
    if len(shape) < 2:
        return f"query {query}" if shape else ""
    place = torch.unravel_index(torch.tensor(query), shape)
    return f"query {tuple(int(index) for index in place)}"
