"""Likelihoods that are not of this package: do their methods agree with one another?

The draws t of p(t|z) are made by the likelihood itself. For these,

    E[∇ log p(t|z)] = 0,   E[(∂ log p / ∂θ)²] = F_θθ,   E[t] = mean,   Var[t] = variance

where the first fails if log p is not normalised, or not the distribution that is drawn from.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from crosscoding.checks.likelihood_parts import worst
from crosscoding.checks.subject import Subject
from crosscoding.likelihoods import Likelihood
from crosscoding.model.check_report import CheckResult

_DRAWS = 4000
_PROBES, _ELEMENTS = 4, 16
_SURE = 7.0  # standard errors, which 1e4 comparisons do not exceed by chance, for moderate tails
_CLOSE = 0.05  # relative error allowed in a Fisher information, on which only proposals depend


def likelihood(subject: Subject) -> CheckResult | None:
    """Whether a user's own likelihood is a distribution, with the moments that it states."""
    found = [_of_family(subject, *own) for own in _own_families(subject)]
    return worst(found)


def _own_families(subject: Subject) -> Iterator[tuple[Likelihood, Tensor]]:
    """The user's own likelihoods, with the parameters of some elements at some z."""
    vae = subject.vae
    flat = subject.params[:_PROBES].flatten(1)
    for group in vae.flat_likelihood.groups(vae.data_size, vae.device):
        family = group.likelihood
        if not isinstance(family, Likelihood) or not _is_own(family) or group.elements.shape[1] > 1:
            continue
        chosen = torch.arange(min(len(group.elements), _ELEMENTS), device=vae.device)
        params = flat[:, group.outputs[chosen]].reshape(len(flat), len(chosen), *family.param_shape)
        yield family.of_elements(chosen[None]).select(torch.zeros_like(chosen[:1])), params


def _is_own(family: Likelihood) -> bool:
    inner = getattr(family, "other", family)
    return any(not type(one).__module__.startswith("crosscoding.") for one in (family, inner))


def _of_family(subject: Subject, family: Likelihood, params: Tensor) -> CheckResult:
    """The first fault of one likelihood, with parameters (S, n, *param_shape)."""
    name, shape = type(family).__name__, (_DRAWS, *params.shape[:2])
    noise = family.noise(shape, generator=subject.generator, like=subject.like)
    draws = family.draw(params, noise) if noise.shape == shape else noise
    if draws.shape != shape:
        return _error(
            f"{name} draws values of shape {tuple(draws.shape)} for {shape}: noise and draw have "
            "to return one number for each element"
        )
    if not (inside := family.in_support(draws)).all():
        return _error(
            f"{name}.draw draws {draws[~inside][0]:.6g}, which in_support says cannot be observed"
        )
    log_prob, score = _scores(family, params, draws)
    if not (log_prob.isfinite().all() and score.isfinite().all()):
        return _error(f"{name}.log_prob or its gradient is not finite at values that draw draws")
    ones, placeholders = torch.ones_like(params), torch.full_like(draws[:1], family.placeholder)
    if not _scores(family, ones, placeholders)[1].isfinite().all():
        return _error(
            f"the gradient of {name}.log_prob is not finite at parameters of 1 and the value "
            f"{family.placeholder:g}, which stand in for unobserved elements; set placeholder to a "
            "value that can be observed"
        )
    if _beyond(score, torch.zeros_like(params)):
        return _error(
            f"the gradient of {name}.log_prob does not average 0 over draws: log_prob is not "
            "normalised, or not the distribution that draw draws from"
        )
    return _of_moments(family, params, draws, score)


def _of_moments(family: Likelihood, params: Tensor, draws: Tensor, score: Tensor) -> CheckResult:
    name, mean = type(family).__name__, family.mean(params)
    if _beyond(draws, mean):
        return _error(f"{name}.mean is not the mean of what draw draws")
    if _beyond((draws - mean).square(), family.variance(params)):
        return _error(f"{name}.variance is not the variance of what draw draws")
    fisher = family.fisher(params)
    if _beyond(score.square(), fisher, _CLOSE):
        return CheckResult(
            "likelihood",
            "warning",
            f"{name}.fisher is not the mean of squared derivatives of log_prob over draws: "
            "proposals will be poor, and answers slow",
        )
    words = f"log_prob, moments, draws and Fisher information of {name} agree over {_DRAWS} draws"
    return CheckResult("likelihood", "ok", words)


def _scores(family: Likelihood, params: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """log p of values (M, S, n) and its gradients in the parameters, (M, S, n, *param_shape)."""
    each = params.expand(len(values), *params.shape).clone().requires_grad_()
    log_prob = family.log_prob(each, values)
    (score,) = torch.autograd.grad(log_prob.sum(), each)
    return log_prob.detach(), score


def _beyond(values: Tensor, mean: Tensor, relative: float = 0.0) -> bool:
    """Whether values (M, …) contradict their alleged mean (…), where that is finite."""
    values, mean = values.double(), mean.double()
    error = values.std(0) / len(values) ** 0.5
    digits = 1e-4 * values.abs().amax(0)  # float32, over many draws
    gap = (values.mean(0) - mean).abs() - relative * mean.abs()
    return bool((mean.isfinite() & (gap > _SURE * error + digits)).any())


def _error(message: str) -> CheckResult:
    return CheckResult("likelihood", "error", message)
