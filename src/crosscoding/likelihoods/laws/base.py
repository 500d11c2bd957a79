"""The contract of p(t|z, what is known of t) for single elements, and mixtures of such laws."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

_TINY, _EPS = 1e-300, 1e-16


class Law(ABC):
    """p(t|z) restricted to what is known of t, for many elements at once, in double.

    Attributes:
        log_mass: log p(what is known|z) in nats, shape (*sample, B, P): the probability of an
            interval or a set, the density of a value with noise. Differentiable.
    """

    log_mass: Tensor

    @abstractmethod
    def mean(self) -> Tensor:
        """E[t|z, known], shape of log_mass."""

    @abstractmethod
    def variance(self) -> Tensor:
        """Var[t|z, known], shape of log_mass."""

    @abstractmethod
    def draw(self, uniforms: Tensor) -> Tensor:
        """A draw of t, as a function of one uniform number per element in (0, 1)."""


class WeightedLaw(Law):
    """Another law, its mass multiplied by a weight.

    Args:
        law: The other law.
        log_weight: The logarithm of the weight, shape of the law's log_mass.
    """

    def __init__(self, law: Law, log_weight: Tensor) -> None:
        self._law = law
        self.log_mass = law.log_mass + log_weight

    def mean(self) -> Tensor:
        return self._law.mean()

    def variance(self) -> Tensor:
        return self._law.variance()

    def draw(self, uniforms: Tensor) -> Tensor:
        return self._law.draw(uniforms)


class MixtureLaw(Law):
    """A law that is a sum of others, each with a mass of its own.

    Args:
        parts: Laws of one shape.
    """

    def __init__(self, parts: Sequence[Law]) -> None:
        self._parts = parts
        self._masses = torch.stack([part.log_mass for part in parts])
        self.log_mass = self._masses.logsumexp(0)

    def _shares(self) -> Tensor:
        return self._masses.softmax(0)

    def _means(self) -> Tensor:
        return torch.stack([part.mean() for part in self._parts])

    def mean(self) -> Tensor:
        return (self._shares() * self._means()).sum(0)

    def variance(self) -> Tensor:
        means, shares = self._means(), self._shares()
        gaps = means - (shares * means).sum(0)
        within = torch.stack([part.variance() for part in self._parts])
        return (shares * (within + gaps.square())).sum(0)

    def draw(self, uniforms: Tensor) -> Tensor:
        """The part that holds the uniform number's quantile, and the quantile within it."""
        uniforms, shares = uniforms.double(), self._shares()
        ends = shares.cumsum(0)
        index = (uniforms >= ends[:-1]).sum(0)
        drawn = [
            part.draw(((uniforms - end + share) / share.clamp_min(_TINY)).clamp(_EPS, 1 - _EPS))
            for part, share, end in zip(self._parts, shares, ends, strict=True)
        ]
        return torch.stack(drawn).gather(0, index[None])[0]
