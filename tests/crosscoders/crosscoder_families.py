"""Every cross-coder, in one list that the tests of all of them run on."""

import pytest
import torch
from problems import seeded
from torch import Tensor

from crosscoding.crosscoders import (
    FCN,
    Crosscoder,
    Fitted,
    Gaussian,
    InverseAutoregressive,
    Mixture,
    Planar,
    Spline,
)
from crosscoding.crosscoders.base import Map

FAMILIES = {
    "Gaussian": Gaussian(),
    "Planar": Planar(4),
    "Planar without affine": Planar(2, affine=False),
    "FCN": FCN((8, 8)),
    "diagonal Gaussian": Gaussian(diagonal=True),
    "low-rank Gaussian": Gaussian(rank=2),
    "Mixture": Mixture(3),
    "Mixture of one": Mixture(1),
    "Spline": Spline(3, bins=4, hidden=5),
    "InverseAutoregressive": InverseAutoregressive(6),
}
MAPS = {name: family for name, family in FAMILIES.items() if isinstance(family, Map)}
DENSITIES = {name: family for name, family in FAMILIES.items() if family.has_density}
BIJECTIVE = {name: family for name, family in MAPS.items() if family.has_density}
MIXTURES = {name: family for name, family in FAMILIES.items() if isinstance(family, Mixture)}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_map = pytest.mark.parametrize("family", MAPS.values(), ids=MAPS)
every_density = pytest.mark.parametrize("family", DENSITIES.values(), ids=DENSITIES)
every_bijective_family = pytest.mark.parametrize("family", BIJECTIVE.values(), ids=BIJECTIVE)
every_mixture = pytest.mark.parametrize("family", MIXTURES.values(), ids=MIXTURES)
B = 3


def fitted(family: Crosscoder, dim: int = 2, noise: float = 0.3, num_queries: int = B) -> Fitted:
    """Members some way from their start, different for each query, in double precision.

    The FCN is kept closer to its start, because it would fold.
    """
    noise = noise if family.has_density else 0.1 * noise
    mean = torch.linspace(-1, 1, num_queries * dim, dtype=torch.double).reshape(num_queries, dim)
    scale = torch.linspace(0.5, 1.2, num_queries * dim, dtype=torch.double).reshape(mean.shape)
    params, generator = family.start(mean, scale, generator=seeded(0)), seeded(1)
    moved = {
        name: p + noise * torch.randn(p.shape, generator=generator, dtype=torch.double)
        for name, p in params.items()
    }
    return Fitted(family, moved, dim)


def points(*shape: int, dim: int = 2) -> Tensor:
    return torch.randn(*shape, B, dim, generator=seeded(2), dtype=torch.double)
