"""HMC: Hamiltonian Monte Carlo in z, many chains for every query at once.

The metric M⁻¹ is the covariance of the chains' warm-up draws (by default its diagonal); dual
averaging adapts the step size to the acceptance rate. Each query has its own metric and step size.

An adapted step size is jittered by up to a fifth at each step: L leapfrog steps of a fixed size can
bring a path on an ordinary Gaussian back to its start, and the chain would not move.

Source: Hoffman & Gelman (2014), eq. 6, for dual averaging; `leapfrog` for the moves. Differs in:
the acceptance rate that steers a query's step size is the mean over its chains.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from crosscoding.diagnostics import chain_ess, r_hat
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.gradients import evaluated
from crosscoding.methods.numerics.leapfrog import JITTER, Move, regularized_covariance
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# The first step size is this times D^−¼ prior standard deviations, as step sizes scale with the
# dimension (Neal 2011, section 5.4.4).
_FIRST_STEP = 0.5
# M⁻¹ is estimated after a quarter and after half of the warm-up, with a least variance relative to
# the prior's. On 24 queries of mnist-2d, the median ESS is 17, as chains do not cross between
# modes, and 2 % more or less with half or double of these or of _FIRST_STEP.
_METRIC_AFTER, _FLOOR = (4, 2), 1e-6
# Of dual averaging: μ = log(10 ε₁), t₀, γ and κ of Hoffman & Gelman (2014), section 3.2.
_FIRST_FACTOR, _STEADIED_BY, _SHRINKAGE, _FORGETTING = 10.0, 10, 0.05, 0.75


@dataclass(frozen=True)
class HMC(Method):
    """Hamiltonian Monte Carlo, with chains started at prior draws.

    Args:
        num_chains: Chains per query, ≥ 1.
        num_warmup: Steps for adapting and for forgetting the start, ≥ 0.
        num_draws: Draws kept from each chain, ≥ 4.
        num_leapfrog: Leapfrog steps L per proposal, ≥ 1.
        step_size: ε in prior standard deviations; None adapts it. With a number, nothing is adapted
            and the metric is the identity, as in the paper's tuning study.
        target_acceptance: Acceptance rate that dual averaging aims for, between 0 and 1.
        dense_metric: Whether M⁻¹ is the full covariance.
    """

    num_chains: int = 16
    num_warmup: int = 300
    num_draws: int = 300
    num_leapfrog: int = 10
    step_size: float | None = None
    target_acceptance: float = 0.8
    dense_metric: bool = False

    def __post_init__(self) -> None:
        counts = (self.num_chains, self.num_leapfrog, self.num_draws - 3, self.num_warmup + 1)
        if min(counts) < 1:
            raise ValueError(
                "expected num_chains and num_leapfrog >= 1, num_draws >= 4 and num_warmup >= 0, "
                f"got {self}"
            )
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"expected step_size > 0 or None, got {self.step_size}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"expected target_acceptance between 0 and 1, got {self.target_acceptance}"
            )

    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_start, for_steps = spawn(generator, 2)
        start = target.draw_prior(self.num_chains, generator=for_start)
        z = start[:, None].expand(-1, target.num_queries, -1)
        chains = _Chains(target, z, self.num_leapfrog)
        step_size = self._warm_up(chains, target.prior_scale, generator=for_steps, report=report)
        jitter = 0.0 if self.step_size is not None else JITTER
        draws, acceptance = [], []
        for step in range(self.num_draws):
            acceptance.append(chains.step(step_size, jitter, generator=for_steps))
            draws.append(chains.z)
            self._report(report, self.num_warmup + step, "sampling")
        return self._findings(torch.stack(draws, 1), torch.stack(acceptance), step_size)

    def _warm_up(
        self, chains: "_Chains", scale: float, *, generator: Generator, report: Report
    ) -> Tensor:
        """Run the warm-up; returns the step sizes to continue with, (B,)."""
        num_queries = chains.z.shape[1]
        if self.step_size is not None:
            fixed = chains.z.new_full((num_queries,), self.step_size * scale)
            for step in range(self.num_warmup):
                chains.step(fixed, 0.0, generator=generator)
                self._report(report, step, "warm-up")
            return fixed
        dim = chains.z.shape[-1]
        tuning = _DualAveraging(_FIRST_STEP * scale * dim**-0.25, chains.z.new_zeros(num_queries))
        updates = {self.num_warmup // part for part in _METRIC_AFTER}
        since: list[Tensor] = []
        for step in range(self.num_warmup):
            acceptance = chains.step(tuning.trial, JITTER, generator=generator)
            tuning.update(acceptance.mean(0), self.target_acceptance)
            since.append(chains.z)
            if step + 1 in updates and len(since) * self.num_chains > 2 * dim:
                chains.adopt_metric(torch.cat(since[len(since) // 2 :]), self.dense_metric)
                tuning, since = _DualAveraging(1.0 * dim**-0.25, tuning.trial), []
            self._report(report, step, "warm-up")
        return tuning.average

    def _report(self, report: Report, step: int, what: str) -> None:
        if step % 10 == 0:
            report(step / (self.num_warmup + self.num_draws), what)

    def _findings(self, draws: Tensor, acceptance: Tensor, step_size: Tensor) -> Findings:
        """Findings from draws (chain, draw, B, latent) and acceptance (draw, chain, B)."""
        nothing = torch.full_like(step_size, math.nan)
        return Findings(
            draws=draws.flatten(0, 1),
            log_evidence=nothing,
            log_evidence_error=nothing,
            c_elbo=nothing,
            c_elbo_error=nothing,
            ess=chain_ess(draws).amin(-1),
            num_chains=len(draws),
            r_hat=r_hat(draws).amax(-1),
            stats={
                "acceptance": acceptance.mean((0, 1)),
                "acceptance_of_worst_chain": acceptance.mean(0).amin(0),
                "step_size": step_size,
            },
        )


class _Chains:
    """Chains at positions z (chain, B, latent), with their log-joint and gradient."""

    def __init__(self, target: Target, z: Tensor, num_leapfrog: int) -> None:
        self._move = Move(target, partial(target.log_joint, checked=False), None, num_leapfrog)
        self._points = evaluated(target, self._move.density, z)

    @property
    def z(self) -> Tensor:
        """Current positions of the chains."""
        return self._points.z

    def adopt_metric(self, draws: Tensor, dense: bool) -> None:
        """Take M⁻¹ = F Fᵀ from draws (S, B, latent): their covariance or its diagonal."""
        floor = _FLOOR * self._move.target.prior_scale**2
        covariance = regularized_covariance(draws, floor)
        if not dense:
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        self._move = replace(self._move, factor=torch.linalg.cholesky(covariance))

    def step(self, step_size: Tensor, jitter: float, *, generator: Generator) -> Tensor:
        """Make one proposal for every chain; returns acceptance probabilities, (chain, B)."""
        self._points, acceptance = self._move(self._points, step_size, jitter, generator=generator)
        return acceptance


class _DualAveraging:
    """Adapts step sizes (B,) towards the acceptance rate wanted."""

    def __init__(self, first: float, like: Tensor) -> None:
        self._centre = math.log(_FIRST_FACTOR * first)
        self._error = torch.zeros_like(like)
        self._log_average = torch.zeros_like(like)
        self._count = 0
        self.trial = torch.full_like(like, first)

    def update(self, acceptance: Tensor, wanted: float) -> None:
        """Record the acceptance rates (B,) at the step sizes `trial`, and set new ones."""
        self._count += 1
        share = 1 / (self._count + _STEADIED_BY)
        self._error = (1 - share) * self._error + share * (wanted - acceptance)
        log_trial = self._centre - math.sqrt(self._count) / _SHRINKAGE * self._error
        weight = self._count**-_FORGETTING
        self._log_average = weight * log_trial + (1 - weight) * self._log_average
        self.trial = log_trial.exp()

    @property
    def average(self) -> Tensor:
        """The step sizes to continue with."""
        return self._log_average.exp() if self._count else self.trial
