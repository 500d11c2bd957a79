"""Likelihoods of real numbers: a location, and a scale that is fixed or decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor

from crosscoding.likelihoods.laws import (
    Known,
    Law,
    MixtureLaw,
    TruncatedExponential,
    TruncatedNormal,
    TruncatedStudent,
    log_normal,
    tilted_normal,
)
from crosscoding.likelihoods.location_dispersion import LocationDispersion, check_positive, setting
from crosscoding.likelihoods.rounding import MAX_ROUNDING_ERROR
from crosscoding.likelihoods.samplers import seeds, uniforms
from crosscoding.persistence.folder import Contents
from crosscoding.random import normal, uniform

_LOG_2PI = math.log(2 * math.pi)
_COARSE = 1e-6  # relative error of Σ (x − μ)² / σ²; beyond it and 0.05 nats, it is recomputed
_MOST_LOG_PRECISION = 700.0  # exp of more overflows a double


class _Real(LocationDispersion):
    """A likelihood of finite numbers whose mean, if it exists, is the location."""

    support = "any finite number"
    kind = "real"

    def mean(self, params: Tensor) -> Tensor:
        return self.split(params)[0]

    def in_support(self, values: Tensor) -> Tensor:
        return values.isfinite()

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        return super().lost(params, values) | self.is_coarse(params)


@dataclass(frozen=True, eq=False, repr=False)
class NormalNoise(_Real):
    """A normal variable, which is the value of a `Gaussian` or the logarithm of a `LogNormal`'s."""

    scale: float | Tensor | None = 0.1
    log_variance: bool = field(default=False, kw_only=True)
    advice_on_output: ClassVar[str] = (
        "output the standard deviation itself, not its logarithm; if it is the logarithm of the "
        "variance, use Gaussian(None, log_variance=True)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.log_variance, bool):
            raise TypeError(f"expected log_variance to be True or False, got {self.log_variance!r}")
        if self.log_variance and not self.decoded:
            raise ValueError(
                f"expected scale=None with log_variance=True, got {self.scale}: the decoder "
                "outputs the log variance, so there is no scale to set"
            )
        if self.log_variance:
            takes = "finite parameters and a log variance whose scale is finite"
            object.__setattr__(self, "takes", takes)

    def __repr__(self) -> str:
        more = ", log_variance=True" if self.log_variance else ""
        return f"{type(self).__name__}(scale={self.scale!r}{more})"

    @property
    def positive(self) -> bool:
        return not self.log_variance

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if not self.log_variance:
            return super().split(params)
        return params[..., 0], (0.5 * params[..., 1]).exp()

    def valid(self, params: Tensor) -> Tensor:
        """As in the base class; and the standard deviation must be finite."""
        found = super().valid(params)
        return found & self.split(params)[1].isfinite() if self.log_variance else found

    def _standardized(self, params: Tensor, values: Tensor) -> Tensor:
        """(t − μ) / σ."""
        if not self.log_variance:
            mean, scale = self.split(params)
            return (values - mean) / scale
        residual = values - params[..., 0]
        # Divide twice by √σ, which overflows later than σ does; a residual of 0 stays 0 for any σ.
        root = torch.where(residual == 0, 0.0, -0.25 * params[..., 1]).exp()
        return residual * root * root

    def _log_scale(self, params: Tensor) -> Tensor:
        """log σ, of a shape that broadcasts to (*sample, E)."""
        return 0.5 * params[..., 1] if self.log_variance else self.split(params)[1].log()

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        squares = self._standardized(params, values).square()
        return -0.5 * squares - self._log_scale(params) - 0.5 * _LOG_2PI

    def variance(self, params: Tensor) -> Tensor:
        if self.log_variance:
            return params[..., 1].exp()
        mean, scale = self.split(params)
        return scale.square().expand_as(mean)

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        if self.log_variance:
            precision = (-params[..., 1]).exp()
            return precision, torch.full_like(precision, 0.5)
        mean, scale = self.split(params)
        precision = scale.square().reciprocal().expand_as(mean)
        return precision, 2 * precision

    def _advice_on(self, num: int) -> str:
        name = type(self).__name__
        more = f", or {name}(None, log_variance=True) if it is the logarithm of the variance"
        return super()._advice_on(num) + more * (not self.decoded and num == 2)

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return normal(shape, generator=generator, like=like)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, scale = self.split(params)
        return mean + scale * noise

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        residual = torch.where(mask, self._standardized(params, values), 0.0)
        squares = residual.square().sum(-1)
        log_scale = torch.where(mask, self._log_scale(params) + 0.5 * _LOG_2PI, 0.0).sum(-1)
        return -0.5 * squares - log_scale

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        (params,) = kept
        # Expand Σ m (x − μ)² / σ² into three matrix products. They nearly cancel where x ≈ μ, the
        # more so the further both are from 0: hence double, and x and μ centred at the mean of μ.
        mean = self.split(params)[0].double()
        log_scale, precision = (
            part.expand(1 if part.ndim < 2 else len(mean), mean.shape[1])  # one row for all points
            for part in self._in_double(params)
        )
        centre = torch.where(mean.isfinite(), mean, 0.0).mean(0)  # NaN stays with its point
        weight, data, mean = mask.double(), values.double() - centre, mean - centre
        size = (mean.square() * precision) @ weight.mT + precision @ (data.square() * weight).mT
        squares = size - 2 * (mean * precision) @ (data * weight).mT
        log_scale = (log_scale + 0.5 * _LOG_2PI) @ weight.mT
        result = (-0.5 * squares - log_scale).to(params.dtype)
        # An unobserved infinity gives 0 · inf = NaN, and enormous means leave no digit of the sum.
        unclear, rounding = result.isnan(), torch.finfo(size.dtype).eps * size
        if not (rounding <= MAX_ROUNDING_ERROR).all():
            unclear |= rounding > (_COARSE * squares.abs()).clamp_min(MAX_ROUNDING_ERROR)
        if (unclear := unclear.any(-1)).any():
            result[unclear] = super().pairwise_log_prob((params[unclear],), values, mask)
        return result

    def _in_double(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """log σ and σ⁻², with log σ² raised to −700 so that σ⁻² does not overflow."""
        if self.log_variance:
            log_variance = params[..., 1].double()
            return 0.5 * log_variance, (-log_variance).clamp_max(_MOST_LOG_PRECISION).exp()
        scale = self.split(params)[1].double()
        return scale.log(), scale.pow(-2)

    def to_parts(self) -> Contents:
        tensors, description = super().to_parts()
        if not self.log_variance:  # folders saved before this setting existed lack it
            del description["settings"]["log_variance"]
        return tensors, description


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(NormalNoise):
    """Real values with independent normal noise, N(t; μ(z), σ²), including the normaliser.

        log p(t|z) = −(t − μ)² / 2σ² − log σ − ½ log 2π

    Args:
        scale: σ > 0 in the data's units: a number, a tensor that broadcasts to the data's shape,
            or None if the decoder outputs it too, as a pair (mean, scale) or as a last dimension of
            size 2.
        log_variance: With scale=None, whether the decoder outputs log σ² instead of the scale, as a
            pair (mean, log variance) or as a last dimension of size 2. It may be any finite number.
    """

    uncertain: ClassVar[tuple[str, ...]] = ("interval", "noise")

    def law(self, params: Tensor, known: Known) -> TruncatedNormal:
        """N(t; μ, σ²) times the density of the noisy value, between the bounds."""
        mean, scale = torch.broadcast_tensors(*self.split(params.double()))
        noisy = known.noise > 0
        if not bool(noisy.any()):
            return TruncatedNormal(mean, scale, known.low, known.high)
        total = torch.hypot(scale, known.noise)
        centre = mean + torch.where(noisy, (scale / total).square() * (known.value - mean), 0.0)
        spread = torch.where(noisy, scale * known.noise / total, scale)
        log_factor = torch.where(noisy, log_normal(known.value - mean, total), 0.0)
        return TruncatedNormal(centre, spread, known.low, known.high, log_factor)


@dataclass(frozen=True, eq=False)
class Laplace(_Real):
    """Real values with double-exponential noise: a sharp mode and heavier tails than a Gaussian.

        log p(t|z) = −|t − μ| / b − log 2b

    Args:
        scale: b > 0 in the data's units, as for a `Gaussian`; the variance is 2 b².
    """

    scale: float | Tensor | None = 0.1
    uncertain: ClassVar[tuple[str, ...]] = ("interval", "noise")

    def law(self, params: Tensor, known: Known) -> MixtureLaw:
        """The exponential pieces below and above the location, each cut to the bounds."""
        location, scale = torch.broadcast_tensors(*self.split(params.double()))
        pieces = (
            (1.0, known.low, known.high.minimum(location)),
            (-1.0, known.low.maximum(location), known.high),
        )
        return MixtureLaw(
            [self._piece(location, scale, sign, low, high, known) for sign, low, high in pieces]
        )

    @staticmethod
    def _piece(
        location: Tensor, scale: Tensor, sign: float, low: Tensor, high: Tensor, known: Known
    ) -> Law:
        """exp(sign (t − μ) / b) / 2b between bounds, times the density of a noisy value."""
        slope, log_height = sign / scale, -(2 * scale).log()
        if not (known.noise > 0).any():
            return TruncatedExponential(slope, log_height - slope * location, low, high)
        return tilted_normal(slope, log_height - slope * location, low, high, known)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        location, scale = self.split(params)
        return -(values - location).abs() / scale - (2 * scale).log()

    def variance(self, params: Tensor) -> Tensor:
        location, scale = self.split(params)
        return (2 * scale.square()).expand_as(location)

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        location, scale = self.split(params)
        precision = scale.square().reciprocal().expand_as(location)
        return precision, precision

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like.double())

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        location, scale = self.split(params)
        centred = noise - 0.5
        deviation = -centred.sign() * (-2 * centred.abs()).clamp_min(-1 + 1e-16).log1p()
        return (location + scale * deviation).to(params.dtype)


@dataclass(frozen=True, eq=False)
class StudentT(_Real):
    """Real values with Student-t noise: an outlier costs only its logarithm.

        log p(t|z) = −½ (ν + 1) log(1 + r² / ν) + log Γ(½(ν + 1)) − log Γ(½ν) − ½ log πν − log σ,
        r = (t − μ) / σ

    Args:
        df: Degrees of freedom ν > 0, a number or a tensor that broadcasts to the data's shape.
            For ν ≤ 1 the mean does not exist (NaN), and for ν ≤ 2 the variance is not finite.
        scale: σ > 0 in the data's units, as for a `Gaussian`; the standard deviation is
            σ √(ν / (ν − 2)).

    Source: Lange, Little and Taylor (1989), appendix B, for the Fisher information; Bailey (1994)
        for the draws. Differs in: nothing.
    """

    df: float | Tensor = 4.0
    scale: float | Tensor | None = 0.1
    per_element: ClassVar[dict[str, int]] = {"df": 0, "scale": 0}
    uncertain: ClassVar[tuple[str, ...]] = ("interval",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "df")

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        location, scale = self.split(params)
        df = setting(self.df, params)
        bulk = 0.5 * (df + 1) * _log1p_square((values - location) / scale / df.sqrt())
        wide = df.double()  # for large ν the two lgamma nearly cancel
        constant = (
            (0.5 * (wide + 1)).lgamma() - (0.5 * wide).lgamma() - 0.5 * (math.pi * wide).log()
        )
        return constant.to(params.dtype) - bulk - scale.log()

    def mean(self, params: Tensor) -> Tensor:
        return torch.where(setting(self.df, params) > 1, super().mean(params), torch.nan)

    def variance(self, params: Tensor) -> Tensor:
        location, scale = self.split(params)
        df = setting(self.df, params)
        factor = torch.where(df > 2, df / (df - 2).clamp_min(1e-30), torch.inf)
        factor = torch.where(df > 1, factor, torch.nan)
        return (factor * scale.square()).expand_as(location)

    def information(self, params: Tensor) -> tuple[Tensor, ...]:
        location, scale = self.split(params)
        df = setting(self.df, params)
        precision = (1 / ((df + 3) * scale.square())).expand_as(location)
        return (df + 1) * precision, 2 * df * precision

    def law(self, params: Tensor, known: Known) -> TruncatedStudent:
        location, scale = self.split(params.double())
        return TruncatedStudent(setting(self.df, location), location, scale, known.low, known.high)

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return seeds(shape, generator=generator, like=like)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        location, scale = self.split(params)
        df = setting(self.df, params).double()
        radius = (df * (-2 * uniforms(noise, 0).log() / df).expm1()).sqrt()
        deviation = radius * (2 * math.pi * uniforms(noise, 1)).cos()
        return (location + scale * deviation).to(params.dtype)


def _log1p_square(x: Tensor) -> Tensor:
    """log(1 + x²), without overflow in x²."""
    large = x.abs() > 1e8
    size = torch.where(large, x.abs(), 1.0)
    return torch.where(large, 2 * size.log(), torch.where(large, 0.0, x).square().log1p())
