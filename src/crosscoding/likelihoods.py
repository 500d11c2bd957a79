"""Likelihoods p(t|z) that factorise over the elements of t, from what the decoder puts out.

The decoder's output arrives as one tensor of parameters, shape (*sample, E, *param_shape), with the
E elements of a datum in one dimension: param_shape is () for a likelihood of one parameter an
element and (P,) for P of them. Given z, observed and unobserved elements are independent, so a sum
over observed elements is log p(x|z) and a sum over the others log p(y|z).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.errors import ModelFormatError
from crosscoding.random import normal, uniform
from crosscoding.storage import Parts

_LOG_2PI = math.log(2 * math.pi)


class Likelihood(ABC):
    """What is asked of every likelihood. All log-probabilities are in nats and per element."""

    param_shape: tuple[int, ...] = ()
    support: str

    @abstractmethod
    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """log p(t|z) of each element, the broadcast shape of (*sample, E) and values."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def variance(self, params: Tensor) -> Tensor:
        """Var[t|z] of each element, shape (*sample, E)."""

    @abstractmethod
    def fisher(self, params: Tensor) -> Tensor:
        """Fisher information of each parameter, −E[∂² log p(t|z)], shape of params."""

    @abstractmethod
    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        """Base noise that `draw` turns into data, of the given shape."""

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """A draw of t given z for each element, from base noise."""

    @abstractmethod
    def in_support(self, values: Tensor) -> Tensor:
        """Whether each value can be observed at all, boolean."""

    def to_parts(self) -> Parts:
        """The likelihood's name and settings; settings that are tensors apart."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in settings.items() if name not in tensors}
        return tensors, {"name": type(self).__name__, "settings": plain}

    @staticmethod
    def from_parts(parts: Parts) -> "Likelihood":
        """The likelihood that `to_parts` described.

        Raises:
            ModelFormatError: There is no such likelihood, or it has no such settings.
        """
        tensors, description = parts
        known = {likelihood.__name__: likelihood for likelihood in Likelihood.__subclasses__()}
        try:
            return known[description["name"]](**description["settings"], **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"expected a known likelihood, got {description}") from error

    def check_params(self, params: Tensor) -> None:  # noqa: B027 (most have nothing to check)
        """Raise ValueError if a decoder's output cannot be this likelihood's parameters."""

    def for_data(self, data_shape: Sequence[int], like: Tensor) -> "Likelihood":
        """The same likelihood with what it holds per element laid out flat, as the decoder's."""
        return self

    def of_elements(self, elements: Tensor) -> "Likelihood":
        """The same for some elements of each query, (B, E'), of data laid out flat."""
        return self

    def select(self, index: Tensor | slice) -> "Likelihood":
        """The same for some queries of those that `of_elements` was asked for."""
        return self

    def trimmed(self, num: int) -> "Likelihood":
        """The same for the first `num` of the elements that `of_elements` was asked for."""
        return self

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Σ over masked elements of log p(t|z), shape (*sample, B).

        Args:
            params: Parameters, shape (*sample, B, E, *param_shape).
            values: Data, shape (B, E), finite everywhere.
            mask: Which elements count, shape (B, E).
        """
        return torch.where(mask, self.log_prob(params, values), 0.0).sum(-1)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        """What `pairwise_log_prob` needs of parameters (N, E, *param_shape), worked out once."""
        return (params,)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        """`masked_log_prob` of every query under every one of N parameter sets, shape (N, B).

        Args:
            kept: What `to_keep` made of the parameters.
            values: Data, shape (B, E), finite everywhere.
            mask: Which elements count, shape (B, E).
        """
        return self.masked_log_prob(kept[0].unsqueeze(1), values, mask)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Zeros and ones; the decoder puts out logits, or probabilities.

    Values strictly between 0 and 1 are accepted, as VAEs of grey images are often trained on them:
    log_prob is then the cross-entropy x log p + (1 − x) log(1 − p), which is not normalised over
    [0, 1], and draws are still zeros and ones.

    Args:
        logits: True if the decoder puts out log(p / (1 − p)), False if it puts out p. A p that was
            rounded to 0 or 1 is read as the nearest number that is neither, so that no
            observation is called impossible on account of rounding.
    """

    logits: bool = True
    support = "between 0 and 1"

    def _probability(self, params: Tensor) -> Tensor:
        if ((params < 0) | (params > 1)).any():
            raise ValueError(
                "expected probabilities between 0 and 1 from the decoder, got values from "
                f"{params.min():.4g} to {params.max():.4g} at some z"
            )
        info = torch.finfo(params.dtype)
        return params.clamp(info.tiny, 1 - info.eps / 2)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        if self.logits:
            return values * params - F.softplus(params)
        probability = self._probability(params)
        return values * probability.log() + (1 - values) * (-probability).log1p()

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid() if self.logits else params

    def variance(self, params: Tensor) -> Tensor:
        mean = self.mean(params)
        return mean * (1 - mean)

    def fisher(self, params: Tensor) -> Tensor:
        if self.logits:
            return self.variance(params)
        probability = self._probability(params)
        return 1 / (probability * (1 - probability))

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        return (noise < self.mean(params)).to(params.dtype)

    def in_support(self, values: Tensor) -> Tensor:
        return (values >= 0) & (values <= 1)

    def check_params(self, params: Tensor) -> None:
        if not self.logits and not ((params >= 0) & (params <= 1)).all():
            raise ValueError(
                "expected a decoder that puts out probabilities between 0 and 1, got values from "
                f"{params.min():.4g} to {params.max():.4g}; if they are logits, use "
                "Bernoulli(logits=True)"
            )

    def _slope_and_offset(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of log p(x) = a x + b: the log-probability is linear in x."""
        if self.logits:
            return params, -F.softplus(params)
        probability = self._probability(params)
        offset = (-probability).log1p()
        return probability.log() - offset, offset

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = self._slope_and_offset(params)
        weight = mask.to(params.dtype)
        return torch.linalg.vecdot(slope, values * weight) + torch.linalg.vecdot(offset, weight)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return self._slope_and_offset(params)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        slope, offset = kept
        weight = mask.to(slope.dtype)
        return slope @ (values * weight).mT + offset @ weight.mT


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """Real values with independent normal noise, N(t; μ(z), σ²), with its whole normaliser.

        log p(t|z) = −(t − μ)² / 2σ² − log σ − ½ log 2π

    Args:
        scale: σ > 0 in the data's units: a number, a tensor that broadcasts to the data's shape,
            or None if the decoder puts it out beside the mean, as a pair (mean, scale) or as a
            last dimension of size 2.
    """

    scale: float | Tensor | None = 0.1
    support = "any finite number"

    def __post_init__(self) -> None:
        scale = self.scale
        if scale is None:
            object.__setattr__(self, "param_shape", (2,))
            return
        if isinstance(scale, bool) or not isinstance(scale, (int, float, Tensor)):
            raise TypeError(
                f"expected scale to be a number, a tensor or None, got {type(scale).__name__}"
            )
        if isinstance(scale, Tensor):
            object.__setattr__(self, "scale", scale.detach().clone())
        values = torch.as_tensor(scale)
        if not (values.isfinite() & (values > 0)).all():
            raise ValueError(f"expected a finite scale > 0, got {scale}")

    def for_data(self, data_shape: Sequence[int], like: Tensor) -> "Gaussian":
        if not isinstance(self.scale, Tensor):
            return self
        if self.scale.dtype != like.dtype or self.scale.device != like.device:
            raise ValueError(
                f"expected the scale's dtype and device to be the decoder's, {like.dtype} on "
                f"{like.device}, got {self.scale.dtype} on {self.scale.device}"
            )
        try:
            scale = self.scale.expand(tuple(data_shape))
        except RuntimeError:
            raise ValueError(
                f"expected a scale that broadcasts to the data's shape {tuple(data_shape)}, "
                f"got {tuple(self.scale.shape)}"
            ) from None
        return Gaussian(scale.flatten())

    def _mean_and_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            return params[..., 0], params[..., 1]
        return params, torch.as_tensor(self.scale, dtype=params.dtype, device=params.device)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        mean, scale = self._mean_and_scale(params)
        return -0.5 * ((values - mean) / scale).square() - scale.log() - 0.5 * _LOG_2PI

    def mean(self, params: Tensor) -> Tensor:
        return self._mean_and_scale(params)[0]

    def variance(self, params: Tensor) -> Tensor:
        mean, scale = self._mean_and_scale(params)
        return scale.square().expand_as(mean)

    def fisher(self, params: Tensor) -> Tensor:
        mean, scale = self._mean_and_scale(params)
        precision = scale.square().reciprocal().expand_as(mean)
        return precision if self.param_shape == () else torch.stack([precision, 2 * precision], -1)

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return normal(shape, generator=generator, like=like)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, scale = self._mean_and_scale(params)
        return mean + scale * noise

    def in_support(self, values: Tensor) -> Tensor:
        return values.isfinite()

    def check_params(self, params: Tensor) -> None:
        if self.scale is None and not (params[..., 1] > 0).all():
            raise ValueError(
                f"expected a decoder whose scale is > 0, got {params[..., 1].min():.4g}; "
                "put out the standard deviation itself, not its logarithm"
            )

    def masked_log_prob(self, params: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        mean, scale = self._mean_and_scale(params)
        residual = torch.where(mask, (values - mean) / scale, 0.0)
        squares = residual.square().sum(-1)
        log_scale = torch.where(mask, scale.log() + 0.5 * _LOG_2PI, 0.0).sum(-1)
        return -0.5 * squares - log_scale

    def of_elements(self, elements: Tensor) -> "Gaussian":
        return Gaussian(self.scale[elements]) if isinstance(self.scale, Tensor) else self

    def select(self, index: Tensor | slice) -> "Gaussian":
        return Gaussian(self.scale[index]) if isinstance(self.scale, Tensor) else self

    def trimmed(self, num: int) -> "Gaussian":
        return Gaussian(self.scale[..., :num]) if isinstance(self.scale, Tensor) else self

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        (params,) = kept
        # Σ m (x − μ)² / σ² by its three products, in double: they nearly cancel where x ≈ μ.
        mean, scale = (part.double() for part in self._mean_and_scale(params))
        weight, data = mask.double(), values.double()
        precision = scale.pow(-2).expand_as(mean)
        squares = precision @ (data.square() * weight).mT
        squares = squares - 2 * (mean * precision) @ (data * weight).mT
        squares = squares + (mean.square() * precision) @ weight.mT
        log_scale = (scale.log() + 0.5 * _LOG_2PI).expand_as(mean) @ weight.mT
        return (-0.5 * squares - log_scale).to(params.dtype)
