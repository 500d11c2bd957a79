"""A decoder's output as one tensor, and messages that say what it should have been."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crosscoding.errors import first_line
from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.continuous import NormalNoise
from crosscoding.likelihoods.location_dispersion import LocationDispersion
from crosscoding.likelihoods.mixed import Mixed
from crosscoding.likelihoods.mixed_heads import shapes

_FEW_PARAMS = 4096  # per datum; with more, a graph takes memory and the numbers alone suffice


def joined(likelihood: Likelihood, output: Any) -> Tensor:
    """The parameters in what a decoder outputs: a tensor, or a tuple that the likelihood joins.

    Raises:
        ValueError: It is something else, or does not fit the likelihood.
    """
    _check_tensors(output, type(likelihood).__name__)
    if isinstance(output, Tensor):
        return output
    try:
        return likelihood.join(output)
    except (IndexError, RuntimeError, ValueError) as error:  # from torch if shapes differ
        raise ValueError(f"{first_line(error)}; the decoder output {shapes(output)}") from error


def _check_tensors(output: Any, name: str) -> None:
    """Raise ValueError unless an output is a tensor or a (nested) tuple of tensors."""
    if isinstance(output, (tuple, list)) and output:
        for piece in output:
            _check_tensors(piece, name)
    elif not isinstance(output, Tensor):
        kind = "an empty tuple" if isinstance(output, (tuple, list)) else type(output).__name__
        raise ValueError(
            f"expected a tensor from the decoder, got {kind}; wrap it in a module that outputs "
            f"what {name} takes"
        )


def doubt_of(
    likelihood: Likelihood, decode: Callable[[Tensor], Tensor], z: Tensor, output: Tensor
) -> str:
    """What is probably wrong with a valid output, judged from its numbers or its autograd graph.

    Args:
        likelihood: The model's likelihood.
        decode: The decoder, from z (N, latent) to its output.
        z: Some points.
        output: The decoder's output at these points.
    """
    doubt = likelihood.doubt(output)
    if doubt or output[0].numel() > _FEW_PARAMS:
        return doubt
    try:
        with torch.enable_grad():
            return likelihood.doubt(decode(z.clone().requires_grad_()))
    except Exception:  # not differentiable: `VAE.check` reports that
        return ""


def wrong_output(likelihood: Likelihood, num: int, found: Sequence[int]) -> str:
    """What is wrong with an output of shape `found` for `num` points, in words."""
    words = (
        f"expected decoder output of shape ({num}, {likelihood.output_shape()}) for {num} points"
    )
    advice, shape, own = "", tuple(found), likelihood.param_shape
    if shape == (num, *own) and likelihood.data_shape((1, *own)) is not None:
        advice = (
            "; the dimension of the elements is missing, as after squeeze() of a single one: leave "
            f"squeeze() out, or output shape {(num, 1, *own)}"
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
        if isinstance(likelihood, LocationDispersion) and not advice:
            setting = f"{type(likelihood).__name__}({likelihood.dispersion}=…)"
            halves = _on_halves(likelihood) if len(found) > 1 and found[1] % 2 == 0 else ""
            advice = f"{halves}; if it outputs one number per element, use {setting}"
    return f"{words}, got {shape}{advice}"


def on_half_as_many(likelihood: Likelihood, outputs: Sequence[int], found: Sequence[int]) -> str:
    """Advice if a datum has half as many elements as the decoder has outputs; "" otherwise.

    Args:
        likelihood: The model's likelihood.
        outputs: The data's shape according to the decoder's output.
        found: The shape of the values, (*batch, *data).
    """
    if not isinstance(likelihood, LocationDispersion) or likelihood.decoded or not outputs:
        return ""
    num, *others = outputs
    if [*found[len(found) - len(outputs) :]] != [num // 2, *others] or num % 2:
        return ""
    return _on_halves(likelihood)


def _on_halves(likelihood: LocationDispersion) -> str:
    """What to do about a decoder that outputs all locations first, and then all dispersions."""
    name, dispersion = type(likelihood).__name__, likelihood.dispersion
    use, words = f" and use {name}({dispersion}=None)", ""
    if isinstance(likelihood, NormalNoise) and likelihood.log_variance:
        dispersion, use = "logarithm of the variance", ""
    elif isinstance(likelihood, NormalNoise):
        words = f", or {name}(None, log_variance=True) if it is the logarithm of the variance"
    return (
        f"; if the second half of the decoder's output is the {dispersion} of each element, let it "
        f"output the tuple output.chunk(2, 1){use}{words}"
    )
