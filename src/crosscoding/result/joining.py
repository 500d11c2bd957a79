"""Joining the findings of several blocks of queries."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.result.findings import Findings
from crosscoding.result.trace import Stage

_PADS = {"draws": 0.0, "log_weights": -math.inf, "cell_width": 0.0}


def joined(parts: list[Findings], places: Tensor | None = None) -> Findings:
    """The findings of all queries from those of blocks of queries; empties the list.

    A block with fewer draws than another is padded with draws of weight 0. A block that was not
    checked for lost elements counts as having lost none, and `vouched` is False in one without it.
    Each block's draws are freed once they are copied, as all of them together may take most of the
    memory.

    Args:
        parts: The findings of each block, at least one.
        places: The place of each query in the result, (B,), with the blocks' queries one after the
            other; None: they stay in this order.
    """
    num_draws = max(len(part.draws) for part in parts)
    weighted = any(p.log_weights is not None or len(p.draws) < num_draws for p in parts)
    lossy = any(part.lost is not None for part in parts)
    vouched = any(part.vouched is not None for part in parts)
    num = sum(len(part.ess) for part in parts)
    order = torch.arange(num, device=parts[0].ess.device) if places is None else places
    by_draw: dict[str, Tensor] = {}
    rest: list[Findings] = []
    done = 0
    while parts:
        part = parts.pop(0)
        part = replace(part, log_weights=part.normalised_log_weights()) if weighted else part
        part = _with_losses(part) if lossy else part
        part = _with_vouched(part) if vouched else part
        own = order[done : done + len(part.ess)]
        done += len(own)
        for name, tensor in part.by_draw().items():
            if name not in by_draw:
                by_draw[name] = tensor.new_empty(num_draws, num, *tensor.shape[2:])
            by_draw[name][: len(tensor)].index_copy_(1, own, tensor)
            by_draw[name][len(tensor) :].index_fill_(1, own, _PADS[name])
        rest.append(replace(part, **{name: t[:0].clone() for name, t in part.by_draw().items()}))
    together = _one_after_the_other(rest)
    together = together if places is None else together.select(places.argsort())
    return replace(together, **by_draw)


def _one_after_the_other(parts: Sequence[Findings]) -> Findings:
    """The findings of blocks whose draws have been taken away."""
    by_query = [part.by_query() for part in parts]
    by_draw = [part.by_draw() for part in parts]
    fits = [part.fitted for part in parts if part.fitted is not None]
    return replace(
        parts[0],
        **{name: torch.cat([each[name] for each in by_query]) for name in by_query[0]},
        **{name: torch.cat([each[name] for each in by_draw], 1) for name in by_draw[0]},
        fitted=Fitted.joined(fits) if fits else None,
        stats={name: torch.cat([p.stats[name] for p in parts]) for name in parts[0].stats},
        trace=_traces(parts),
    )


def _with_losses(part: Findings) -> Findings:
    nothing = torch.zeros_like(part.ess)
    lost = nothing if part.lost is None else part.lost
    element = nothing if part.lost_element is None else part.lost_element
    return replace(part, lost=lost, lost_element=element)


def _with_vouched(part: Findings) -> Findings:
    nothing = torch.zeros_like(part.ess, dtype=torch.bool)
    return replace(part, vouched=nothing if part.vouched is None else part.vouched)


def _traces(parts: Sequence[Findings]) -> tuple[Stage, ...]:
    """The stages of all blocks by name, with 0 for the queries of a block without that stage."""
    names = list(dict.fromkeys(stage.name for part in parts for stage in part.trace))
    stages = []
    for name in names:
        rows = [
            next(
                ((s.decodes, s.seconds) for s in part.trace if s.name == name),
                (torch.zeros_like(part.ess), torch.zeros_like(part.ess)),
            )
            for part in parts
        ]
        decodes, seconds = (torch.cat(column) for column in zip(*rows, strict=True))
        stages.append(Stage(name, decodes, seconds))
    return tuple(stages)
