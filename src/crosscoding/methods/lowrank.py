"""Laplace's approximation where D × D matrices are too large, or each of their columns too dear.

    p(z|x) ≈ N(z*, P⁻¹),   P = c (I − W Wᵀ) + W Λ Wᵀ

What evidence tells of z narrows some directions W, (D, r), and leaves the others about as the prior
has them. z* is climbed to by gradients. W and Λ are eigenvectors and eigenvalues of the curvature
H = I + Jᵀ F J there, as far as r products with it show them; c is the mean of what H has beside
them, from a few probes, and the best there is by the C-ELBO. Adam then moves the mean and the
diagonal by the C-ELBO, and is believed where fresh draws agree.

Source: Golub & Van Loan (2013), section 10.1, for Lanczos' method; Meyer et al. (2021) for the
trace of the rest. Differs in: every vector is made orthogonal to all before it, twice.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted
from crosscoding.crosscoders.narrowed import Narrowed
from crosscoding.methods.base import Report
from crosscoding.methods.effort import Clock
from crosscoding.methods.lbfgs import ascend
from crosscoding.methods.leapfrog import evaluated
from crosscoding.random import normal, spawn
from crosscoding.target import Target

_CLIMB, _BEND = 0.4, 0.4  # shares of the decodes and of the time; the rest is Adam's
_OF_GRADIENT, _OF_PRODUCT = 3, 4  # decodes that each takes, about
_MOST_CLIMB, _MOST_ADAM = 400, 200  # steps
_MOST_NUMBERS = 2**21  # of W, for a query
_NUM_PROBES = 8
_NUM_ADAM, _NUM_CHOICE = 4, 32  # draws, of a step and to choose by
_FEWEST_ADAM = 10
_RATE = 0.03
_FLAT = 1e-3  # least curvature, in the prior's


@torch.no_grad()
def fit_low_rank(
    target: Target, decodes: int, *, generator: Generator, report: Report, clock: Clock
) -> tuple[Fitted, Tensor]:
    """A Gaussian for each query of a flat target, and the decodes that it took, (B,).

    Args:
        target: What to fit to.
        decodes: That a query may take, about.
        generator: Of probes and draws.
        report: Told how far it is.
        clock: Asked when to stop; there is an answer then too.
    """
    for_bend, for_adam, for_choice = spawn(generator, 3)
    steps = min(int(_CLIMB * decodes / _OF_GRADIENT), _MOST_CLIMB)
    report(0.0, "climb")
    z, taken = ascend(target, _start(target), steps, stop=clock.within(_CLIMB))
    report(_CLIMB, "curvature")
    rank = int(_BEND * decodes / _OF_PRODUCT) - _NUM_PROBES
    rank = max(min(rank, target.latent_dim, _MOST_NUMBERS // target.latent_dim), 1)
    stop = clock.within(_BEND / (1 - _CLIMB))
    fitted, ranks = _laplace(target, z, rank, generator=for_bend, stop=stop)
    spent = _OF_GRADIENT * (taken + 1) + _OF_PRODUCT * (ranks + _NUM_PROBES)
    rest = decodes * (1 - _CLIMB - _BEND) - 2 * _NUM_CHOICE
    steps = min(int(rest / (_OF_GRADIENT * _NUM_ADAM)), _MOST_ADAM)
    if steps < _FEWEST_ADAM or clock.is_late():
        return fitted, spent
    report(_CLIMB + _BEND, "draws")
    moved, steps = _adam(target, fitted, steps, generator=for_adam, stop=clock.is_late)
    spent = spent + _OF_GRADIENT * _NUM_ADAM * steps + 2 * _NUM_CHOICE
    return _better(target, fitted, moved, generator=for_choice), spent


def _start(target: Target) -> Tensor:
    """The prior's mean, or the bank's best point where p(z, x) is higher, (B, latent)."""
    points, log_likelihood = target.log_likelihood_of_bank()
    log_joint, best = (log_likelihood + target.log_prior(points)[:, None]).max(0)
    mean = target.like.new_zeros(target.num_queries, target.latent_dim)
    at_mean = target.log_joint(mean)
    return torch.where((log_joint > at_mean)[:, None], points[best], mean)


def _laplace(
    target: Target, z: Tensor, rank: int, *, generator: Generator, stop: Callable[[], bool]
) -> tuple[Fitted, Tensor]:
    """The Gaussian at z (B, latent), moved by a Newton step where that gains; its ranks, (B,)."""
    for_start, for_probes = spawn(generator, 2)

    def product(directions: Tensor) -> Tensor:
        return target.curvature_along(z[None], directions.to(z)[None])[0]

    first = normal((1, z.shape[-1]), generator=for_start, like=z).expand_as(z)
    basis, bend = _lanczos(product, first, rank, stop)
    values, rotation = torch.linalg.eigh(bend)
    flat = _FLAT / target.prior_scale**2
    values, directions = values.abs().clamp_min(flat), basis @ rotation
    there = directions.square().sum(1) > 0.5
    beside = _mean_beside(product, directions, for_probes).clamp_min(flat)
    widths = 0.5 * (beside.log()[:, None] - values.log())
    params = {
        "shift": z,
        "log_diagonal": (-0.5 * beside.log()).to(z)[:, None].expand_as(z),
        "directions": torch.where(there[:, None], directions, 0.0).to(z),
        "log_widths": torch.where(there, widths, 0.0).to(z),
    }
    fitted = Fitted(Narrowed(directions.shape[-1]), params, z.shape[-1])
    gradient = evaluated(target, target.log_joint, z[None]).gradient[0].double()
    along = (directions.mT @ gradient[..., None])[..., 0]
    inside = torch.where(there, 1 / values - 1 / beside[:, None], 0.0) * along
    step = gradient / beside[:, None] + (directions @ inside[..., None])[..., 0]
    both = torch.stack([z, z + step.to(z)])
    log_joint = target.log_joint(both, checked=False).nan_to_num(nan=-math.inf)
    params["shift"] = torch.where((log_joint[1] > log_joint[0])[:, None], both[1], z)
    return fitted, there.sum(-1)


def _lanczos(
    product: Callable[[Tensor], Tensor], first: Tensor, rank: int, stop: Callable[[], bool]
) -> tuple[Tensor, Tensor]:
    """Orthonormal Q (B, D, k), k ≤ rank, that spans first, H first, H² first, …; and Qᵀ H Q.

    A query whose vectors span all that H tells apart has columns of 0 from there on.

    Args:
        product: H times a vector of each query, (B, D) -> (B, D), in double.
        first: Shape (B, D).
        rank: Most products.
        stop: Asked before each product but the first.
    """
    basis = first.new_zeros(len(first), rank, first.shape[-1], dtype=torch.double)
    bend = basis.new_zeros(len(first), rank, rank)
    vector, least = first.double(), basis.new_zeros(len(first), 1)
    for k in range(rank):
        length = vector.norm(dim=-1, keepdim=True)
        going = length > least
        if not going.any() or (k and stop()):
            return basis[:, :k].mT, bend[:, :k, :k]
        basis[:, k] = torch.where(going, vector / length, 0.0)
        vector = product(basis[:, k])
        so_far = basis[:, : k + 1]
        for _ in range(2):
            shares = so_far @ vector[..., None]
            vector = vector - (so_far.mT @ shares)[..., 0]
            bend[:, : k + 1, k] += shares[..., 0]
        bend[:, k, :k] = bend[:, :k, k]
        largest = bend.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        least = 10 * torch.finfo(first.dtype).eps * largest
    return basis.mT, bend


def _mean_beside(
    product: Callable[[Tensor], Tensor], directions: Tensor, generator: Generator
) -> Tensor:
    """Mean of H's eigenvalues in what the directions (B, D, k) leave, about: (B,)."""
    bent = torch.zeros_like(directions[:, 0, 0])
    for _ in range(_NUM_PROBES):
        probe = normal((1, directions.shape[1], 1), generator=generator, like=directions)
        probe = (probe - directions @ (directions.mT @ probe))[..., 0]
        probe = probe / probe.norm(dim=-1, keepdim=True)
        bent = bent + (probe * product(probe)).sum(-1)
    return bent / _NUM_PROBES


@torch.enable_grad()
def _adam(
    target: Target,
    fitted: Fitted,
    steps: int,
    *,
    generator: Generator,
    stop: Callable[[], bool],
) -> tuple[Fitted, int]:
    """Mean and diagonal moved by gradients of the C-ELBO, the mean in units of the fit's widths."""
    params, family = fitted.params, fitted.crosscoder
    assert isinstance(family, Narrowed)
    offset = torch.zeros_like(params["shift"]).requires_grad_()
    log_factor = torch.zeros_like(offset).requires_grad_()

    def moved() -> dict[str, Tensor]:
        shift = family.forward_and_ladj(params, offset[None])[0][0]
        return params | {"shift": shift, "log_diagonal": params["log_diagonal"] + log_factor}

    optimizer = torch.optim.Adam([offset, log_factor], lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        if stop():
            steps = step
            break
        noise = normal((_NUM_ADAM // 2, 1, fitted.dim), generator=generator, like=offset)
        noise = noise.expand(-1, len(offset), -1)
        z, ladj = family.forward_and_ladj(moved(), torch.cat([noise, -noise]))
        optimizer.zero_grad(set_to_none=True)
        (-(target.log_joint(z) + ladj).mean(0).sum()).backward()
        optimizer.step()
        schedule.step()
    params = {name: tensor.detach() for name, tensor in moved().items()}
    return Fitted(family, params, fitted.dim), steps


def _better(target: Target, one: Fitted, other: Fitted, *, generator: Generator) -> Fitted:
    """Of each query the fit that has the higher C-ELBO by draws from the same noise."""
    (state,) = spawn(generator, 1)
    bounds = []
    for fitted in (one, other):
        same = Generator().manual_seed(state.initial_seed())
        z, log_q = fitted.rsample_and_log_prob(_NUM_CHOICE, generator=same)
        log_weights = target.log_joint(z, checked=False) - log_q
        bounds.append(log_weights.mean(0).nan_to_num(nan=-math.inf))
    higher = bounds[1] > bounds[0]
    params = {
        name: torch.where(higher.reshape(-1, *[1] * (tensor.ndim - 1)), other.params[name], tensor)
        for name, tensor in one.params.items()
    }
    return Fitted(one.crosscoder, params, one.dim)
