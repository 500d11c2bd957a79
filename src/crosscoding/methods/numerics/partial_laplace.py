"""Importance sampling for evidence that is narrow in a few of many latent directions.

Split z = u + V v, with V the K directions in which p(z|x) is narrow. Draws of u come from close to
the prior, and those of v from Laplace's approximation to p(v | u, x), found anew for each u:

    w = N(v; 0, I) p(x | u + V v) / q(v | u) · N(y; 0, I) / q(y),   y = Wᵀ u,   p(x) = E[w]

However narrow p(z|x) is, and however it bends, v is where p(x|z) is large. Only q(y) is fitted, in
the directions W that evidence informs most apart from V.

Source: Cui, Law & Marzouk (2016), "Dimension-independent likelihood-informed MCMC", for the
directions that evidence informs; Rue, Martino & Chopin (2009) for Laplace's approximation within a
sampler. Differs in: an approximation for each draw, which its weight corrects.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.precision_factors import precision_root
from crosscoding.diagnostics import importance_ess
from crosscoding.methods.numerics.fibres import Fibres, across, along
from crosscoding.methods.numerics.gauss_newton import climb, positive
from crosscoding.methods.numerics.resampling import flattened, next_temperature
from crosscoding.random import normal, spawn, uniform
from crosscoding.target.base import Target

# Precision beyond the prior's above which a direction is narrow. With all directions that evidence
# informs at all, the ESS per draw fell from 0.2 to 0.01: they bend too much (decision 0012).
_NARROW = 8.0
MOST_NARROW = 0.125  # of all directions: more enlarge planes, and make the approximation worse
# At most, of a climb along the narrow directions. Half or double of it changes nothing on three
# queries of `tvae` in benchmarks/sensitivity.py, and of _RIDGE log p(x) by 2e-4 nats.
_STEPS = 15
# Shares of draws from the prior, where a fit may be too thin: no weight exceeds 20 times what it
# would be under the prior of v, or 5 times what it would be under that of y.
_PRIOR_OF_V, _PRIOR_OF_Y = 0.05, 0.2
# Standard deviations of Laplace's approximation are multiplied by this. Wider ones cost ESS, and
# narrower ones leave large weights in the tails. On `tvae`, 1.0, 1.1 or 1.2 moves log p(x) by at
# most 0.08 nats, half as much as another seed, and changes no verdict; 1.1 and 1.2 take 40 % fewer
# decodes, as another seed does.
_WIDER = 1.05
# Directions in which q(y) is fitted, to a few hundred pilot draws. Halving or doubling it or the
# next two moves log p(x) by at most 0.08 nats on three queries of `tvae` in
# benchmarks/sensitivity.py, half as much as another seed.
_MOST_WIDE = 16
# Effective draws that q(y) is at least fitted to, and as how many draws the prior's covariance
# counts. With more, the fit keeps closer to the prior; with fewer, it follows the noise of weights.
_FITTED_TO = 60.0
_AS_PRIOR = 30.0
_RIDGE = 1e-3  # variance added to the inputs of a regression
_BYTES = 64 * 2**20  # of the evidence of planes that are climbed in together


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions in which evidence is narrow, and those that it informs less, for B queries.

    Args:
        narrow: V, orthonormal, shape (B, latent, K); the last columns are 0 for queries with fewer.
        wide: W, orthonormal and orthogonal to V, shape (B, latent, M).
    """

    narrow: Tensor
    wide: Tensor

    @classmethod
    def of(cls, curvature: Tensor, like: Tensor) -> "Directions":
        """From curvatures of log p(z, x) at points of p(z|x), (S, B, latent, latent).

        At most an eighth of all directions are narrow, as each costs a decode in every step.
        """
        dim, curvature = curvature.shape[-1], positive(curvature, 1.0)
        num = num_narrow(curvature).clamp_max(int(MOST_NARROW * dim))
        most = max(int(num.amax()), 1)
        used = torch.arange(most, device=num.device) < num[:, None]
        narrow = torch.linalg.eigh(curvature.mean(0))[1].flip(-1)[..., :most] * used[:, None]
        # What evidence tells about u once v is fitted to it: the curvature's Schur complement.
        mixed = narrow.mT @ curvature
        inner = mixed @ narrow + torch.diag_embed((~used).to(curvature))
        told = (curvature - mixed.mT @ torch.linalg.solve(inner, mixed)).mean(0)
        within = narrow @ narrow.mT
        outside = torch.eye(dim).to(within) - within
        wide = torch.linalg.eigh(outside @ told @ outside - within)[1].flip(-1)
        return cls(narrow.to(like), wide[..., : min(_MOST_WIDE, dim - most)].to(like))

    def rest_of(self, z: Tensor) -> Tensor:
        """u of z, (S, B, latent)."""
        return z - along(self.narrow, across(self.narrow, z))

    def select(self, index: Tensor) -> "Directions":
        """The directions of some queries."""
        return Directions(self.narrow[index], self.wide[index])


def num_narrow(curvature: Tensor) -> Tensor:
    """The number of narrow directions, the median over points: (S, B, latent, latent) -> (B,)."""
    values = torch.linalg.eigvalsh(positive(curvature, 1.0))
    return (values > 1 + _NARROW).sum(-1).median(0).values


@dataclass(frozen=True, eq=False)
class Draws:
    """Weighted draws for B queries.

    Args:
        z: Shape (S, B, latent).
        log_weights: Shape (S, B).
        mean: Of Laplace's approximation to p(v | u, x), shape (S, B, K).
        decodes: Approximate number of decoder evaluations, shape (B,).
    """

    z: Tensor
    log_weights: Tensor
    mean: Tensor
    decodes: Tensor

    def select(self, index: Tensor) -> "Draws":
        """The draws of some queries."""
        return Draws(
            self.z[:, index], self.log_weights[:, index], self.mean[:, index], self.decodes[index]
        )

    def and_more(self, others: "Draws") -> "Draws":
        """These draws and others of the same queries."""
        return Draws(
            torch.cat([self.z, others.z]),
            torch.cat([self.log_weights, others.log_weights]),
            torch.cat([self.mean, others.mean]),
            self.decodes + others.decodes,
        )


@dataclass(frozen=True, eq=False)
class PartialLaplace:
    """A proposal for each of B queries.

    Args:
        target: p(z, x), flat, with the prior N(0, I).
        directions: Narrow and wide ones.
        mean: Of q(y), shape (B, M).
        root: Cholesky factor of the covariance of q(y), shape (B, M, M).
        guess: Coefficients of (1, y) in a linear guess of v, shape (B, K, 1 + M).
        num_starts: Climbs in each plane, the first from the guess and others from prior draws of v.
            If they end apart, q(v|u) is a mixture.
    """

    target: Target
    directions: Directions
    mean: Tensor
    root: Tensor
    guess: Tensor
    num_starts: int = 1

    @classmethod
    def from_prior(cls, target: Target, directions: Directions) -> "PartialLaplace":
        """With draws of u from the prior."""
        num, _, wide = directions.wide.shape
        mean = directions.wide.new_zeros(num, wide)
        root = torch.eye(wide).to(mean).expand(num, -1, -1)
        guess = mean.new_zeros(num, directions.narrow.shape[-1], 1 + wide)
        return cls(target, directions, mean, root, guess)

    def select(self, index: Tensor) -> "PartialLaplace":
        """The proposals of some queries."""
        return PartialLaplace(
            self.target.select(index),
            self.directions.select(index),
            self.mean[index],
            self.root[index],
            self.guess[index],
            self.num_starts,
        )

    def draw(self, num: int, *, generator: Generator) -> Draws:
        """`num` draws for each query."""
        narrow, wide = self.directions.narrow, self.directions.wide
        u = normal((num, 1, wide.shape[1]), generator=generator, like=wide)
        u = self.directions.rest_of(u.expand(-1, len(wide), -1))
        own = across(wide, u)
        from_prior = uniform((num, 1, 1), generator=generator, like=wide) < _PRIOR_OF_Y
        y = torch.where(from_prior, own, self.mean + along(self.root, own))
        u = u + along(wide, y - own)
        inside = self._inside(u, y, generator)
        v = inside.draw(generator)
        z = u + along(narrow, v)
        log_weights = self._log_weights(z, y, v, inside)
        return Draws(z, log_weights, inside.mean[0], inside.decodes + num)

    def log_weights_at(self, z: Tensor, *, generator: Generator) -> Tensor:
        """log w at points z (N, B, latent): (N, B)."""
        y, v = across(self.directions.wide, z), across(self.directions.narrow, z)
        inside = self._inside(self.directions.rest_of(z), y, generator)
        return self._log_weights(z, y, v, inside)

    def beside(self, z: Tensor, *, generator: Generator) -> Tensor:
        """Points with the u of z (N, B, latent), and v where climbs from prior draws of v end."""
        narrow, u = self.directions.narrow, self.directions.rest_of(z)
        start = _noise(1, len(u), narrow, generator)
        return u + along(narrow, _Inside.of(self.target, u, narrow, start).mean[0])

    def fitted_to(self, draws: Draws) -> "PartialLaplace":
        """With q(y) and the guess of v fitted to draws."""
        y, log_weights = across(self.directions.wide, draws.z), draws.log_weights
        flatness = next_temperature(log_weights, torch.zeros_like(log_weights[0]), _FITTED_TO)
        flat = flattened(log_weights, flatness)
        weights = flat.softmax(0)[..., None]
        mean = (weights * y).sum(0)
        gap = (y - mean).transpose(0, 1)
        covariance = gap.mT @ (weights.transpose(0, 1) * gap)
        prior = torch.eye(y.shape[-1]).to(y)
        share = (_AS_PRIOR / (_AS_PRIOR + importance_ess(flat)))[:, None, None]
        root = torch.linalg.cholesky(covariance + share * (prior - covariance))
        return replace(self, mean=mean, root=root, guess=_regression(y, draws.mean))

    def _inside(self, u: Tensor, y: Tensor, generator: Generator) -> "_Inside":
        guess = along(self.guess, torch.cat([torch.ones_like(y[..., :1]), y], -1))[None]
        narrow = self.directions.narrow
        start = torch.cat([guess, _noise(self.num_starts - 1, len(u), narrow, generator)])
        return _Inside.of(self.target, u, narrow, start)

    def _log_weights(self, z: Tensor, y: Tensor, v: Tensor, inside: "_Inside") -> Tensor:
        white = torch.linalg.solve_triangular(
            self.root, (y - self.mean).permute(1, 2, 0), upper=False
        ).permute(2, 0, 1)
        fitted = _log_normal(white) - self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_q = _mixed(fitted, _log_normal(y), _PRIOR_OF_Y)
        likelihood = self.target.log_likelihood(z) + _log_normal(v)
        return likelihood - inside.log_prob(v) + _log_normal(y) - log_q


@dataclass(frozen=True, eq=False)
class _Inside:
    """q(v|u) for points u of B queries: Laplace's approximations at the ends of C climbs.

    Args:
        mean: Shape (C, S, B, K).
        root: Cholesky factors of the precisions, in double, shape (C, S, B, K, K).
        narrow: V, shape (B, latent, K).
        decodes: Approximate number of decoder evaluations, shape (B,).
    """

    mean: Tensor
    root: Tensor
    narrow: Tensor
    decodes: Tensor

    @classmethod
    def of(cls, target: Target, u: Tensor, narrow: Tensor, start: Tensor) -> "_Inside":
        """At u (S, B, latent), by climbs from u + V start, (C, S, B, K).

        Each plane has a copy of its query's evidence, so few of them may fit in memory.
        """
        bytes_of_one = len(narrow) * max(target.query_bytes, 1)
        size = max(target.clock.piece_bytes(_BYTES) // bytes_of_one, 1)
        pieces = zip(u.split(size), start.split(size, 1), strict=True)
        parts = [_climbed(target, points, narrow, begin) for points, begin in pieces]
        means, roots, decodes = zip(*parts, strict=True)
        return cls(torch.cat(means, 1), torch.cat(roots, 1), narrow, torch.stack(decodes).sum(0))

    def draw(self, generator: Generator) -> Tensor:
        """A draw of q(v|u) for each u, (S, B, K)."""
        num, *shape = self.mean.shape
        own, which = uniform((2, shape[0], 1, 1), generator=generator, like=self.mean)
        noise = _noise(1, shape[0], self.narrow, generator)[0]
        which = (which * num).long().clamp_max(num - 1)[None]
        mean = self.mean.gather(0, which.expand(1, *shape))[0]
        root = self.root.gather(0, which[..., None].expand(1, *shape, shape[-1]))[0]
        step = _WIDER * noise.double()[..., None]
        near = mean + torch.linalg.solve_triangular(root.mT, step, upper=True)[..., 0].to(mean)
        return torch.where(own < _PRIOR_OF_V, noise, near)

    def log_prob(self, v: Tensor) -> Tensor:
        """log q(v|u), (S, B)."""
        white = across(self.root, (v - self.mean).double()) / _WIDER
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        near = _log_normal(white) + log_det - _used(self.narrow).sum(-1) * math.log(_WIDER)
        near = near.logsumexp(0) - math.log(len(near))
        return _mixed(near, _log_normal(v).to(near), _PRIOR_OF_V).to(v)


def _climbed(
    target: Target, u: Tensor, narrow: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where climbs from u + V start end, roots of the precisions there, and their decodes."""
    ends = climb(Fibres(target, u, narrow), start.flatten(1, 2), _STEPS)
    mean, root = ends.z.unflatten(1, u.shape[:2]), precision_root(ends.precision)
    decodes = ends.decodes.unflatten(0, u.shape[:2]).sum(0)
    return mean, root.unflatten(1, u.shape[:2]), decodes


def _used(narrow: Tensor) -> Tensor:
    """Which directions a query has, (B, latent, K) -> (B, K)."""
    return narrow.any(-2)


def _noise(num: int, size: int, narrow: Tensor, generator: Generator) -> Tensor:
    """N(0, I) for v, (num, size, B, K), and 0 along directions that a query does not have.

    It is the same for all queries, and does not depend on how many directions others have.
    """
    (own,) = spawn(generator, 1)
    shape, most = (num, size, 1), narrow.shape[-1]
    noise = [normal(shape, generator=own, like=narrow) for _ in range(most)]
    return torch.stack(noise, -1) * _used(narrow)


def _mixed(fitted: Tensor, prior: Tensor, share: float) -> Tensor:
    """log of a mixture of two densities; `share` is the prior's."""
    return torch.logaddexp(fitted + math.log1p(-share), prior + math.log(share))


def _log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I), without the last dimension."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi))


def _regression(y: Tensor, v: Tensor) -> Tensor:
    """Coefficients of a least-squares fit of v (S, B, K) by (1, y): (B, K, 1 + M)."""
    inputs = torch.cat([torch.ones_like(y[..., :1]), y], -1).transpose(0, 1)
    ridge = _RIDGE * len(y) * torch.eye(inputs.shape[-1]).to(y)
    return torch.linalg.solve(inputs.mT @ inputs + ridge, inputs.mT @ v.transpose(0, 1)).mT
