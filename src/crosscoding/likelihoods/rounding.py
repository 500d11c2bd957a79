"""Where a decoder's output is rounded too coarsely to determine log p(t|z)."""

import math

import torch
from torch import Tensor

MAX_ROUNDING_ERROR = 0.05  # nats: as much as the error of log p(x) that a trusted answer may have


def nearly_underflown(logarithms: Tensor) -> Tensor:
    """Whether these are logarithms of 1 to 10 times the smallest positive number of their dtype.

    Numbers this small are rounded to whole multiples of it, and smaller ones to 0. Where softmax is
    followed by log, or exp by log, −inf then stands for anything below e^−103.
    """
    info = torch.finfo(logarithms.dtype)
    log_least = math.log(info.tiny) + math.log(info.eps)
    multiple = (logarithms.double() - log_least).exp()
    whole = (multiple - multiple.round()).abs() <= 4 * info.eps * abs(log_least) * multiple
    return whole & (multiple > 0.5) & (multiple < 10.5)
