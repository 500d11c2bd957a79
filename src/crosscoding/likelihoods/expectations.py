"""Points and weights that turn E[f(t)] under any likelihood into a sum.

Values are listed where they are few, or whole numbers. Others are quantiles: with Φ the normal
distribution function and Q the quantile function of t,

    E[f(t)] = ∫ f(Q(Φ(x))) φ(x) dx

by Gauss–Legendre quadrature on each side of the median, where a density may have a kink.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.finitely_many import FinitelyMany
from crosscoding.likelihoods.fisher_sums import count_nodes
from crosscoding.likelihoods.laws import Known

_NODES = 16  # on each side; E[s sᵀ] of a mixture of three Gaussians is then within 1 %
_REACH = 7.0  # standard deviations, beyond which 3e-12 of the mass is left
_DRAWS = 256


def nodes_of(likelihood: Likelihood, params: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Values of t and their masses, each (*sample, B, P): E[f(t)] is the sum of mass · f.

    A family of real numbers without a `law` is represented by 256 draws.

    Args:
        likelihood: Settings that are tensors have shape (B, P).
        params: Parameters, shape (*sample, B, P, *param_shape), in double.
    """
    shape = params.shape[: params.ndim - len(likelihood.param_shape)]
    if likelihood.kind == "counts":
        counts = _counts(likelihood, params)
        return ((k, likelihood.log_prob(params, k).exp() * weight) for k, weight in counts)
    if isinstance(likelihood, FinitelyMany):
        listed = (value.expand(shape) for value in likelihood.all_values(params))
        return ((value, likelihood.log_prob(params, value).exp()) for value in listed)
    if "interval" in likelihood.uncertain:
        return _quantiles(likelihood, params, shape)
    return _draws(likelihood, params, shape)


def _counts(likelihood: Likelihood, params: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    mean, variance = likelihood.mean(params), likelihood.variance(params)
    reach = 12 * variance.sqrt() + 40 * variance / mean.clamp_min(1e-9) + 8
    last = (mean + reach).ceil()
    if isinstance(likelihood, FinitelyMany):
        last = last.clamp_max(float(likelihood.all_values(params)[-1]))
    return count_nodes(last, mean, reach)


def _quantiles(
    likelihood: Likelihood, params: Tensor, shape: torch.Size
) -> Iterator[tuple[Tensor, Tensor]]:
    nothing = params.new_zeros(shape[-2:])
    known = Known(nothing, nothing, nothing - torch.inf, nothing + torch.inf)
    law = likelihood.law(params, known)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    for node, weight in zip(0.5 * _REACH * (nodes + 1), 0.5 * _REACH * weights, strict=True):
        mass = weight * math.exp(-0.5 * node**2) / math.sqrt(2 * math.pi)
        for x in (-node, node):
            share = 0.5 * math.erfc(-x / math.sqrt(2))
            yield law.draw(params.new_full(shape, share)), params.new_full(shape, mass)


def _draws(
    likelihood: Likelihood, params: Tensor, shape: torch.Size
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator(params.device).manual_seed(0)
    for _ in range(_DRAWS):
        noise = likelihood.noise((1,) * len(shape), generator=generator, like=params)
        yield likelihood.draw(params, noise), params.new_full(shape, 1 / _DRAWS)
