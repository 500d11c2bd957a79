"""Evidence of several requests as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from crosscoding.evidence import Evidence
from crosscoding.uncertain_values import UncertainValues


def joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence (N, *data) of requests to one model, one after the other; none has sums."""
    if len(parts) == 1:
        return parts[0]
    values = torch.cat([_values(part) for part in parts])
    known = [part.uncertain or UncertainValues.nothing(part.values) for part in parts]
    found = Evidence.from_nan(values, noise=torch.cat([part.noise for part in known]))
    found &= Evidence.interval(
        *(torch.cat([getattr(part, end) for part in known]) for end in ("low", "high"))
    )
    if any(part.allowed is not None for part in known):
        found &= Evidence.one_of(_allowed(known)).in_dtype(values.dtype)
    if parts[0].given is None:
        return found
    return found.with_given(
        tree_map(lambda *each: torch.cat(each), *(part.given for part in parts))
    )


def _values(part: Evidence) -> Tensor:
    """Values, with NaN where there is none."""
    return torch.where(part.has_value, part.values, torch.nan)


def _allowed(parts: Sequence[UncertainValues]) -> Tensor:
    """The sets of all parts, with as many classes as the largest has.

    Classes beyond the end of a set are not in it; elements without a set may have any class.
    """
    most = max(0 if part.allowed is None else part.allowed.shape[-1] for part in parts)
    found = []
    for part in parts:
        shape = (*part.noise.shape, most)
        own = torch.ones(shape, dtype=torch.bool, device=part.noise.device)
        if part.allowed is not None:
            own[..., : part.allowed.shape[-1]] = part.allowed
            own[..., part.allowed.shape[-1] :] &= ~part.has_set[..., None]
        found.append(own)
    return torch.cat(found)
