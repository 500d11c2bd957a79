"""Fits a Gaussian on fixed draws, as the reference code does, to show what goes wrong.

The reference code draws ε_1 … ε_N once and maximises, by L-BFGS,

    (1/N) Σ_n log p(W ε_n + b, x) + log |det W| + H[q(ε)].

With N ≤ D draws in D dimensions, there is a direction v along which all draws agree: v·ε_n = c.
Then W + s u vᵀ and b − s c u give the same z_n for every s, while log |det W| grows with s without
bound. So does the objective, but the C-ELBO on fresh draws, which differ along v, falls. With
N ≥ 10 D, the fit works. `methods.Variational` takes fresh draws at every step, which avoids this.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.random import normal, spawn
from crosscoding.target.base import Target

_NUM_FRESH = 1000


@dataclass(frozen=True)
class Trace:
    """The course of a fit, one entry per round of L-BFGS.

    Args:
        own: Objective on the fit's own draws, nats.
        fresh: C-ELBO on fresh draws, nats.
        evaluations: Decoder evaluations so far.
    """

    own: list[float]
    fresh: list[float]
    evaluations: list[int]


def fit(
    target: Target, num_draws: int, *, rounds: int, per_round: int, generator: Generator
) -> Trace:
    """Fit z = W ε + b on fixed draws, from W = I and b = 0.

    Args:
        target: Of batch shape ().
        num_draws: N.
        rounds: Number of rounds; the fit is evaluated after each.
        per_round: Iterations of L-BFGS per round.
        generator: Draws ε.
    """
    for_own, for_fresh = spawn(generator, 2)
    dim = target.latent_dim
    own = normal((num_draws, dim), generator=for_own, like=target.like)
    fresh = normal((_NUM_FRESH, dim), generator=for_fresh, like=target.like)
    w = torch.eye(dim, dtype=target.like.dtype, device=target.like.device).requires_grad_()
    b = torch.zeros_like(w[0]).detach().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=per_round, history_size=20, line_search_fn="strong_wolfe"
    )
    trace, spent = Trace([], [], []), 0

    def loss() -> Tensor:
        nonlocal spent
        spent += num_draws
        optimizer.zero_grad()
        value = -objective(target, w, b, own)
        value.backward()
        return value

    for _ in range(rounds):
        optimizer.step(loss)
        with torch.no_grad():
            trace.own.append(objective(target, w, b, own).item())
            trace.fresh.append(objective(target, w, b, fresh).item())
        trace.evaluations.append(spent)
    return trace


def objective(target: Target, w: Tensor, b: Tensor, eps: Tensor) -> Tensor:
    """C-ELBO of z = W ε + b, averaged over the draws eps, (N, D), in nats, shape ()."""
    entropy = 0.5 * target.latent_dim * (1 + math.log(2 * math.pi))
    log_joint = target.log_joint(eps @ w.mT + b, checked=False)
    return log_joint.mean() + torch.linalg.slogdet(w).logabsdet + entropy
