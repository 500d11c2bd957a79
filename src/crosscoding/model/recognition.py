"""Whether a network is the one that was saved, judged by its outputs.

Models, banks and posteriors share this one rule. Equal weights do not settle the question: the code
of a user's own class, or the arguments that make it, may have changed.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Far above float32 rounding, which differs between processors: 2e-6 of the zoo's outputs."""
_LEAST_SHARE = 0.01  # of the median size over places, below which a number is mostly rounding


def same_output(here: Tensor, saved: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether a network outputs what it did when it was saved.

    Shape and dtype must be equal, infinities and NaN must be in the same places, and no other
    number may differ by more than `tolerance`, relative to the size of the numbers at its place.

    Args:
        here: What the network outputs now, shape (N, *output).
        saved: What it output then, for the same input.
        tolerance: Change it only with a reason: larger for an encoder, whose input may differ a
            little; smaller for a bank, whose numbers enter answers.
    """
    if (here.shape, here.dtype) != (saved.shape, saved.dtype):
        return False
    return not saved.numel() or relative_difference(here, saved.to(here.device)) <= tolerance


def relative_difference(output: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the size of the numbers at that place.

    The size is the largest magnitude over rows, and at least 1 % of its median over places: a
    number may be a small difference of large ones, and then all of it is rounding. Infinite if only
    one of the two is finite.
    """
    same = (output == wanted) | (output.isnan() & wanted.isnan())
    gap = torch.where(same, 0, (output - wanted).abs()).nan_to_num(nan=torch.inf)
    size = torch.where(wanted.isfinite(), wanted, 0).abs().amax(0).clamp_min(1e-6)
    size = size.maximum(_LEAST_SHARE * size.median())
    return (gap / size).max().item()
