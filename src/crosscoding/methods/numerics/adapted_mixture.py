"""Mixtures adapted to p(z|x) in rounds, as proposals for importance sampling.

In each round a mixture is fitted to the weighted draws so far, widened, and drawn from. Weights
that are too uneven to fit to are flattened, w^t, as in annealing. A widened mixture also draws from
a wider copy of itself and from the prior, so weights are bounded where p(x|z) is.

Source: Cornuet et al. (2012), adaptive multiple importance sampling, for the weights over all
rounds. Differs in: flattened weights; the draws are used for adapting only, not for the answer.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture, fit_to_draws
from crosscoding.crosscoders.base import Params
from crosscoding.crosscoders.heavy_tailed_mixture import NORMAL, TailedMixture
from crosscoding.methods.numerics.covering_reference import Covered, Reference
from crosscoding.methods.numerics.resampling import enough_to_fit, flattened, next_temperature
from crosscoding.random import quasi_normal
from crosscoding.target.base import Target

# Variance of the wide copy, and its share of the draws. Halving or doubling either, or the next,
# changes the ESS of `Auto` on mnist-20d by 10 % or less, about as much as another seed does.
_WIDER, _WIDER_SHARE = 2.5, 0.12
# Share of the draws from the prior: no weight exceeds 50 times what the prior alone would give it.
_PRIOR_SHARE = 0.02
# Squared distance per dimension, in units of the reference's scatter, above which draws count less.
# Halving or doubling it or the next two leaves log p(x) right to 0.05 nats on six test densities.
_FAR_OUT = 10.0
_TAIL_SHARE, _REFERENCE_SHARE = 0.08, 0.06  # shares of the draws, for a bare density


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
    """
    family = Gaussian() if components == 1 else Mixture(components)
    proposal = widened(
        fit_to_weighted(family, draws, flat_enough(draws, log_weights, target), target, generator),
        target,
    )
    pool = _Pool(target)
    for _ in range(rounds):
        if stop():
            break
        pool.draw(proposal, num_draws, generator)
        z, log_weights = pool.weighted_draws()
        flat = flat_enough(z, log_weights, target)
        proposal = widened(fit_to_weighted(family, z, flat, target, generator), target)
    return proposal


class _Pool:
    """The draws of all proposals, which are weighted as draws of their mixture."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._proposals: list[Fitted] = []
        self._draws: list[Tensor] = []
        self._log_joints: list[Tensor] = []
        self._log_sums: list[Tensor] = []  # log Σ_j q_j at the draws of each proposal

    def draw(self, proposal: Fitted, num: int, generator: Generator) -> None:
        """Add a proposal and draws of it."""
        z, log_q = proposal.rsample_and_log_prob(num, generator=generator)
        self._target.clock.tick()
        self._log_sums = [
            torch.logaddexp(total, proposal.log_prob(draws))
            for total, draws in zip(self._log_sums, self._draws, strict=True)
        ]
        self._target.clock.tick()
        others = [earlier.log_prob(z) for earlier in self._proposals]
        self._log_sums.append(torch.stack([log_q, *others]).logsumexp(0))
        self._proposals.append(proposal)
        self._draws.append(z)
        self._log_joints.append(self._target.log_joint(z))

    def weighted_draws(self) -> tuple[Tensor, Tensor]:
        """All draws, (S, B, latent), and their log-weights, not normalised, (S, B)."""
        log_weights = torch.cat(self._log_joints) - torch.cat(self._log_sums)
        return torch.cat(self._draws), log_weights


def fit_to_weighted(
    family: Gaussian | Mixture,
    draws: Tensor,
    log_weights: Tensor,
    target: Target,
    generator: Generator,
) -> Fitted:
    """The maximum-likelihood fit to weighted draws, enough of which have weight."""
    apart, tick = _apart(draws, target.prior_scale), target.clock.tick
    return fit_to_draws(family, apart, log_weights, generator=generator, tick=tick)


def flat_enough(draws: Tensor, log_weights: Tensor, target: Target) -> Tensor:
    """Log-weights (S, B), flattened until the ESS is large enough to fit a mixture to."""
    cold = torch.zeros_like(log_weights[0])
    flatness = next_temperature(log_weights, cold, enough_to_fit(target.latent_dim, len(draws)))
    flat = flattened(log_weights, flatness)
    if isinstance(target, Covered):  # keeps a few draws far out in the tails from widening the fit
        beyond = target.reference.squares(draws) / target.latent_dim
        flat = flat - (1 + beyond / _FAR_OUT).log().to(flat)
    return flat


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
