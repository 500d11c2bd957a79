"""Every family of likelihoods, with a reference and a rule to integrate over its values.

Import as `from families import …`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from integration_rules import Rule, counts, grid, line, positive_line, sharp, unit
from problems import seeded
from torch import Tensor, distributions

from crosscoding.likelihoods import (
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    Likelihood,
    LogNormal,
    Mixed,
    Mixture,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflated,
)

E = 6
DOUBLE = torch.double
SPREAD = torch.linspace(0.2, 1.5, E, dtype=DOUBLE)
CUTS = torch.linspace(-1.0, 0.5, E, dtype=DOUBLE)[:, None] + torch.tensor([0.0, 0.4, 2.0])
TOTALS = torch.tensor([1.0, 3.0, 8.0, 30.0, 65.0, 5.0], dtype=DOUBLE)


@dataclass(frozen=True)
class Family:
    """A likelihood under test.

    Args:
        likelihood: The likelihood of E elements.
        params: Makes parameters that a decoder could output from normal noise (*shape, E, P).
        log_prob: The reference log p of params and values, in double.
        rule: The values and weights to sum over, given params.
        fisher_error: How far the Fisher matrix may be from the sum over the values, relatively.
        ends: The values of real numbers lie between these, but for a negligible mass.
    """

    likelihood: Likelihood
    params: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor, Tensor], Tensor]
    rule: Callable[[Tensor], Rule]
    fisher_error: float = 1e-5
    ends: tuple[float, float] = (-40.0, 40.0)

    def decoded(self, *shape: int, seed: int = 1) -> Tensor:
        """Parameters, shape (*shape, E, *param_shape)."""
        num = max(sum(self.likelihood.param_shape), 1)
        noise = torch.randn(*shape, E, num, generator=seeded(seed), dtype=DOUBLE)
        return self.params(noise)

    def values(self, params: Tensor, seed: int = 3) -> Tensor:
        """Data drawn from the likelihood; the shape of params without param_shape."""
        shape = params.shape[: params.ndim - len(self.likelihood.param_shape)]
        noise = self.likelihood.noise(shape, generator=seeded(seed), like=params)
        return self.likelihood.draw(params, noise)


def single(noise: Tensor) -> Tensor:
    return noise[..., 0]


def pair(noise: Tensor) -> Tensor:
    """A location and a number > 0."""
    return torch.stack([noise[..., 0], 0.1 + noise[..., 1].abs()], -1)


def increasing(noise: Tensor) -> Tensor:
    return (noise.abs() + 0.2).cumsum(-1) - 1.5


def by_scipy(log_density: Callable[..., np.ndarray], *arguments: Tensor) -> Tensor:
    return torch.as_tensor(log_density(*(a.detach().numpy() for a in arguments)))


def logistic_mass(bins: int, low: float, high: float, scale: float | None = None):
    """log of differences of SciPy's logistic CDF; the outer intervals extend to infinity."""

    def log_prob(params: Tensor, values: Tensor) -> Tensor:
        mean, s = (params[..., 0], params[..., 1]) if scale is None else (params, scale)
        half = 0.5 * (high - low) / (bins - 1)
        above = torch.where(values > high - half, torch.inf, (values + half - mean) / s)
        below = torch.where(values < low + half, -torch.inf, (values - half - mean) / s)
        flip = below > 0  # if both are near 1, use the other tail
        upper, lower = torch.where(flip, -below, above), torch.where(flip, -above, below)
        return (
            by_scipy(scipy.stats.logistic.cdf, upper)
            - upper.new_tensor(scipy.stats.logistic.cdf(lower.numpy()))
        ).log()

    return log_prob


def ordinal(cuts_of: Callable[[Tensor], Tensor]):
    def log_prob(params: Tensor, values: Tensor) -> Tensor:
        cumulative = torch.nn.functional.pad(cuts_of(params).sigmoid(), (1, 0))
        cumulative = torch.nn.functional.pad(cumulative, (0, 1), value=1.0)
        probabilities = cumulative.diff(dim=-1).expand(*values.shape, -1)
        return probabilities.gather(-1, values.long()[..., None])[..., 0].log()

    return log_prob


def negative_binomial(total: float | Tensor | None):
    def log_prob(params: Tensor, values: Tensor) -> Tensor:
        logits, r = (params[..., 0], params[..., 1]) if total is None else (params, total)
        return distributions.NegativeBinomial(r, logits=logits).log_prob(values)

    return log_prob


def beta_binomial(total: float | Tensor, concentration: float | None):
    def log_prob(params: Tensor, values: Tensor) -> Tensor:
        logits, c = (
            (params[..., 0], params[..., 1])
            if concentration is None
            else (
                params,
                concentration,
            )
        )
        a, b = c * logits.sigmoid(), c * (-logits).sigmoid()
        n = torch.as_tensor(total, dtype=DOUBLE)
        parts = torch.broadcast_tensors(values, n, a, b)
        return by_scipy(scipy.stats.betabinom.logpmf, *parts)

    return log_prob


def inflated(log_prob: Callable[[Tensor, Tensor], Tensor]):
    """The definition, with p and not log p."""

    def log_prob_of(params: Tensor, values: Tensor) -> Tensor:
        extra = params[..., 0].sigmoid()
        mass = (1 - extra) * log_prob(params[..., 1:], values).exp()
        return (mass + extra * (values == 0)).log()

    return log_prob_of


def mixture(make: Callable[..., distributions.Distribution], num: int):
    """torch's mixture of num distributions, made of their parameters (..., num)."""

    def log_prob(params: Tensor, values: Tensor) -> Tensor:
        logits, *parts = params.unflatten(-1, (-1, num)).unbind(-2)
        weights = distributions.Categorical(logits=logits)
        return distributions.MixtureSameFamily(weights, make(*parts)).log_prob(values)

    return log_prob


def of_mixture(*scales: int) -> Callable[[Tensor], Tensor]:
    """Parameters of a mixture from noise, the groups of numbers at `scales` made positive."""

    def params(noise: Tensor) -> Tensor:
        parts = torch.stack([noise, noise.roll(1, -1) * 1.5, 0.4 + 0.5 * noise.sin().abs()], -2)
        return parts[..., : 2 + len(scales), :].flatten(-2)

    return params


def torch_log_prob(make: Callable[[Tensor], distributions.Distribution]):
    return lambda params, values: make(params).log_prob(values)


def first(params: Tensor) -> Tensor:
    return params[..., 0]


FAMILIES = {
    "continuous Bernoulli": Family(
        ContinuousBernoulli(),
        lambda noise: 3 * single(noise),
        torch_log_prob(lambda p: distributions.ContinuousBernoulli(logits=p)),
        unit,
        ends=(0.0, 1.0),
    ),
    "continuous Bernoulli of probabilities": Family(
        ContinuousBernoulli(logits=False),
        lambda noise: single(noise).sigmoid(),
        torch_log_prob(lambda p: distributions.ContinuousBernoulli(probs=p)),
        unit,
        ends=(0.0, 1.0),
    ),
    "Gaussian of decoded log variance": Family(
        Gaussian(None, log_variance=True),
        lambda noise: torch.stack([noise[..., 0], 1.5 * noise[..., 1] - 1], -1),
        torch_log_prob(lambda p: distributions.Normal(p[..., 0], (0.5 * p[..., 1]).exp())),
        lambda p: line(p[..., 0], (0.5 * p[..., 1]).exp()),
    ),
    "Laplace": Family(
        Laplace(0.3),
        single,
        torch_log_prob(lambda p: distributions.Laplace(p, 0.3)),
        lambda p: sharp(p, torch.tensor(0.3)),
    ),
    "Laplace of tensor scale": Family(
        Laplace(SPREAD),
        single,
        torch_log_prob(lambda p: distributions.Laplace(p, SPREAD)),
        lambda p: sharp(p, SPREAD),
    ),
    "Laplace of decoded scale": Family(
        Laplace(None),
        pair,
        torch_log_prob(lambda p: distributions.Laplace(p[..., 0], p[..., 1])),
        lambda p: sharp(p[..., 0], p[..., 1]),
    ),
    "log-normal": Family(
        LogNormal(0.3 * SPREAD),
        single,
        torch_log_prob(lambda p: distributions.LogNormal(p, 0.3 * SPREAD)),
        lambda p: positive_line(p, 0.3 * SPREAD),
        ends=(1e-9, 40.0),
    ),
    "log-normal of decoded scale": Family(
        LogNormal(None),
        lambda noise: pair(noise) * torch.tensor([1.0, 0.3]),
        torch_log_prob(lambda p: distributions.LogNormal(p[..., 0], p[..., 1])),
        lambda p: positive_line(p[..., 0], p[..., 1]),
        ends=(1e-9, 40.0),
    ),
    "log-normal of decoded log variance": Family(
        LogNormal(None, log_variance=True),
        lambda noise: torch.stack([noise[..., 0], 0.5 * noise[..., 1] - 2], -1),
        torch_log_prob(lambda p: distributions.LogNormal(p[..., 0], (0.5 * p[..., 1]).exp())),
        lambda p: positive_line(p[..., 0], (0.5 * p[..., 1]).exp()),
        ends=(1e-9, 40.0),
    ),
    "Student": Family(
        StudentT(5.0, 0.3),
        single,
        torch_log_prob(lambda p: distributions.StudentT(5.0, p, 0.3)),
        lambda p: line(p, torch.tensor(0.3)),
    ),
    "Student of tensors": Family(
        StudentT(4.5 + SPREAD, SPREAD),
        single,
        torch_log_prob(lambda p: distributions.StudentT(4.5 + SPREAD, p, SPREAD)),
        lambda p: line(p, SPREAD),
    ),
    "Student of decoded scale": Family(
        StudentT(6, None),
        pair,
        torch_log_prob(lambda p: distributions.StudentT(6.0, p[..., 0], p[..., 1])),
        lambda p: line(p[..., 0], p[..., 1]),
    ),
    "categorical": Family(
        Categorical(4),
        lambda noise: 2 * noise,
        torch_log_prob(lambda p: distributions.Categorical(logits=p)),
        lambda p: counts(4)(first(p)),
    ),
    "ordinal": Family(
        Ordinal([-1.0, 0.2, 0.9]),
        single,
        ordinal(lambda p: torch.tensor([-1.0, 0.2, 0.9], dtype=DOUBLE) - p[..., None]),
        counts(4),
    ),
    "ordinal of tensor cut points": Family(
        Ordinal(CUTS), single, ordinal(lambda p: CUTS - p[..., None]), counts(4)
    ),
    "ordinal of decoded cut points": Family(
        Ordinal(None, num_classes=4),
        increasing,
        ordinal(lambda p: p),
        lambda p: counts(4)(first(p)),
    ),
    "Poisson": Family(
        Poisson(),
        single,
        torch_log_prob(lambda p: distributions.Poisson(p.exp())),
        counts(200),
    ),
    "Poisson of rates": Family(
        Poisson(log_rate=False),
        lambda noise: 5 * noise[..., 0].abs(),
        torch_log_prob(lambda p: distributions.Poisson(p)),
        counts(200),
    ),
    "negative binomial": Family(
        NegativeBinomial(2.5), single, negative_binomial(2.5), counts(1500)
    ),
    "negative binomial of tensor": Family(
        NegativeBinomial(SPREAD), single, negative_binomial(SPREAD), counts(1500)
    ),
    "negative binomial of decoded total": Family(
        NegativeBinomial(None),
        pair,
        negative_binomial(None),
        lambda p: counts(1500)(first(p)),
    ),
    "beta-binomial": Family(BetaBinomial(12, 3.0), single, beta_binomial(12, 3.0), counts(13)),
    "beta-binomial of tensor": Family(
        BetaBinomial(TOTALS, 3.0), single, beta_binomial(TOTALS, 3.0), counts(66)
    ),
    "beta-binomial of decoded concentration": Family(
        BetaBinomial(20),
        pair,
        beta_binomial(20, None),
        lambda p: counts(21)(first(p)),
    ),
    "discretized logistic": Family(
        DiscretizedLogistic(bins=32),
        lambda noise: pair(noise) * torch.tensor([0.5, 0.2]),
        logistic_mass(32, 0.0, 1.0),
        lambda p: grid(32, 0.0, 1.0)(first(p)),
    ),
    "discretized logistic of scale 0.05": Family(
        DiscretizedLogistic(0.05, bins=64, low=-1.0, high=1.0),
        single,
        logistic_mass(64, -1.0, 1.0, 0.05),
        grid(64, -1.0, 1.0),
    ),
}


FAMILIES |= {
    "zero-inflated Poisson": Family(
        ZeroInflated(Poisson()),
        lambda noise: torch.stack([noise[..., 0], 1 + 0.5 * noise[..., 1]], -1),
        inflated(lambda p, t: distributions.Poisson(p[..., 0].exp()).log_prob(t)),
        lambda p: counts(200)(first(p)),
    ),
    "zero-inflated negative binomial of tensor": Family(
        ZeroInflated(NegativeBinomial(SPREAD)),
        lambda noise: noise,
        inflated(lambda p, t: negative_binomial(SPREAD)(p[..., 0], t)),
        lambda p: counts(1500)(first(p)),
    ),
    "zero-inflated negative binomial of decoded total": Family(
        ZeroInflated(NegativeBinomial(None)),
        lambda noise: torch.cat([noise[..., :1], pair(noise[..., 1:])], -1),
        inflated(negative_binomial(None)),
        lambda p: counts(1500)(first(p)),
    ),
    "mixture of Gaussians": Family(
        Mixture(Gaussian(None), 3),
        lambda noise: of_mixture(1)(noise[..., :3]),
        mixture(distributions.Normal, 3),
        lambda p: line(p[..., 3], p[..., 6]),
        fisher_error=0.01,
    ),
    "mixture of Gaussians of tensor scale": Family(
        Mixture(Gaussian(SPREAD), 2),
        lambda noise: torch.cat([noise[..., :1], noise[..., 1:]], -1),
        lambda p, t: mixture(lambda m: distributions.Normal(m, SPREAD[:, None]), 2)(p, t),
        lambda p: line(p[..., 2], SPREAD),
        fisher_error=0.01,
    ),
    "mixture of negative binomials": Family(
        Mixture(NegativeBinomial(None), 2),
        lambda noise: torch.cat([noise[..., :4], 0.1 + noise[..., 4:].abs()], -1),
        mixture(lambda logits, r: distributions.NegativeBinomial(r, logits=logits), 2),
        lambda p: counts(1500)(first(p)),
        fisher_error=0.01,
    ),
}


def one_hot_and_mixed() -> dict[str, Likelihood]:
    """Likelihoods whose elements are coupled or of different kinds, for E elements."""
    return {
        "one-hot": Categorical(3, one_hot=True),
        "mixed": Mixed(
            [(StudentT(4.0, None), 2), Poisson(), (Categorical(2, one_hot=True), 2), Categorical(3)]
        ),
    }
