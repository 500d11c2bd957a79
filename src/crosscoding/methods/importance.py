"""Importance sampling: draws of a proposal q, each weighted by p(z, x) / q(z).

    p(x) = E_q[w],   w = p(z, x) / q(z);   E[f(z)|x] = E_q[w f(z)] / E_q[w]

The proposal is a mixture that is adapted in rounds (`numerics.adapted_mixture`). The first draws
are the bank's.

Source: Cappé et al. (2008), adaptive importance sampling in general mixture classes. Differs in:
the answer comes from fresh draws of the last mixture.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Mixture
from crosscoding.diagnostics import importance_ess, log_mean_exp, mean_error, pareto_smooth
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.adapted_mixture import adapt
from crosscoding.methods.numerics.covering_reference import covered
from crosscoding.methods.numerics.resampling import flattened, next_temperature
from crosscoding.random import spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

_NUM_FOR_BOUND = 1000  # draws that the C-ELBO is averaged over
# ESS below which weights count as collapsed; if there are few draws, the same as a share of them.
# Halving or doubling either changes no answer of `Auto` on mnist-20d, a table model or blocks.
FEWEST, _LEAST_SHARE = 50.0, 0.05


@dataclass(frozen=True)
class Importance(Method):
    """Importance sampling from an adapted mixture, from the bank, or from another method's fit.

    Args:
        proposal: The method whose fitted cross-coder is the proposal; None: an adapted mixture.
        rounds: Rounds of adapting the mixture, ≥ 0; with 0, only points of the bank are weighted.
        components: Components of the mixture, ≥ 1.
        num_adapt: Draws per round, ≥ 2.
        num_draws: Draws for the answer, ≥ 2.

    Raises (from `find`):
        ValueError: The proposal method fits no cross-coder with a density.
    """

    proposal: Method | None = None
    rounds: int = 4
    components: int = 1
    num_adapt: int = 1000
    num_draws: int = 4000

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.components < 1 or min(self.num_adapt, self.num_draws) < 2:
            raise ValueError(
                "expected rounds >= 0, components >= 1, num_adapt and num_draws >= 2, got "
                f"{self.rounds}, {self.components}, {self.num_adapt} and {self.num_draws}"
            )
        if self.proposal is not None and not isinstance(self.proposal, Method):
            raise TypeError(f"expected proposal to be a method or None, got {self.proposal!r}")

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        for_proposal, for_draws = spawn(generator, 2)
        target = covered(target, generator)
        if self.proposal is not None:
            with torch.enable_grad():
                found = self.proposal.find(target, generator=for_proposal, report=report)
            if found.fitted is None or not found.fitted.crosscoder.has_density:
                raise ValueError(f"expected a proposal with a density, got {self.proposal}")
            return weigh(target, found.fitted, self.num_draws, generator=for_draws)
        report(0.0, "bank")
        points, log_likelihood = target.log_likelihood_of_bank()
        draws = points[:, None].expand(-1, target.num_queries, -1)
        if self.rounds == 0:
            found = weighted_findings(draws, log_likelihood, None)
            if target.ends_with_prior:  # the bank covers the prior
                found.missed = torch.zeros_like(found.ess)
            return found
        adapted = adapt(
            target,
            draws,
            log_likelihood,
            components=self.components,
            rounds=self.rounds,
            num_draws=self.num_adapt,
            generator=for_proposal,
        )
        report(self.rounds / (self.rounds + 1), "weights")
        return weigh(
            target, adapted, self.num_draws, num_fitted=self.components, generator=for_draws
        )


def weigh(
    target: Target,
    proposal: Fitted,
    num: int,
    *,
    num_fitted: int | None = None,
    generator: Generator,
) -> Findings:
    """Draw from a proposal and weight the draws; `num_fitted` as in `bound_of`."""
    with torch.no_grad():
        z, log_q = proposal.rsample_and_log_prob(num, generator=generator)
        return weighted_findings(z, target.log_joint(z) - log_q, proposal, num_fitted)


def weighted_findings(
    z: Tensor, log_weights: Tensor, proposal: Fitted | None, num_fitted: int | None = None
) -> Findings:
    """Findings from draws z (S, B, latent) and their log-weights; the rest as in `bound_of`."""
    log_evidence, log_evidence_error = log_mean_exp(log_weights)
    smoothed, pareto_k = pareto_smooth(log_weights)
    smoothed, collapsed = not_collapsed(smoothed, z, proposal, num_fitted)
    c_elbo = c_elbo_error = torch.full_like(log_evidence, math.nan)
    if proposal is not None:
        c_elbo, c_elbo_error = bound_of(proposal, z, log_weights, num_fitted)
    return Findings(
        draws=z,
        log_weights=smoothed,
        collapsed=collapsed,
        pareto_k=pareto_k,
        fitted=proposal,
        log_evidence=log_evidence,
        log_evidence_error=log_evidence_error,
        c_elbo=c_elbo,
        c_elbo_error=c_elbo_error,
        ess=importance_ess(log_weights),
    )


def not_collapsed(
    log_weights: Tensor, z: Tensor, proposal: Fitted | None, num_fitted: int | None
) -> tuple[Tensor, Tensor]:
    """Replace collapsed weights, so that a handful of draws never represents p(z|x).

    If a few draws have all the weight, they only show where p(z|x) is highest. Then their weights
    become those of the fit. A bank has no fit: its weights become p(x|z)^t, with t small enough.

    Args:
        log_weights: Log-weights of the draws, shape (S, B).
        z: The draws, shape (S, B, latent).
        proposal: What they were drawn from; None: they are points of a bank.
        num_fitted: As in `bound_of`.
    Returns:
        Log-weights, shape (S, B), and whether those given had collapsed, boolean (B,).
    """
    enough = min(FEWEST, len(z) * _LEAST_SHARE)
    collapsed = importance_ess(log_weights) < enough
    if not collapsed.any():
        return log_weights, collapsed
    rows = collapsed.nonzero()[:, 0]
    if proposal is None:
        some = log_weights[:, rows]
        flatness = next_temperature(some, torch.zeros_like(some[0]), enough)
        own = flattened(some, flatness)
    elif num_fitted is None:
        own = torch.zeros_like(log_weights[:, rows])
    else:
        own = _log_share_fitted(proposal.select(rows), z[:, rows], num_fitted)
    log_weights = log_weights.clone()
    log_weights[:, rows] = own.log_softmax(0)
    return log_weights, collapsed


def _log_share_fitted(proposal: Fitted, z: Tensor, num_fitted: int) -> Tensor:
    """log(q_fitted / q) at draws of a widened mixture q, (S, B)."""
    assert isinstance(proposal.crosscoder, Mixture)
    joint = proposal.crosscoder.joint_log_prob(proposal.params, z)
    share = proposal.params["logits"].log_softmax(-1)[:, :num_fitted].logsumexp(-1)
    return joint[..., :num_fitted].logsumexp(-1) - share - joint.logsumexp(-1)


def bound_of(
    proposal: Fitted, z: Tensor, log_weights: Tensor, num_fitted: int | None
) -> tuple[Tensor, Tensor]:
    """C-ELBO of a proposal, or of the fit inside a widened one, and its standard error, (B,).

    A widened mixture also draws from the prior, where log p(z, x) is very low. That is good for
    weights, but useless for a bound. Weighted by r = q_fitted / q, its draws are draws of the fit:

        C-ELBO = E_q[r (log w − log r)]

    Args:
        proposal: q.
        z: Its draws in random order, shape (S, B, latent).
        log_weights: log p(z, x) − log q(z), shape (S, B).
        num_fitted: How many components of a widened mixture were fitted; they come first. None: the
            proposal was not widened.
    """
    if num_fitted is None or not isinstance(proposal.crosscoder, Mixture):
        return log_weights.mean(0), mean_error(log_weights)
    z, log_weights = z[:_NUM_FOR_BOUND], log_weights[:_NUM_FOR_BOUND]
    log_ratio = _log_share_fitted(proposal, z, num_fitted)
    terms = log_ratio.exp() * (log_weights - log_ratio)
    return terms.mean(0), mean_error(terms)
