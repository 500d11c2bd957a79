"""The simplest baseline for a model: independent elements, without a latent z.

Real numbers get a normal distribution with the element's mean and variance in the other data;
classes and counts the frequency of each value; zeros and ones the cross-entropy with the element's
mean.
"""

import math

import torch
from torch import Tensor

from crosscoding.checks.likelihood_parts import LikelihoodPart, parts_of
from crosscoding.likelihoods import Likelihood

FEWEST = 10
"""Number of data below which an element's mean and variance say too little."""
KINDS = ("real", "binary", "counts", "classes")
"""The kinds of likelihood that have a baseline."""


def log_prob_of_columns(likelihood: Likelihood, data: Tensor, floor: Tensor) -> Tensor:
    """Σ over elements of log p(t_e), each distribution fitted to the other data, in nats, (N,).

    Args:
        likelihood: Its kind, or that of its parts, selects the distributions; one of KINDS.
        data: Shape (N, *data), N ≥ 2.
        floor: Least variance of an element's normal distribution, shape (*data).
    """
    data, floor = data.double(), floor.double()
    parts = parts_of(likelihood, data, floor)
    return torch.stack([_log_prob_of_part(part) for part in parts]).sum(0)


def _log_prob_of_part(part: LikelihoodPart) -> Tensor:
    likelihood, (data, floor) = part.likelihood, part.tensors
    if likelihood.kind == "binary":
        elements = _binary(data)
    elif likelihood.kind in ("counts", "classes"):
        elements = _frequencies(data)
    elif likelihood.kind == "real":
        elements = _normal(data, floor)
        if likelihood.width is not None:  # the mass of an interval, not a density
            elements = (elements + math.log(likelihood.width)).clamp_max(0.0)
    else:
        raise ValueError(
            f"expected a likelihood whose kind is one of {', '.join(KINDS)}, got "
            f"{likelihood.kind!r} of {type(likelihood).__name__}; set its kind"
        )
    return elements.flatten(1).sum(1)


def _normal(data: Tensor, floor: Tensor) -> Tensor:
    """log N(t_n; mean, variance of all but t_n)."""
    others = len(data) - 1
    mean = (data.sum(0) - data) / others
    square = (data.square().sum(0) - data.square()) / others
    variance = torch.maximum(square - mean.square(), floor)
    return -0.5 * ((data - mean).square() / variance + (2 * math.pi * variance).log())


def _binary(data: Tensor) -> Tensor:
    """t log p + (1 − t) log(1 − p), p the mean of all but t_n with one 0 and one 1 added."""
    share = (data.sum(0) - data + 1) / (len(data) + 1)
    return data * share.log() + (1 - data) * (-share).log1p()


def _frequencies(data: Tensor) -> Tensor:
    """log of the value's frequency in all but t_n, with one of each occurring value added."""
    values, codes = data.unique(return_inverse=True)
    counts = torch.stack([(codes == value).sum(0) for value in range(len(values))])
    own = counts.gather(0, codes).double()
    return (own / (len(data) - 1 + len(values))).log()
