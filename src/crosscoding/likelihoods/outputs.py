"""What a decoder has to output, in words, for the message where it outputs something else."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crosscoding.errors import first_line
from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.dispersed import Dispersed
from crosscoding.likelihoods.mixed import Mixed
from crosscoding.likelihoods.readings import shapes


def joined(likelihood: Likelihood, output: Any) -> Tensor:
    """The parameters in what a decoder outputs: a tensor, or a tuple that the likelihood joins.

    Raises:
        ValueError: It is something else, or nothing that the likelihood takes.
    """
    _check_tensors(output, type(likelihood).__name__)
    if isinstance(output, Tensor):
        return output
    try:
        return likelihood.join(output)
    except (IndexError, RuntimeError, ValueError) as error:  # of torch, where shapes differ
        raise ValueError(f"{first_line(error)}; the decoder put out {shapes(output)}") from error


def _check_tensors(output: Any, name: str) -> None:
    """Raise ValueError unless an output is a tensor, or a tuple of tensors and of such tuples."""
    if isinstance(output, (tuple, list)) and output:
        for piece in output:
            _check_tensors(piece, name)
    elif not isinstance(output, Tensor):
        kind = "an empty tuple" if isinstance(output, (tuple, list)) else type(output).__name__
        raise ValueError(
            f"expected a tensor from the decoder, got {kind}; wrap it in a module that puts out "
            f"what {name} takes"
        )


def wrong_output(likelihood: Likelihood, num: int, found: Sequence[int]) -> str:
    """What is wrong about an output of shape `found` for `num` points."""
    words = (
        f"expected decoder output of shape ({num}, {likelihood.output_shape()}) for {num} points"
    )
    advice, shape, own = "", tuple(found), likelihood.param_shape
    if shape == (num, *own) and likelihood.data_shape((1, *own)) is not None:
        advice = (
            "; the dimension of the elements is missing, as after squeeze() of a single one: leave "
            f"that out, or put out shape {(num, 1, *own)}"
        )
    elif isinstance(likelihood, Mixed):
        widths = [
            f"{columns * math.prod(part.param_shape)} for {columns} of {type(part).__name__}"
            for part, columns in likelihood.pairs
        ]
        advice = f"; that is {', '.join(widths)}; or a tuple of one tensor for each part"
    if likelihood.param_shape and not isinstance(likelihood, Mixed):
        (count,) = likelihood.param_shape
        words += f", or a tuple of {count} of shape ({num}, *data)"
        if isinstance(likelihood, Dispersed) and not advice:
            setting = f"{type(likelihood).__name__}({likelihood.dispersion}=…)"
            advice = f"; if it puts out one number an element, use {setting}"
    return f"{words}, got {shape}{advice}"
