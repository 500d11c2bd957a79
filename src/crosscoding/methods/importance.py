"""Importance sampling: draws of a proposal q, each weighted by p(z, x) / q(z).

    p(x) = E_q[w],   w = p(z, x) / q(z);   E[f(z)|x] = E_q[w f(z)] / E_q[w]

The proposal is adapted in rounds: a mixture is fitted to the weighted draws so far, widened, and
drawn from. The first draws are the bank's. Weights that are too uneven to fit to are flattened,
w^t, as in annealing.

Source: Cappé et al. (2008), adaptive importance sampling in general mixture classes. Differs in:
flattened weights; every proposal also draws from a wider copy and from the prior, so w is bounded
where p(x|z) is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture, fit_to_draws
from crosscoding.crosscoders.base import Params
from crosscoding.crosscoders.heavy_tailed_mixture import NORMAL, TailedMixture
from crosscoding.diagnostics import importance_ess, log_mean_exp, mean_error, pareto_smooth
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.covering_reference import Covered, Reference, covered
from crosscoding.methods.numerics.resampling import flattened, next_temperature
from crosscoding.random import quasi_normal, spawn
from crosscoding.result.findings import Findings
from crosscoding.target.base import Target

# Variance of the wide copy, and its share of the draws. On mnist-20d, `Auto` has 9 or 10 % less
# ESS with half or twice the first (twice costs 44 % more decodes), 1 or 9 % less with the second.
_WIDER, _WIDER_SHARE = 2.5, 0.12
# Of the draws, from the prior: no weight exceeds 50 times the prior's. On mnist-20d, half or twice
# as much leaves 7 or 6 % less ESS.
_PRIOR_SHARE = 0.02
# Squared distance per dimension, in the reference's scatter, above which draws count less. Halving
# or doubling it or the next two changes no verdict on six densities of the tests, and log p(x)
# stays right to 0.05 nats.
_FAR_OUT = 10.0
_TAIL_SHARE, _REFERENCE_SHARE = 0.08, 0.06  # of the draws, for a bare density
_NUM_FOR_BOUND = 1000  # draws that the C-ELBO is averaged over
# ESS below which weights count as collapsed, and the same as a share if there are few draws. Half
# or twice of the first changes no answer of `Auto` on mnist-20d.
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
    """Replace collapsed weights, so that a handful of draws never stands for p(z|x).

    If a few draws have all the weight, they only show where p(z|x) is highest. Then the weights of
    the fit replace them. A bank has no fit; its weights become p(x|z)^t, with t small enough.

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
    weights, but useless for a bound. Weighted by r = q_fitted / q, its draws stand for the fit's:

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


def adapt(
    target: Target,
    draws: Tensor,
    log_weights: Tensor,
    *,
    components: int,
    rounds: int,
    num_draws: int,
    generator: Generator,
    stop: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Fit a mixture that is a good proposal for every query of a flat target.

    From the second round on it is fitted to the draws of all rounds, weighted by p(z, x) over the
    mean of all proposals so far. These weights are biased, as the fits have seen the draws, so they
    are used for adapting only.

    Args:
        target: The target to propose for.
        draws: First draws, shape (S, B, latent).
        log_weights: Their log-weights in nats, not normalised, shape (S, B).
        components: Components of the mixture.
        rounds: Rounds of draws, ≥ 0.
        num_draws: Draws per round.
        generator: For the draws and the starts of the fits.
        stop: Called before each round; if it returns True, the last fit is returned.

    Source: Cornuet et al. (2012), adaptive multiple importance sampling. Differs in: the answer
    does not come from these draws.
    """
    family = Gaussian() if components == 1 else Mixture(components)
    proposals = [widened(_fit(family, draws, log_weights, target, generator), target)]
    log_joints: list[Tensor] = []
    pools: list[Tensor] = []
    log_mixtures: list[Tensor] = []  # log Σ_j q_j at the draws of each round
    for _ in range(rounds):
        if stop():
            break
        z, log_q = proposals[-1].rsample_and_log_prob(num_draws, generator=generator)
        target.clock.tick()
        log_mixtures = [
            torch.logaddexp(total, proposals[-1].log_prob(pool))
            for total, pool in zip(log_mixtures, pools, strict=True)
        ]
        target.clock.tick()
        others = [proposal.log_prob(z) for proposal in proposals[:-1]]
        log_mixtures.append(torch.stack([log_q, *others]).logsumexp(0))
        pools.append(z)
        log_joints.append(target.log_joint(z))
        weights = torch.cat(log_joints) - torch.cat(log_mixtures)
        fitted = _fit(family, torch.cat(pools), weights, target, generator)
        proposals.append(widened(fitted, target))
    return proposals[-1]


def _fit(
    family: Gaussian | Mixture,
    draws: Tensor,
    log_weights: Tensor,
    target: Target,
    generator: Generator,
) -> Fitted:
    """The likeliest member of the family, with weights flattened until the ESS is large enough."""
    enough = 6.0 * target.latent_dim + 24
    cold = torch.zeros_like(log_weights[0])
    flatness = next_temperature(log_weights, cold, min(enough, len(draws) / 3))
    flat = flattened(log_weights, flatness)
    if isinstance(target, Covered):  # keeps a few draws far out in the tails from widening the fit
        beyond = target.reference.squares(draws) / target.latent_dim
        flat = flat - (1 + beyond / _FAR_OUT).log().to(flat)
    apart, tick = _apart(draws, target.prior_scale), target.clock.tick
    return fit_to_draws(family, apart, flat, generator=generator, tick=tick)


def _apart(draws: Tensor, prior_scale: float) -> Tensor:
    """Draws (S, B, latent), spread out in the elements of z where all draws of a query agree.

    Particles that no step moves coincide, and have no covariance to fit. Draws agree if they differ
    by less than eps times the prior's scale; they then get a standard deviation of √eps times that
    scale. Draws of other queries stay unchanged.
    """
    eps = torch.finfo(draws.dtype).eps
    agreed = draws.amax(0) - draws.amin(0) < eps * prior_scale
    if not agreed.any():
        return draws
    spread = quasi_normal(len(draws), draws.shape[-1], generator=Generator(), like=draws)
    apart = draws + math.sqrt(eps) * prior_scale * spread[:, None]
    return torch.where(agreed, apart, draws)


def widened(fitted: Fitted, target: Target) -> Fitted:
    """A Gaussian or mixture, mixed with a wider copy and a distribution that bounds the weights.

    For a VAE that is the prior, outside which p(z|x) has no mass. For a bare density it is the
    reference, together with a copy of the mixture that has Cauchy tails.
    """
    params, dim = fitted.params, fitted.dim
    if isinstance(fitted.crosscoder, Gaussian):
        params = {name: tensor.unsqueeze(1) for name, tensor in params.items()}
        params["logits"] = torch.zeros_like(params["shift"][..., 0])
    num = params["logits"].shape[1]
    if isinstance(target, Covered):
        bounds, copies = _bounds_of(target.reference, params["shift"]), (_WIDER_SHARE, _TAIL_SHARE)
        share, kinds = _REFERENCE_SHARE, (*[NORMAL] * 2 * num, *[1] * num, *target.reference.kinds)
    else:
        bounds, copies = _normal_bounds(target.prior_scale, params["shift"]), (_WIDER_SHARE,)
        share, kinds = _PRIOR_SHARE, ()
    scales = (1.0, math.sqrt(_WIDER), 1.0)
    shares = (1 - share - sum(copies), *copies)
    parts = [
        _scaled(params, scale, own)
        for scale, own in zip(scales[: len(shares)], shares, strict=True)
    ]
    parts.append(bounds | {"logits": bounds["logits"] + math.log(share)})
    together = {name: torch.cat([part[name] for part in parts], 1) for name in params}
    count = together["logits"].shape[1]
    family = TailedMixture(count, kinds) if kinds else Mixture(count)
    return Fitted(family, together, dim)


def _scaled(params: Params, scale: float, share: float) -> Params:
    """The components of a mixture with L scaled, and their weights scaled to a total of `share`."""
    return {
        "logits": params["logits"].log_softmax(-1) + math.log(share),
        "shift": params["shift"],
        "log_diagonal": params["log_diagonal"] + math.log(scale),
        "lower": params["lower"] * scale,
    }


def _normal_bounds(scale: float, like: Tensor) -> Params:
    """N(0, scale² I) as a component for each query; like (B, K, dim)."""
    none = torch.zeros_like(like[:, :1])
    return {
        "logits": none[..., 0],
        "shift": none,
        "log_diagonal": none + math.log(scale),
        "lower": none.unsqueeze(-1).expand(*none.shape, none.shape[-1]),
    }


def _bounds_of(reference: Reference, like: Tensor) -> Params:
    """The components of a reference, the same for each query; like (B, K, dim)."""
    centres, roots = (torch.stack(both).to(like) for both in zip(*reference.parts, strict=True))
    params = {
        "logits": reference.log_shares.to(like),
        "shift": centres,
        "log_diagonal": roots.diagonal(dim1=-2, dim2=-1).log(),
        "lower": roots.tril(-1),
    }
    return {name: own.expand(len(like), *own.shape) for name, own in params.items()}
