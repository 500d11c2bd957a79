"""Importance sampling: log p(x) and the effective sample size from log-weights."""

import math

from torch import Tensor


def log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight over the first dimension, and its standard error.

        log Ẑ = log (1/S) Σ w_s,   se ≈ sd(w) / (mean(w) √S)

    Args:
        log_weights: Shape (S, *batch), S ≥ 2; −inf is a weight of 0.
    Returns:
        Both in nats, shape (*batch,).
    Source: the delta method. Differs in: nothing.
    """
    log_mean = log_weights.logsumexp(0) - math.log(len(log_weights))
    relative = (log_weights - log_mean).double().exp()
    return log_mean, mean_error(relative).to(log_weights.dtype)


def mean_error(values: Tensor) -> Tensor:
    """Standard error of the mean over the first dimension, shape (*batch,)."""
    variance = (values - values.mean(0)).square().sum(0) / (len(values) - 1)
    return (variance / len(values)).sqrt()


def importance_ess(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σ w)² / Σ w² over the first dimension, from 1 to S, shape (*batch,).

    Source: Kish (1965). Differs in: nothing.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
