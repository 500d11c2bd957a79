"""Starts for Algorithm 1: close to the posterior as prior draws show it, with all of its modes.

Algorithm 1 climbs from its start, and a flow that starts in one mode stays there. Prior draws,
decoded once for all queries, reach every mode that has a share of the prior. Weighted by p(x|z)^t,
they show where the mass is. A Gaussian takes their moments, a mixture is fitted to them, and a
richer map is first bent, by least squares, into one that carries noise to them.
"""

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Crosscoder, fit_to_draws
from crosscoding.crosscoders.base import Map, Params, WarmStart, adam, pack, unpack
from crosscoding.diagnostics import importance_ess
from crosscoding.methods.numerics.resampling import bounded
from crosscoding.random import normal, spawn
from crosscoding.target.base import Target

# Halving or doubling any of these changes the ESS of planar flows on four queries of mnist-2d by at
# most 4 %, except for those above three dimensions, which were not varied.
_NUM_PROBES, _NUM_PROBES_ABOVE = 4096, 1024  # up to and above _MAX_BENT_DIM
_MAX_BENT_DIM = 3  # in more dimensions, maps bent to 128 points cost 0.4 nats
_NUM_POINTS = 128  # to match base noise to; the cost of a plan grows with their square
_SINKHORN_ROUNDS = 50  # of scaling a plan, which need not be exact for a start
# Of squared distances in standard deviations: about the spacing of the points.
_SINKHORN_BLUR = 0.05
_BEND_STEPS = 300  # of Adam towards the matched points
_BEND_RATE = 0.05  # of Adam, falling to 0
_LADJ_WEIGHT = 0.002  # of log |det J| in the loss: keeps maps from collapsing onto the points
# Effective draws of the prior, so many per dimension and some more, and bandwidth in standard
# deviations at an ESS of 1. On the same four queries, double of the draws costs one of them 28 % of
# the ESS, and half of the bandwidth 6 %; the opposite costs less than 1 %.
_POINTS_PER_DIMENSION, _MORE_POINTS, _BANDWIDTH = 2, 16, 0.25
# Least variance of a start, relative to the prior's. Halving or doubling it changes nothing there.
_LEAST_VARIANCE = 1e-3


def starting_params(target: Target, crosscoder: Crosscoder, *, generator: Generator) -> Params:
    """Parameters of a cross-coder to start Algorithm 1 from, for each query of a flat target."""
    for_probes, for_points, for_params = spawn(generator, 3)
    with torch.no_grad():
        z, weights = weighted_probes(target, generator=for_probes)
        mean = weights @ z
        variance = weights @ z.square() - mean.square()
        scale = variance.clamp_min(_LEAST_VARIANCE * target.prior_scale**2).sqrt()
    params = crosscoder.start(mean, scale, generator=for_params)
    how = crosscoder.warm_start
    if how is WarmStart.MOMENTS:
        return params
    if how is WarmStart.BEND and target.latent_dim > _MAX_BENT_DIM:
        return params
    with torch.no_grad():
        eps = normal((_NUM_POINTS, target.latent_dim), generator=for_points, like=mean)
        points = _posterior_points(z, weights, scale, generator=for_points)
        if how is WarmStart.FIT:
            draws = points.transpose(0, 1)
            return fit_to_draws(crosscoder, draws, None, generator=for_params).params
        goals = _transport(eps, points, mean, scale)
    assert isinstance(crosscoder, Map)  # only maps are bent
    return _bend(crosscoder, params, eps, goals, scale)


def weighted_probes(target: Target, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Prior draws z (N, latent) that all queries share, and each query's weights for them, (B, N).

    The weights are proportional to p(x|z)^t with the largest t ≤ 1 that leaves an ESS of
    2 latent + 16. In hundreds of dimensions t is 0, and nothing is decoded.
    """
    low_dimensional = target.latent_dim <= _MAX_BENT_DIM
    num = _NUM_PROBES if low_dimensional else _NUM_PROBES_ABOVE
    z = target.draw_prior(num, generator=generator)
    enough = _POINTS_PER_DIMENSION * target.latent_dim + _MORE_POINTS
    if enough >= num:
        return z, z.new_full((target.num_queries, num), 1 / num)
    log_likelihood = bounded(target.pairwise_log_likelihood(z))
    low, high = torch.zeros_like(log_likelihood[0]), torch.ones_like(log_likelihood[0])
    for _ in range(20):
        middle = 0.5 * (low + high)
        fits = importance_ess(middle * log_likelihood) >= enough
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return z, (low * log_likelihood).softmax(0).mT


def _posterior_points(z: Tensor, weights: Tensor, scale: Tensor, *, generator: Generator) -> Tensor:
    """Equally weighted points for each query, smoothed as by a kernel density, (B, P, latent)."""
    cumulative = weights.double().cumsum(1)
    levels = (torch.arange(_NUM_POINTS, dtype=torch.double) + 0.5) / _NUM_POINTS
    levels = levels.to(z.device) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, levels).clamp_max(len(z) - 1)
    ess = 1 / weights.square().sum(1)
    bandwidth = _BANDWIDTH * ess.clamp_max(_NUM_POINTS) ** (-1 / (z.shape[1] + 4))
    noise = normal((1, _NUM_POINTS, z.shape[1]), generator=generator, like=z)
    return z[index] + bandwidth[:, None, None] * scale[:, None] * noise


def _transport(eps: Tensor, points: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Where entropic optimal transport to `points` takes each of eps (P, latent), (B, P, latent).

    Source: Cuturi (2013), in logarithms. Differs in: points are standardised.
    """
    standard = (points - mean[:, None]) / scale[:, None]
    kernel = -torch.cdist(eps.expand(len(points), -1, -1), standard).square() / _SINKHORN_BLUR
    from_eps, from_points = torch.zeros_like(kernel[:, :, 0]), torch.zeros_like(kernel[:, 0])
    for _ in range(_SINKHORN_ROUNDS):
        from_points = -(kernel + from_eps[:, :, None]).logsumexp(1)
        from_eps = -(kernel + from_points[:, None, :]).logsumexp(2)
    return (kernel + from_points[:, None, :]).softmax(2) @ points


def _bend(crosscoder: Map, params: Params, eps: Tensor, goals: Tensor, scale: Tensor) -> Params:
    """Fit XCoder(ε) to goals, (B, P, latent), by least squares with Adam; needs no decoder.

    A small log-determinant term keeps the map from folding or collapsing onto the goals.
    """
    packed, layout = pack(params)
    noise = eps[:, None].expand(-1, len(packed), -1)

    def loss(psi: Tensor) -> Tensor:
        z, ladj = crosscoder.forward_and_ladj(unpack(psi, layout), noise)
        misses = ((z - goals.transpose(0, 1)) / scale).square().sum(-1)
        return (misses - _LADJ_WEIGHT * ladj).mean(0).sum()

    return unpack(adam(loss, packed, _BEND_STEPS, _BEND_RATE), layout)
