"""Likelihoods of counts, computed in double because large terms cancel to a few nats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.isolation import isolated
from crosscoding.likelihoods.base import ADVICE_ON_WHOLE_NUMBERS, Likelihood
from crosscoding.likelihoods.exponential_family import ExponentialFamily, terms
from crosscoding.likelihoods.finitely_many import FinitelyMany
from crosscoding.likelihoods.fisher_sums import expected_products
from crosscoding.likelihoods.laws import (
    CountLaw,
    FiniteLaw,
    Known,
    Law,
    counts_near,
    some_count_agrees,
)
from crosscoding.likelihoods.location_dispersion import (
    LocationDispersion,
    check_positive,
    setting,
    to_check,
)
from crosscoding.likelihoods.logit_check import look_like_probabilities
from crosscoding.likelihoods.rounding import MAX_ROUNDING_ERROR, nearly_underflown
from crosscoding.likelihoods.samplers import binomial, log_gamma, poisson, seeds, substream

_MOST_LOG_RATE = 700.0  # exp of more overflows a double
_INFINITE_LOG_RATE = 1e9  # replaces an infinite log λ; log p is then −λ, at most −1e304


class _Count(Likelihood):
    """A likelihood of whole numbers from 0."""

    support = "whole numbers from 0"
    kind = "counts"
    uncertain = ("interval", "noise", "set")
    _advice_on_values = ADVICE_ON_WHOLE_NUMBERS

    def law(self, params: Tensor, known: Known) -> Law:
        """Summed by tails for an interval; count by count around a noisy value, or for a set."""
        params = params.double()
        if (known.noise > 0).any() or known.allowed is not None:
            counts = counts_near(known)
            return FiniteLaw(counts, self.log_probs_at(params, counts), known)
        shape = params.shape[: params.ndim - len(self.param_shape)]

        def draw(noise: Tensor, where: Tensor) -> Tensor:
            settings = {name: v.expand(shape)[where] for name, v in self._tensors().items()}
            return self._with(settings).draw(params[where], noise)

        return CountLaw(
            lambda counts: self.log_probs_at(params, counts),
            draw,
            self.mean(params).expand(shape),
            self.variance(params).expand(shape),
            known.low,
            known.high,
        )

    def possible(self, known: Known) -> Tensor:
        return some_count_agrees(known)

    def in_support(self, values: Tensor) -> Tensor:
        return values.isfinite() & (values >= 0) & (values == values.floor())

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return seeds(shape, generator=generator, like=like)


@dataclass(frozen=True)
class Poisson(_Count, ExponentialFamily):
    """Counts of independent events with expected number λ.

        log p(t|z) = t log λ − λ − log t!

    Args:
        log_rate: True if the decoder outputs log λ, False if it outputs λ ≥ 0. A λ of 0 is replaced
            by the smallest positive number, so that rounding does not make an observation
            impossible; log λ above 700, where log p is below −1e304, by 700.
    """

    log_rate: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "infinite", (-math.inf,) if self.log_rate else ())
        takes = "log rates whose rates are finite" if self.log_rate else "finite rates >= 0"
        object.__setattr__(self, "takes", takes)

    def other_reading(self) -> "Poisson":
        return Poisson(log_rate=not self.log_rate)

    def _log_rate(self, params: Tensor) -> Tensor:
        """log λ; NaN for a λ below 0, which raises if the element is observed."""
        if self.log_rate:
            log_rate = params.double()
        else:
            known = torch.where(params >= 0, params, torch.nan)
            log_rate = known.clamp_min(torch.finfo(params.dtype).tiny).double().log()
        return log_rate.clamp_max(_INFINITE_LOG_RATE)

    def valid(self, params: Tensor) -> Tensor:
        return self.allowed(params) & self.mean(params).isfinite() & (self.mean(params) >= 0)

    def may_be_lost(self, values: Tensor) -> Tensor:
        return values > 0

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        if self.log_rate:
            clamped = (params > _MOST_LOG_RATE) | nearly_underflown(params)
        else:
            clamped = params < torch.finfo(params.dtype).tiny
        return super().lost(params, values) | clamped & (values > 0)

    def mean(self, params: Tensor) -> Tensor:
        return params.exp() if self.log_rate else params

    def variance(self, params: Tensor) -> Tensor:
        return self.mean(params)

    def fisher(self, params: Tensor) -> Tensor:
        return params.exp() if self.log_rate else (-self._log_rate(params)).exp().to(params.dtype)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        return poisson(self._log_rate(params).exp(), noise).to(params.dtype)

    def check_params(self, params: Tensor) -> None:
        if not self.log_rate and not (params >= 0).all():
            raise ValueError(
                f"expected a decoder that outputs rates >= 0, got {params.min():.4g}; if it "
                "outputs their logarithms, use Poisson(log_rate=True)"
            )

    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        log_rate = self._log_rate(params)
        return log_rate, -log_rate.clamp_max(_MOST_LOG_RATE).exp()

    def base_measure(self, values: Tensor) -> Tensor:
        return -(values.double() + 1).lgamma()


@dataclass(frozen=True, eq=False)
class NegativeBinomial(_Count, LocationDispersion, ExponentialFamily):
    """Counts that vary more than a Poisson's: for a mean m = r eˡ, the variance is m + m² / r.

        log p(t|z) = log Γ(t + r) − log Γ(r) − log t! + t log σ(l) + r log σ(−l)

    Args:
        total_count: r > 0, a number, a tensor that broadcasts to the data's shape, or None if the
            decoder outputs it after the logits. The decoder outputs l; if yours outputs the mean m,
            use l = log(m / r).
    """

    total_count: float | Tensor | None = None
    dispersion: ClassVar[str] = "total_count"
    coupled: ClassVar[bool] = True
    advice_on_output: ClassVar[str] = "output the number itself, not its logarithm"
    per_element: ClassVar[dict[str, int]] = {"total_count": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_kept", 1 if self.decoded else 2)
        object.__setattr__(self, "infinite", (-math.inf,))
        total = "a total_count > 0 and " if self.decoded else ""
        object.__setattr__(self, "takes", f"{total}a logit whose mean count is finite")

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        slope, offset = self.slope_and_offset(params)
        total = self.split(params)[1].double()
        data = values.double()
        ways = _log_rising(total, total.log(), data) - (data + 1).lgamma()
        return (terms(slope, offset, data) + ways).to(params.dtype)

    def valid(self, params: Tensor) -> Tensor:
        """Where the mean is finite; a logit of −inf is a mean of 0."""
        logits, total = self.split(params)
        return (logits < torch.inf) & total.isfinite() & self.mean(params).isfinite()

    def _size(self, values: Tensor) -> Tensor:
        return values

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return super().lost(params, values) | _cancels(self.split(params)[1])

    def mean(self, params: Tensor) -> Tensor:
        logits, total = self.split(params)
        return total * logits.exp()

    def variance(self, params: Tensor) -> Tensor:
        logits, _ = self.split(params)
        mean = self.mean(params)
        return mean + mean * logits.exp()

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        logits, total = self.split(params)
        success = logits.sigmoid()
        if not self.decoded:
            return (total * success,)
        return total * success, _total_count_information(logits, total), success

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A Poisson variable whose rate is a gamma variable."""
        logits, total = (part.double() for part in self.split(params))
        log_rate = logits + log_gamma(total, substream(noise, 0))
        return poisson(log_rate.exp(), substream(noise, 1)).to(params.dtype)

    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        logits, total = (part.double() for part in self.split(params))
        return F.logsigmoid(logits), total * F.logsigmoid(-logits)

    def base_measure(self, values: Tensor) -> Tensor:
        data = values.double()
        total = setting(self.total_count, data)  # pyright: ignore[reportArgumentType]
        return _log_rising(total, total.log(), data) - (data + 1).lgamma()

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        form = Likelihood if self.decoded else ExponentialFamily
        return form.masked_log_prob(self, params, values, mask)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return (params,) if self.decoded else super().to_keep(params)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        form = Likelihood if self.decoded else ExponentialFamily
        return form.pairwise_log_prob(self, kept, values, mask)


@dataclass(frozen=True, eq=False)
class BetaBinomial(FinitelyMany, _Count, LocationDispersion):
    """Successes in n trials whose probability is itself a beta variable with mean σ(l).

        log p(t|z) = log C(n, t) + log B(t + a, n − t + b) − log B(a, b),
        a = c σ(l),  b = c σ(−l)

    Args:
        total_count: n ≥ 1, an int or a tensor of whole numbers that broadcasts to the data's shape.
        concentration: c > 0, a number, a tensor that broadcasts to the data's shape, or None if the
            decoder outputs it after the logits l. For large c this is a binomial. If your decoder
            outputs a and b, use l = log(a / b) and c = a + b.
    """

    total_count: int | Tensor
    concentration: float | Tensor | None = None
    dispersion: ClassVar[str] = "concentration"
    coupled: ClassVar[bool] = True
    advice_on_output: ClassVar[str] = "output the number itself, not its logarithm"
    per_element: ClassVar[dict[str, int]] = {"total_count": 0, "concentration": 0}

    @isolated
    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "total_count")
        total = to_check(self.total_count)
        if (total != total.floor()).any():
            raise ValueError(f"expected a total_count of whole numbers, got {self.total_count}")
        most = "their total_count" if total.ndim else f"{total:.0f}"
        object.__setattr__(self, "support", f"whole numbers from 0 to {most}")

    def doubt(self, params: Tensor) -> str:
        logits = params[..., 0] if self.concentration is None else params
        if not look_like_probabilities(logits):
            return ""
        return (
            "expected logits of the mean from the decoder, which have either sign, got values "
            f"from {logits.min():.4g} to {logits.max():.4g} only; if they are probabilities, leave "
            "the sigmoid out"
        )

    def in_support(self, values: Tensor) -> Tensor:
        return super().in_support(values) & (values <= setting(self.total_count, values))

    def all_values(self, like: Tensor) -> Tensor:
        most = int(to_check(self.total_count).max())
        return torch.arange(most + 1, dtype=torch.double, device=like.device)

    def log_probs_at(self, params: Tensor, values: Tensor) -> Tensor:
        """As in the base class; −∞ for more successes than trials."""
        most = setting(self.total_count, params)[..., None]
        log_probs = super().log_probs_at(params, values.minimum(most))
        return torch.where(values <= most, log_probs, -torch.inf)

    def possible(self, known: Known) -> Tensor:
        most = setting(self.total_count, known.low)
        return super().possible(known) & (known.low <= most)

    def _size(self, values: Tensor) -> Tensor:
        return setting(self.total_count, values).expand_as(values)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return super().lost(params, values) | _cancels(self.split(params)[1])

    def _double(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, concentration = (part.double() for part in self.split(params))
        return logits, concentration, setting(self.total_count, logits)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        logits, concentration, total = self._double(params)
        data, log_c = values.double(), concentration.log()
        ways = (total + 1).lgamma() - (data + 1).lgamma() - (total - data + 1).lgamma()
        log_a, log_b = log_c + F.logsigmoid(logits), log_c + F.logsigmoid(-logits)
        hits = _log_rising(log_a.exp(), log_a, data)
        misses = _log_rising(log_b.exp(), log_b, total - data)
        return (ways + hits + misses - _log_rising(concentration, log_c, total)).to(params.dtype)

    def mean(self, params: Tensor) -> Tensor:
        return setting(self.total_count, params) * self.split(params)[0].sigmoid()

    def variance(self, params: Tensor) -> Tensor:
        logits, concentration, total = self._double(params)
        spread = total * (total + concentration) / (1 + concentration)
        return (spread * logits.sigmoid() * (-logits).sigmoid()).to(params.dtype)

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        """Sums over counts, computed by `expected_products`."""
        shape = params.shape[:-1] if self.decoded else params.shape
        logits, c, n = (part.expand(shape) for part in self._double(params))
        share, rest = logits.sigmoid(), (-logits).sigmoid()
        log_a, log_b = c.log() + F.logsigmoid(logits), c.log() + F.logsigmoid(-logits)
        a, b = c * share, c * rest
        at_a, at_b, at_c = (a + 1).digamma(), (b + 1).digamma(), _rising_slope(c, n)

        def log_mass(k: Tensor) -> Tensor:  # up to a constant in k
            ways = -(k + 1).lgamma() - (n - k + 1).lgamma()
            hits = torch.where(k > 0, log_a, 0.0) + (a + k.clamp_min(1)).lgamma()
            return (
                ways + hits + torch.where(k < n, log_b, 0.0) + (b + (n - k).clamp_min(1)).lgamma()
            )

        def scores(k: Tensor) -> tuple[Tensor, Tensor]:
            hits, misses = _rising_slope(a, k, at_a), _rising_slope(b, n - k, at_b)
            return rest * hits - share * misses, (hits + misses - at_c) / c

        level = log_mass((n * share).round())
        deviation = (n * (n + c) / (1 + c) * share * rest).sqrt()
        reach = 8 * deviation + 30 * n / (c + 30) + 2  # a beta variable's tail falls as e^(−c p)
        by_logit, off, by_concentration = expected_products(
            lambda k: log_mass(k) - level, scores, n, n * share, reach
        )
        return tuple(part.to(params.dtype) for part in (by_logit, by_concentration, off))

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A binomial variable whose probability is computed from two gamma variables."""
        logits, concentration, total = self._double(params)
        hits = log_gamma(concentration * logits.sigmoid(), substream(noise, 0))
        misses = log_gamma(concentration * (-logits).sigmoid(), substream(noise, 1))
        return binomial(total, (hits - misses).sigmoid(), substream(noise, 2)).to(params.dtype)


def _cancels(total: Tensor) -> Tensor:
    """Whether log Γ is so large here that its differences lose their digits even in double."""
    total = total.double()
    return torch.finfo(torch.double).eps * total * total.log() > MAX_ROUNDING_ERROR


def _log_rising(a: Tensor, log_a: Tensor, k: Tensor) -> Tensor:
    """log Γ(a + k) − log Γ(a) for k = 0 or k ≥ 1, even if a rounds to 0."""
    first = torch.where(k > 0, log_a, 0.0)
    return first + (a + k.clamp_min(1)).lgamma() - (a + 1).lgamma()


def _rising_slope(a: Tensor, k: Tensor, at_one: Tensor | None = None) -> Tensor:
    """a times the derivative of `_log_rising` in a, for k = 0 or k ≥ 1; at_one is ψ(a + 1)."""
    above = (a + k.clamp_min(1)).digamma() - ((a + 1).digamma() if at_one is None else at_one)
    return torch.where(k > 0, 1 + a * above, 0.0)


def _total_count_information(logits: Tensor, total: Tensor) -> Tensor:
    """ψ′(r) − E[ψ′(t + r)] for a negative binomial.

        ∫₀¹ −log w / (1 − v) [1 − (1 + eˡ (1 − v))⁻ʳ] dw / r²,   v = w^(1/r)

    from ψ′(x) = ∫ u e^(−xu) / (1 − e^(−u)) du and the generating function of t. The quadrature is
    Gauss–Legendre in the cube root of w, which smooths the logarithm's singularity.
    """
    nodes, weights = _gauss_legendre()
    scale, odds = total.double(), logits.double().exp()
    result = torch.zeros_like(odds)
    for node, weight in zip(nodes, weights, strict=True):
        log_w = 3 * float(np.log(node))
        missing = -(log_w / scale).expm1()  # 1 − v
        bracket = -(-scale * (odds * missing).log1p()).expm1()
        result = result + 3 * node**2 * weight * -log_w / missing * bracket
    return (result / scale.square()).to(logits.dtype)


@cache
def _gauss_legendre() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gauss–Legendre nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    return tuple((0.5 * (nodes + 1)).tolist()), tuple((0.5 * weights).tolist())
