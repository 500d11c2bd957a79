"""What a decoder has to put out, in words, for the message where it puts out something else."""

import math
from collections.abc import Sequence

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.dispersed import Dispersed
from crosscoding.likelihoods.mixed import Mixed


def wrong_output(likelihood: Likelihood, num: int, found: Sequence[int]) -> str:
    """What is wrong about an output of shape `found` for `num` points."""
    words = (
        f"expected decoder output of shape ({num}, {likelihood.output_shape()}) for {num} points"
    )
    advice = ""
    if isinstance(likelihood, Mixed):
        widths = [
            f"{columns * math.prod(part.param_shape)} for {columns} of {type(part).__name__}"
            for part, columns in likelihood.pairs
        ]
        advice = f"; that is {', '.join(widths)}"
    elif likelihood.param_shape:
        (count,) = likelihood.param_shape
        words += f", or a tuple of {count} of shape ({num}, *data)"
        if isinstance(likelihood, Dispersed):
            setting = f"{type(likelihood).__name__}({likelihood.dispersion}=…)"
            advice = f"; if it puts out one number an element, use {setting}"
    return f"{words}, got {tuple(found)}{advice}"
