"""The part of `Posterior` that says what answers are worth: figures, verdicts, and the trace."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from crosscoding.isolation import isolated_class
from crosscoding.result.findings import Findings
from crosscoding.result.latent_share import LatentShares
from crosscoding.result.lazy_verdicts import Verdicts
from crosscoding.result.trace import Stage, Trace
from crosscoding.target.base import Target
from crosscoding.target.discrete_target import DiscreteTarget
from crosscoding.target.vae_target import VAETarget


@isolated_class
class AnswerFigures(ABC):
    """Estimates of log p(x), what they rest on, and verdicts. `Posterior` has the findings."""

    method: str
    _findings: Findings
    _flat_target: Target | None
    _shares: LatentShares | None = None  # kept, as it caches what it measures

    @abstractmethod
    def _unflatten(self, tensor: Tensor, num_sample_dims: int = 0) -> Tensor:
        """A tensor of the flat batch, (*sample, B, ...), as (*sample, *batch, ...)."""

    @property
    def log_evidence(self) -> Tensor:
        """Estimate of log p(x) in nats, shape (*batch,); NaN where the method gives none."""
        return self._unflatten(self._findings.log_evidence)

    @property
    def log_evidence_error(self) -> Tensor:
        """Standard error of `log_evidence` in nats, shape (*batch,)."""
        return self._unflatten(self._findings.log_evidence_error)

    @property
    def c_elbo(self) -> Tensor:
        """C-ELBO on fresh draws in nats, shape (*batch,); NaN where q(z|x) has no density.

        It is a lower bound on log p(x) if `bound` is true.
        """
        return self._unflatten(self._findings.c_elbo)

    @property
    def c_elbo_error(self) -> Tensor:
        """Standard error of `c_elbo` in nats, shape (*batch,)."""
        return self._unflatten(self._findings.c_elbo_error)

    @property
    def bound(self) -> bool:
        """Whether `c_elbo` is a lower bound on log p(x); it is not if the cross-coder may fold."""
        return self._findings.fitted is None or self._findings.fitted.crosscoder.has_density

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the draws that the answer was computed from, shape (*batch,).

        For importance sampling and fits it is the importance ESS, for chains the smallest
        autocorrelation ESS over latent dimensions. `Auto` stores `num_draws` draws, resampled from
        those that this figure is about.
        """
        return self._unflatten(self._findings.ess)

    @property
    def pareto_k(self) -> Tensor:
        """Pareto k of the importance weights, shape (*batch,); NaN where there are none.

        Above `diagnostics.pareto_k_limit` for the number of draws, weighted averages such as
        `log_evidence` are not reliable. Pareto k cannot reveal a mode that no draw came near.
        """
        k = self._findings.pareto_k
        return self._unflatten(torch.full_like(self._findings.ess, math.nan) if k is None else k)

    @property
    def stats(self) -> dict[str, Tensor]:
        """Further figures of the method by name, each of shape (*batch,)."""
        return {name: self._unflatten(value) for name, value in self._findings.all_stats.items()}

    @property
    def verdicts(self) -> Verdicts:
        """What each answer is worth and why, for the flattened batch.

        `verdicts[i].label` is about p(z|x), log p(x) and the shares of modes;
        `verdicts[i].purposes` says whether means or intervals may be trusted even if that is not.
        """
        figures, target, density_dim = self._findings.figures, self._flat_target, None
        method = "Discrete" if isinstance(target, DiscreteTarget) else self.method
        if isinstance(target, VAETarget):
            if self._shares is None:
                self._shares = LatentShares(target, self._findings, figures.depends_on_share)
        elif target is not None:
            density_dim = self._findings.draws.shape[-1]
        return Verdicts(figures, method, density_dim, self._shares)

    @property
    def trusted(self) -> Tensor:
        """Whether the label of the verdict is "trusted", boolean, shape (*batch,)."""
        return self._unflatten(self._findings.figures.grades == 0)

    @property
    def trace(self) -> Trace:
        """What the method's stages did, in order; empty for a method without stages.

        A list of stages, with tensors of each query's decodes and seconds; `print` shows how many
        queries went through which stage and what that took.
        """
        return Trace(
            Stage(s.name, self._unflatten(s.decodes), self._unflatten(s.seconds))
            for s in self._findings.trace
        )
