"""`View`: answers to some queries as arrays, to be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from crosscoding.random import generator_from
from crosscoding.result.marginals import Marginals
from crosscoding.target.vae_target import VAETarget

_NUM_DRAWS = 1000


@dataclass(frozen=True)
class Knowledge:
    """What was known of elements, each of shape (B, E).

    Args:
        exact: Which are known exactly.
        value: Values, exact or with noise; NaN where there is none.
        noise: Standard deviations of the noise; 0 where there is none.
        low, high: Bounds; ±∞ where there are none.
        allowed: Which classes are possible, (B, E, K); None without sets.
        partly: Of which something is known, but not exactly.
        num_sums: How many sums are known.
    """

    exact: NDArray[np.bool_]
    value: NDArray[np.floating]
    noise: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    allowed: NDArray[np.bool_] | None
    partly: NDArray[np.bool_]
    num_sums: int


class View:
    """Answers to some queries.

    Args:
        posterior: Their posterior, of batch shape (B,).
        names: What the queries are called.
        seed: Seed of all draws.
    """

    def __init__(self, posterior: Any, names: Sequence[str], seed: int | Generator) -> None:
        self.posterior, self.names = posterior, list(names)
        self._generator = generator_from(seed)

    @property
    def target(self) -> VAETarget:
        """The model and the evidence, if there are any."""
        return self.posterior.target

    @property
    def titles(self) -> list[str]:
        """The name of each query and its label."""
        labels = [verdict.label for verdict in self.posterior.verdicts]
        return [": ".join(filter(None, pair)) for pair in zip(self.names, labels, strict=True)]

    @cached_property
    def answers(self) -> Marginals:
        """Predictions of the elements."""
        return self.posterior._predictions()

    def latents(self, num: int = _NUM_DRAWS) -> Tensor:
        """Draws of z, (num, B, latent)."""
        return self.posterior._sample(num, self._generator)

    @torch.no_grad()
    def moments(self, num: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and standard deviation of each element, (B, E), from this many draws of z."""
        z = self.latents(num)
        mean = self.answers.means_at(z).mean(0)
        exact = self.target.evidence.exact
        between, within = self.answers.variances(z)
        spread = (between + within).sqrt().reshape(mean.shape).to(mean.dtype)
        return self._flat(mean), self._flat(torch.where(exact, 0.0, spread))

    @torch.no_grad()
    def means_at_draws(self, num: int) -> NDArray[Any]:
        """E[t|z] at draws of z, (num, B, E)."""
        found = self.answers.means_at(self.latents(num))
        return array(found.reshape(num, len(self.names), self.target.model.data_size))

    @torch.no_grad()
    def interval(self, level: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ends of central intervals, (B, E); NaN for unordered classes."""
        levels = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
        low, high = self.answers.quantile(self.latents(), levels, self._generator)
        return self._flat(low), self._flat(high)

    @torch.no_grad()
    def mean(self) -> NDArray[Any]:
        """E[t|x], (B, E)."""
        return self._flat(self.answers.mean())

    @torch.no_grad()
    def probabilities(self) -> NDArray[Any]:
        """Probabilities of classes, (B, E, K), NaN for other elements."""
        found = self.answers.probabilities()
        return array(found.reshape(len(self.names), -1, found.shape[-1]))

    @cached_property
    def known(self) -> Knowledge:
        """What was known."""
        evidence = self.target.evidence
        value = torch.where(evidence.has_value, evidence.values, torch.nan)
        exact = self._flat(evidence.exact)
        nothing = np.zeros(exact.shape)
        noise, low, high, allowed = nothing, nothing - np.inf, nothing + np.inf, None
        if (own := evidence.uncertain) is not None:
            noise, low, high = self._flat(own.noise), self._flat(own.low), self._flat(own.high)
            if own.allowed is not None:
                allowed = array(own.allowed.reshape(*exact.shape, -1))
        return Knowledge(
            exact=exact,
            value=self._flat(value),
            noise=noise,
            low=low,
            high=high,
            allowed=allowed,
            partly=self._flat(evidence.mask) & ~exact,
            num_sums=sum(part.values.shape[-1] for part in evidence.sums),
        )

    def _flat(self, tensor: Tensor) -> NDArray[Any]:
        return array(tensor.reshape(len(self.names), -1))


def array(tensor: Tensor) -> NDArray[Any]:
    """A tensor on any device as an array, in double if it is floating point."""
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def of_categories(probabilities: NDArray[Any], num: int) -> NDArray[Any]:
    """Probabilities of `num` categories from those of classes (K,); the last adds up the rest.

    A likelihood has at least two classes, but a column may have only one category.
    """
    return np.append(probabilities[: num - 1], np.nansum(probabilities[num - 1 :]))
