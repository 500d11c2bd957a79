"""Swarms: particles from p(z|x), in islands whose spread gives the errors of what they estimate.

The islands of a query share temperatures and covariance, but no particles. Each estimates log p(x)
and the mean of z by itself, so their spread also shows the error from lost modes.
"""

import math
from dataclasses import dataclass, fields
from statistics import NormalDist

import torch
from torch import Tensor

from crosscoding.methods.numerics.resampling import log_mean_of_islands
from crosscoding.result.findings import Findings

# Largest standard error of log p(x) by islands, in nats, with which they count as a search: six
# times a trusted one. With less, noise alone would undo searches; with more, islands that found
# different modes would count as a search.
_MOST_DISAGREEMENT = 0.25


@dataclass(eq=False)
class Swarm:
    """Particles from p(z|x) for B queries, and what they estimate.

    Args:
        z: Particles, equally weighted, island after island, shape (S, B, latent).
        log_likelihood: log p(x|z) there, shape (S, B).
        log_islands: log Ẑ of each island, shape (I, B).
        num_temperatures: Number of temperatures it took, shape (B,).
        acceptance: Acceptance rate of the last moves, shape (B,).
        decodes: Decoder evaluations, shape (B,).
        stuck: Whether at some temperature no step size moved the particles, boolean (B,).
        reached: Whether the particles reached p(z|x), boolean (B,); where they did not, z and its
            figures are 0.
    """

    z: Tensor
    log_likelihood: Tensor
    log_islands: Tensor
    num_temperatures: Tensor
    acceptance: Tensor
    decodes: Tensor
    stuck: Tensor
    reached: Tensor

    def select(self, index: Tensor) -> "Swarm":
        """The particles of some queries."""
        rest = [getattr(self, field.name)[..., index] for field in fields(self)[1:]]
        return Swarm(self.z[:, index], *rest)

    @property
    def missed(self) -> Tensor:
        """0 where the particles count as a search for modes, (B,), and NaN where they do not.

        They do not count if they were stuck, or if the islands disagree.
        """
        failed = self.stuck | (self.log_evidence_error > _MOST_DISAGREEMENT)
        return torch.where(failed, math.nan, torch.zeros_like(self.acceptance))

    @property
    def log_evidence(self) -> Tensor:
        """log p(x) in nats, shape (B,)."""
        return log_mean_of_islands(self.log_islands)[0]

    @property
    def log_evidence_error(self) -> Tensor:
        """Its standard error, shape (B,)."""
        return log_mean_of_islands(self.log_islands)[1]

    @property
    def ess(self) -> Tensor:
        """Effective sample size from the spread of the islands' means, shape (B,).

        It is the variance of all particles over that of the mean, as `one_error` combines
        directions, and at most the number of particles in the effective number of islands: if one
        island outweighs all others, the number of its own.
        """
        islands = self.z.unflatten(0, (len(self.log_islands), -1))
        weights = self.log_islands.softmax(0)[..., None]
        means = islands.mean(1)
        centre = (weights * means).sum(0)
        within = (islands - centre).square().mean((0, 1)).clamp_min(1e-30)
        between = (weights.square() * (means - centre).square()).sum(0)
        correction = 1 - weights.square().sum(0)
        error = one_error(between / correction.clamp_min(1e-6) / within, len(islands) - 1)
        most = islands.shape[1] / weights[..., 0].square().sum(0)
        return torch.minimum(1 / error.clamp_min(1e-12), most)

    def findings(self) -> Findings:
        """Findings with the particles as draws."""
        unknown = torch.full_like(self.log_evidence, math.nan)
        return Findings(
            draws=self.z,
            log_evidence=self.log_evidence,
            log_evidence_error=self.log_evidence_error,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=self.ess,
            missed=self.missed,
            stats={"temperatures": self.num_temperatures, "acceptance": self.acceptance},
        )


def one_error(errors: Tensor, freedom: int) -> Tensor:
    """The squared error of a mean, for all directions: (B, latent) -> (B,).

    It is the average over directions or, if larger, the error of the worst one relative to what the
    worst of so many has by chance half of the time. That shows a mode whose share differs from
    island to island.

    Source: Wilson & Hilferty (1931) for quantiles of χ².

    Args:
        errors: Squared error of each direction, in units of the draws' variance.
        freedom: Degrees of freedom of its estimate.
    """
    normal = NormalDist().inv_cdf(0.5 ** (1 / errors.shape[-1]))
    by_chance = (1 - 2 / (9 * freedom) + normal * math.sqrt(2 / (9 * freedom))) ** 3
    return torch.maximum(errors.mean(-1), errors.amax(-1) / max(by_chance, 1.0))
