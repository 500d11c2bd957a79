"""Laplace: a Gaussian at each mode of p(z|x), with the inverse curvature as its covariance.

    p(z|x) ≈ Σ_k w_k N(z_k, H_k⁻¹),   log w_k = log p(z_k, x) − ½ log |H_k| + const

Climbs by Gauss–Newton end in the modes z_k, with curvature H_k (`numerics.gauss_newton`).

Source: MacKay (2003), chapter 27. Differs in: climbs start from several points of the bank, and a
mode found twice counts once.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Mixture
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.importance import weigh
from crosscoding.methods.numerics.gauss_newton import climb
from crosscoding.methods.numerics.resampling import next_temperature, systematic
from crosscoding.random import spawn, uniform
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# Effective points of the bank for each start: with more, starts are farther apart. Half or double
# of it, or of the starts or steps of `Laplace`, leaves the ESS of that method at 8 to 18 of 1,000
# draws on mnist-20d; half of it moves log p(x) of `Auto` by 0.003 nats on blocks, and double by
# nothing.
_POINTS_PER_START = 4.0


@dataclass(frozen=True)
class Laplace(Method):
    """A mixture of Gaussians at the modes that several climbs find.

    Args:
        num_starts: Climbs per query, ≥ 1.
        steps: Most steps of a climb, ≥ 1.
        num_fresh: Fresh draws of the fit, weighted and stored, ≥ 2.
    """

    num_starts: int = 8
    steps: int = 50
    num_fresh: int = 1000

    def __post_init__(self) -> None:
        if min(self.num_starts, self.steps, self.num_fresh - 1) < 1:
            raise ValueError(f"expected num_starts, steps >= 1 and num_fresh >= 2, got {self}")

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_starts, for_check = spawn(generator, 2)
        starts = spread_starts(target, self.num_starts, generator=for_starts)
        modes = climb(target, starts, self.steps, report=report)
        log_weights, climbs = modes.log_weights()
        means, precisions = modes.z.transpose(0, 1), modes.precision.transpose(0, 1)
        fitted = Mixture.from_components(log_weights.mT, means, precisions)
        found = weigh(target, fitted, self.num_fresh, generator=for_check)
        found.stats |= {
            "modes": (climbs > 0).sum(0).to(target.like),
            "steps": modes.steps.amax(0),
        }
        return found


def spread_starts(target: Target, num: int, *, generator: Generator) -> Tensor:
    """Points of the bank to climb from, (num, B, latent): drawn by p(x|z)^t, the best one first.

    t is the largest temperature that leaves an ESS of 4 num, or of half the points, so starts agree
    with the evidence but are still spread out.
    """
    points, log_likelihood = target.log_likelihood_of_bank()
    ess = min(_POINTS_PER_START * num, 0.5 * len(points))
    temperature = next_temperature(log_likelihood, torch.zeros_like(log_likelihood[0]), ess)
    return points[spread_over(log_likelihood, temperature, num, generator=generator)]


def spread_over(
    log_likelihood: Tensor, temperature: Tensor, num: int, *, generator: Generator
) -> Tensor:
    """Indices of points drawn by p(x|z)^t, the best one first, (num, B).

    Args:
        log_likelihood: log p(x|z) at N points, shape (N, B).
        temperature: t, shape (B,).
        num: Number of indices.
        generator: For the draws.
    """
    offset = uniform((1,), generator=generator, like=log_likelihood)
    index = systematic(log_likelihood, offset, num, temperature)
    index[0] = log_likelihood.max(0).indices  # takes half the time of argmax
    return index
