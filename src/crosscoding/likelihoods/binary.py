"""Likelihoods of zeros and ones, and of numbers between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.likelihoods.exponential_family import ExponentialFamily
from crosscoding.likelihoods.finitely_many import FinitelyMany
from crosscoding.likelihoods.laws import Known, Law, TruncatedExponential, tilted_normal
from crosscoding.likelihoods.logit_check import look_like_probabilities
from crosscoding.random import uniform

# Below it, log (1 + eˡ) is 1e-11 or less and taken as 0, because denormal intermediate results take
# up to ten times as long. In double, they occur only below −350.
_LEAST_LOGIT = -25.0
_NEARLY_FLAT = 0.25  # |logit| below which the series is more accurate than the closed form


class _Probability(ExponentialFamily):
    """A likelihood with one parameter per element: log(p / (1 − p)), or p."""

    logits: bool
    support = "between 0 and 1"

    def __post_init__(self) -> None:
        if not isinstance(self.logits, bool):
            raise TypeError(f"expected logits to be True or False, got {self.logits!r}")
        takes = "logits" if self.logits else "probabilities between 0 and 1"
        object.__setattr__(self, "takes", takes)

    def probability(self, params: Tensor) -> Tensor:
        """p from a decoder that outputs it, with 0 and 1 moved to the nearest number between them.

        Numbers that are not probabilities become NaN, which raises if the element is observed.
        """
        info = torch.finfo(params.dtype)
        clamped = params.clamp(info.tiny, 1 - info.eps / 2)
        return torch.where((params >= 0) & (params <= 1), clamped, torch.nan)

    def clamps(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Where `probability` changes p, at the lower and at the upper end; nowhere for logits."""
        if self.logits:
            nowhere = torch.zeros_like(params, dtype=torch.bool)
            return nowhere, nowhere
        return params < torch.finfo(params.dtype).tiny, params >= 1

    def valid(self, params: Tensor) -> Tensor:
        found = self.allowed(params)
        return found if self.logits else found & (params >= 0) & (params <= 1)

    def may_be_lost(self, values: Tensor) -> Tensor:
        return torch.full_like(values, not self.logits, dtype=torch.bool)

    def in_support(self, values: Tensor) -> Tensor:
        return (values >= 0) & (values <= 1)

    def check_params(self, params: Tensor) -> None:
        if not self.logits and not ((params >= 0) & (params <= 1)).all():
            raise ValueError(
                "expected a decoder that outputs probabilities between 0 and 1, got values from "
                f"{params.min():.4g} to {params.max():.4g}; if they are logits, use "
                f"{type(self).__name__}(logits=True)"
            )

    def doubt(self, params: Tensor) -> str:
        if not self.logits or not look_like_probabilities(params):
            return ""
        return (
            f"expected logits from the decoder, which have either sign, got values from "
            f"{params.min():.4g} to {params.max():.4g} only; if they are probabilities, use "
            f"{type(self).__name__}(logits=False)"
        )


@dataclass(frozen=True)
class Bernoulli(_Probability, FinitelyMany):
    """Zeros and ones; the decoder outputs logits or probabilities.

    Values strictly between 0 and 1 are accepted, because VAEs of grey images are often trained on
    them: log_prob is then the cross-entropy x log p + (1 − x) log(1 − p), which is not normalised
    over [0, 1], and draws are still zeros and ones. `ContinuousBernoulli` is normalised.

    Args:
        logits: True if the decoder outputs log(p / (1 − p)), False if it outputs p. A p of exactly
            0 or 1 is replaced by the nearest number between them, so that rounding does not make
            an observation impossible.
    """

    logits: bool = True
    kind = "binary"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "infinite", (-math.inf, math.inf) if self.logits else ())

    def all_values(self, like: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0], dtype=torch.double, device=like.device)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        if self.logits:
            return super().log_prob(params, values)
        probability = self.probability(params)
        return values * probability.log() + (1 - values) * (-probability).log1p()

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        low, high = self.clamps(params)
        return super().lost(params, values) | low & (values > 0) | high & (values < 1)

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid() if self.logits else params

    def variance(self, params: Tensor) -> Tensor:
        mean = self.mean(params)
        return mean * (1 - mean)

    def fisher(self, params: Tensor) -> Tensor:
        if self.logits:
            return self.variance(params)
        probability = self.probability(params)
        return 1 / (probability * (1 - probability))

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        return (noise < self.mean(params)).to(params.dtype)

    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if self.logits:
            least = _LEAST_LOGIT if params.dtype == torch.float32 else 2 * _LEAST_LOGIT
            return params, -F.softplus(F.threshold(params, least, -torch.inf))
        probability = self.probability(params)
        offset = (-probability).log1p()
        return probability.log() - offset, offset


@dataclass(frozen=True)
class ContinuousBernoulli(_Probability):
    """Numbers from 0 to 1: the Bernoulli's cross-entropy with the normaliser that it lacks.

        log p(t|z) = t l − log((eˡ − 1) / l),   l = log(λ / (1 − λ)),   0 ≤ t ≤ 1

    Args:
        logits: True if the decoder outputs l, False if it outputs λ; λ of 0 or 1 is treated like
            the p of a `Bernoulli`.

    Source: Loaiza-Ganem and Cunningham (2019), eqs. 6–8. Differs in: written in l; near λ = ½ the
        normaliser is a series, not a constant.
    """

    logits: bool = True
    kind = "real"
    uncertain = ("interval", "noise")

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        low, high = self.clamps(params)
        return super().lost(params, values) | low | high

    def law(self, params: Tensor, known: Known) -> Law:
        """The exponential density e^(l t) on [0, 1], cut to the bounds."""
        slope, offset = self.slope_and_offset(params.double())
        low, high = known.low.clamp_min(0), known.high.clamp_max(1)
        if not (known.noise > 0).any():
            return TruncatedExponential(slope, offset, low, high)
        return tilted_normal(slope, offset, low, high, known)

    def possible(self, known: Known) -> Tensor:
        return known.low.clamp_min(0) < known.high.clamp_max(1)

    def _logit(self, params: Tensor) -> Tensor:
        if self.logits:
            return params
        probability = self.probability(params)
        return probability.log() - (-probability).log1p()

    def mean(self, params: Tensor) -> Tensor:
        logit = self._logit(params)
        near, far = _near_and_far(logit)
        series = near / 12 - near**3 / 720 + near**5 / 30240
        return 0.5 + torch.where(logit == near, series, 0.5 / (far / 2).tanh() - 1 / far)

    def variance(self, params: Tensor) -> Tensor:
        logit = self._logit(params)
        near, far = _near_and_far(logit)
        series = 1 / 12 - near**2 / 240 + near**4 / 6048
        shrunk = (-far.abs()).exp()  # 1 / 4 sinh²(l / 2), without overflow
        return torch.where(logit == near, series, far**-2 - shrunk / (1 - shrunk).square())

    def fisher(self, params: Tensor) -> Tensor:
        information = self.variance(params)
        if self.logits:
            return information
        probability = self.probability(params)
        return information / (probability * (1 - probability)).square()

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like.double())

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """The quantile of the noise, measured from the end where the density is highest."""
        logit = self._logit(params).double()
        steep = logit.abs().clamp_min(1e-9)
        from_end = -(noise * (-steep).expm1()).log1p() / steep
        return torch.where(logit > 0, 1 - from_end, from_end).to(params.dtype)

    def slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        logit = self._logit(params)
        near, far = _near_and_far(logit)
        series = near / 2 + near**2 / 24 - near**4 / 2880 + near**6 / 181440
        size = far.abs()
        exact = far.clamp_min(0) + (-(-size).expm1()).log() - size.log()
        return logit, -torch.where(logit == near, series, exact)


def _near_and_far(logit: Tensor) -> tuple[Tensor, Tensor]:
    """The logits near 0, with 0 elsewhere; and the other logits, with 1 elsewhere.

    Each of the two formulas then has finite gradients even where the other one is used.
    """
    flat = logit.abs() < _NEARLY_FLAT
    return torch.where(flat, logit, 0.0), torch.where(flat, 1.0, logit)
