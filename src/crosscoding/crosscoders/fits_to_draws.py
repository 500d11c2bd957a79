"""Fits to draws: the member of a family under which given draws of p(z|x) are likeliest.

Weighted maximum likelihood minimises the forward KL(p || q), Algorithm 1 the reverse KL(q || p). So
the fit covers every mode that has draws, and it needs no decoder.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.base import Crosscoder, Fitted
from crosscoding.crosscoders.weighted_draws import WeightedDraws
from crosscoding.errors import NonFiniteError


def fit_to_draws(
    crosscoder: Crosscoder,
    draws: Tensor,
    log_weights: Tensor | None = None,
    *,
    generator: Generator,
    tick: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fit, for each query, the q(z|x) that maximises Σ_s w_s log q(z_s|x).

    Each family has its own fit (`Crosscoder.fit_to`): a Gaussian in closed form, with correlations
    shrunk by leave-one-out likelihood; a low-rank Gaussian by a few rounds of EM; a Mixture by EM;
    all others by Adam. Nothing keeps a flow from overfitting: in many dimensions, a few hundred
    draws are too few.

    Args:
        crosscoder: The family; one with a density.
        draws: Draws of p(z|x), shape (S, B, dim), S ≥ 2.
        log_weights: Logarithms of their weights up to a constant, shape (S, B); None: all equal.
        generator: For random starts; the same for the whole batch.
        tick: Called before every round of a fit that has rounds.
    Returns:
        The fit, of the draws' dtype, without gradients.
    Raises:
        TypeError: crosscoder is not a cross-coder.
        ValueError: The shapes do not fit, or all draws of a query have the same value somewhere.
        NonFiniteError: A draw is not finite, a weight is NaN or infinite, or all weights of a query
            are 0.
        NotImplementedError: The family has no density.
    """
    _check(crosscoder, draws, log_weights)
    with torch.no_grad():
        weighted = WeightedDraws.of(draws, log_weights)
        params = crosscoder.fit_to(weighted, generator=generator, tick=tick)
    return Fitted(crosscoder, params, draws.shape[-1])


def _check(crosscoder: Crosscoder, draws: Tensor, log_weights: Tensor | None) -> None:
    if not isinstance(crosscoder, Crosscoder):
        raise TypeError(
            "expected one of crosscoding.crosscoders, such as Gaussian(), "
            f"got {type(crosscoder).__name__}"
        )
    if draws.ndim != 3 or len(draws) < 2:
        raise ValueError(f"expected draws of shape (S, B, dim), S >= 2, got {tuple(draws.shape)}")
    if not draws.isfinite().all():
        raise NonFiniteError("expected finite draws, got NaN or infinity")
    if (draws == draws[0]).all(0).any():
        raise ValueError("expected draws that differ in every element of z, got equal ones")
    if log_weights is None:
        return
    if log_weights.shape != draws.shape[:2]:
        raise ValueError(
            f"expected log_weights of shape {tuple(draws.shape[:2])}, one for each draw, "
            f"got {tuple(log_weights.shape)}"
        )
    if not log_weights.amax(0).isfinite().all():
        raise NonFiniteError(
            "expected log_weights with at least one above -inf for each query, and none NaN or inf"
        )
