"""Fits to draws: the member of a family under which given draws of p(z|x) are likeliest.

Weighted maximum likelihood minimises the forward KL(p || q), and Algorithm 1 KL(q || p). So the fit
covers every mode that has draws; and it needs no decoder.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.base import Crosscoder, Fitted, Params, pack, unpack
from crosscoding.crosscoders.covariances import FLOOR, factors, shrunk_covariance
from crosscoding.crosscoders.em import fit_mixture
from crosscoding.crosscoders.gaussian import Gaussian
from crosscoding.crosscoders.mixture import Mixture
from crosscoding.errors import NonFiniteError

_STEPS = 300
_LEARNING_RATE = 0.03


def fit_to_draws(
    crosscoder: Crosscoder,
    draws: Tensor,
    log_weights: Tensor | None = None,
    *,
    generator: Generator,
    tick: Callable[[], None] = lambda: None,
) -> Fitted:
    """q(z|x) of each query that maximises Σ_s w_s log q(z_s|x).

    In closed form for a Gaussian, its correlations shrunk by what draws left out tell (`moments`),
    of low rank by a few rounds of EM besides; by EM for a Mixture (`em`); by Adam for the others.
    Nothing keeps a flow from overfitting: a few hundred draws of many dimensions are too few.

    Args:
        crosscoder: The family; one with a density.
        draws: Draws of p(z|x), shape (S, B, dim), S ≥ 2.
        log_weights: Logarithms of their weights up to a constant, shape (S, B); None: all equal.
        generator: For starts at random; shared over the batch.
        tick: Called before every round of a fit that has rounds.
    Returns:
        The fit, of the draws' dtype, without gradients.
    Raises:
        TypeError: crosscoder is no cross-coder.
        ValueError: The shapes do not fit, or all draws of a query have the same value somewhere.
        NonFiniteError: A draw is not finite, a weight is NaN, or a query has none above 0.
        NotImplementedError: The family has no density.
    """
    _check(crosscoder, draws, log_weights)
    with torch.no_grad():
        points = draws.transpose(0, 1)
        if log_weights is None:
            weights = torch.full_like(points[..., 0], 1 / len(draws))
        else:
            weights = log_weights.mT.softmax(-1)
        mean = (weights.unsqueeze(1) @ points).squeeze(1)
        variance = (weights.unsqueeze(1) @ (points - mean.unsqueeze(1)).square()).squeeze(1)
        # where one draw has all the weight there is no variance; a floor keeps it above 0
        unweighted = (points - points.mean(1, keepdim=True)).square().mean(1)
        scale = variance.maximum(FLOOR * unweighted).sqrt()
        standard = (points - mean.unsqueeze(1)) / scale.unsqueeze(1)
        if isinstance(crosscoder, Gaussian):
            params = _unstandardised(_gaussian(crosscoder, standard, weights), mean, scale)
        elif isinstance(crosscoder, Mixture):
            params = _mixture(crosscoder, standard, weights, generator, tick)
            params = _unstandardised(params, mean.unsqueeze(1), scale.unsqueeze(1))
        else:
            params = crosscoder.start(mean, scale, generator=generator)
    if not isinstance(crosscoder, Gaussian | Mixture):
        params = _climb(crosscoder, params, draws.detach(), weights.mT)
    return Fitted(crosscoder, params, draws.shape[-1])


def _gaussian(crosscoder: Gaussian, points: Tensor, weights: Tensor) -> Params:
    """Parameters for standardised points."""
    count = 1 / weights.square().sum(-1)
    params = {"shift": torch.zeros_like(points[:, 0])}
    if crosscoder.rank is not None:
        noise, loadings = factors(points, weights, crosscoder.rank, count)
        factor = loadings / noise.sqrt().unsqueeze(-1)
        return params | {"log_diagonal": 0.5 * noise.log(), "factor": factor}
    if crosscoder.diagonal:
        return params | {"log_diagonal": torch.zeros_like(params["shift"])}
    root = torch.linalg.cholesky(shrunk_covariance(points, weights))
    return params | _root_params(root)


def _mixture(
    crosscoder: Mixture,
    points: Tensor,
    weights: Tensor,
    generator: Generator,
    tick: Callable[[], None],
) -> Params:
    """Parameters for standardised points."""
    logits, means, roots = fit_mixture(
        points, weights, crosscoder.components, generator=generator, tick=tick
    )
    return {"logits": logits, "shift": means} | _root_params(roots)


def _root_params(root: Tensor) -> Params:
    """A Cholesky factor as `bijections.affine` has it."""
    log_diagonal = root.diagonal(dim1=-2, dim2=-1).log()
    return {"log_diagonal": log_diagonal, "lower": root.tril(-1)}


def _unstandardised(params: Params, mean: Tensor, scale: Tensor) -> Params:
    """Parameters for mean + scale · z, from those for z."""
    moved = {
        "shift": mean + scale * params["shift"],
        "log_diagonal": params["log_diagonal"] + scale.log(),
    }
    if "lower" in params:
        moved["lower"] = scale.unsqueeze(-1) * params["lower"]
    return params | moved  # the factor of a low-rank Gaussian is relative to its diagonal


@torch.enable_grad()
def _climb(crosscoder: Crosscoder, params: Params, draws: Tensor, weights: Tensor) -> Params:
    """Adam on −Σ_s w_s log q(z_s|x); draws (S, B, dim), weights (S, B)."""
    packed, layout = pack(params)
    packed.requires_grad_()
    optimizer = torch.optim.Adam([packed], lr=_LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, _STEPS)
    for _ in range(_STEPS):
        log_q = crosscoder.log_prob(unpack(packed, layout), draws)
        optimizer.zero_grad(set_to_none=True)
        (-(weights * log_q).sum()).backward()
        optimizer.step()
        schedule.step()
    return unpack(packed.detach(), layout)


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
            "expected log_weights of which each query has one above -inf, and none NaN or inf"
        )
