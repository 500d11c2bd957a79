"""Whether a network is the one that was saved, judged by what it outputs.

Models, banks and posteriors share this one rule. Equal weights do not settle the question: the code
of a user's own class, or the arguments that make it, may have changed.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Of the largest saved number: far above float32 rounding, which differs between processors."""


def same_output(here: Tensor, saved: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether a network outputs what it did when it was saved.

    Shape and dtype must be equal, infinities and NaN must be in the same places, and no other
    number may differ by more than `tolerance` times the largest finite one that was saved.

    Args:
        here: What the network outputs now.
        saved: What it output then, for the same input.
        tolerance: Another one only with a reason: larger for an encoder, whose input may differ a
            little; smaller for a bank, whose numbers enter answers.
    """
    if (here.shape, here.dtype) != (saved.shape, saved.dtype):
        return False
    if not saved.numel():
        return True
    saved = saved.to(here.device)
    largest = torch.where(saved.isfinite(), saved, 0.0).abs().max()
    equal = (here == saved) | (here.isnan() & saved.isnan())
    gap = torch.where(equal, 0.0, here - saved)
    return bool(gap.abs().max() <= tolerance * largest)
