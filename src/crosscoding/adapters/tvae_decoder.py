"""The decoder of a TVAE, read as distributions of the columns that a user knows.

ctgan encodes a number c as a component k of a mixture of normal distributions, drawn with its
posterior probability, and the residual r = (c − μ_k) / 4 s_k. For each number, the network outputs
a location m and a logit for each component. As p(r|z) = N(r; tanh m, σ), and k is unknown,

    p(c|z) = Σ_k π_k(z) N(c; μ_k + 4 s_k tanh m(z), 4 s_k σ)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.columns import Column, Table
from crosscoding.columns.column import mixed_of
from crosscoding.likelihoods import Categorical, Gaussian, Likelihood, Mixture
from crosscoding.model.vae import VAE

_REACH = 4.0  # standard deviations of a component in a residual of 1


@dataclass(frozen=True, eq=False)
class NumberSpan:
    """Outputs of a number: a location, then a logit for each component.

    Args:
        column: The column.
        means, deviations, weights: Of the components, in the column's units, shape (K,).
        sigma: Deviation of the residual.
    """

    column: Column
    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray
    sigma: float

    @property
    def size(self) -> int:
        return 1 + len(self.means)

    @property
    def likelihood(self) -> Likelihood:
        return Mixture(Gaussian(None), len(self.means))

    def affine(self, start: int, power: float) -> list[Tensor]:
        """Its entries of the buffers of `TVAEDecoder`: places, factors, squashed, shifts."""
        num, column = len(self.means), self.column
        zeros, logits = np.zeros(num), start + 1 + np.arange(num)
        location = np.full(num, start)
        reach = _REACH * self.deviations / column.scale
        rows = [
            [logits, location, location],
            [np.full(num, power), zeros, zeros],
            [zeros, reach, zeros],
            [zeros, column.to_tensor(self.means), reach * self.sigma / power**0.5],
        ]
        return [torch.from_numpy(np.concatenate(row)) for row in rows]


@dataclass(frozen=True, eq=False)
class ClassSpan:
    """Outputs of a class: a logit for each category."""

    column: Column

    @property
    def size(self) -> int:
        return len(self.column.categories)

    @property
    def likelihood(self) -> Likelihood:
        return Categorical(max(self.size, 2))

    def affine(self, start: int, power: float) -> list[Tensor]:
        """As in `NumberSpan`; a single category is joined by an impossible one."""
        num = self.likelihood.param_shape[0]
        places = start + np.minimum(np.arange(num), self.size - 1)
        shifts = np.where(np.arange(num) < self.size, 0.0, -np.inf)
        rows = [places, np.full(num, power), np.zeros(num), shifts]
        return [torch.from_numpy(row) for row in rows]


Span = NumberSpan | ClassSpan


class TVAEDecoder(nn.Module):
    """From z to the parameters of all columns: a y_i + b tanh y_i + c of the network's outputs y.

    Args:
        layers: The network, from z (B, latent) to y (B, outputs).
        spans: What its outputs are, in order.
        power: Exponent of the likelihood.
    """

    places: Tensor
    factors: Tensor
    squashed: Tensor
    shifts: Tensor

    def __init__(self, layers: nn.Module, spans: Sequence[Span], power: float) -> None:
        super().__init__()
        self.layers = layers
        ends = np.cumsum([span.size for span in spans])
        each = [
            span.affine(int(end) - span.size, power) for span, end in zip(spans, ends, strict=True)
        ]
        names = ("places", "factors", "squashed", "shifts")
        for name, parts in zip(names, zip(*each, strict=True), strict=True):
            self.register_buffer(name, torch.cat(parts))

    def forward(self, z: Tensor) -> Tensor:
        outputs = self.layers(z)[:, self.places]
        return self.factors * outputs + self.squashed * outputs.tanh() + self.shifts


def vae_of(layers: nn.Module, latent_dim: int, spans: Sequence[Span], power: float) -> VAE:
    """The model of columns, in double precision.

    If values repeat, a component may be as narrow as 1e-8 of its column's spread, and float32 would
    not resolve its residuals.
    """
    likelihood = mixed_of(span.likelihood for span in spans)
    decoder = TVAEDecoder(layers, spans, power).double()
    return VAE(decoder, latent_dim, likelihood, table=Table.of([span.column for span in spans]))
