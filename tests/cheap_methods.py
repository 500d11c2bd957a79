"""Every method of the registry, with settings that take a fraction of a second."""

from dataclasses import replace

import pytest

from crosscoding.crosscoders import FCN, Gaussian, InverseAutoregressive, Mixture, Planar, Spline
from crosscoding.methods import (
    HMC,
    METHODS,
    Auto,
    Grid,
    Importance,
    Laplace,
    Method,
    NaturalGradient,
    Rejection,
    TemperedSMC,
    Variational,
)

CHEAP = {
    Variational: {"steps": 60, "num_draws": 8, "num_fresh": 100},
    HMC: {"num_chains": 4, "num_warmup": 40, "num_draws": 20, "num_leapfrog": 5},
    Rejection: {"num_draws": 60},
    Grid: {"tolerance": 0.02},
    Auto: {"num_draws": 400},
    Laplace: {"num_starts": 2, "num_fresh": 100},
    NaturalGradient: {"steps": 40, "num_fresh": 100},
    Importance: {"rounds": 1, "num_adapt": 200, "num_draws": 200},
    TemperedSMC: {"num_particles": 160, "num_moves": 1, "num_leapfrog": 2},
}
SMALL = {
    Gaussian: Gaussian(),
    Planar: Planar(3),
    FCN: FCN((8,)),
    Mixture: Mixture(2),
    Spline: Spline(2, bins=3, hidden=4),
    InverseAutoregressive: InverseAutoregressive(4, layers=1),
}


def cheap(method: Method) -> Method:
    """The method with settings that take a fraction of a second."""
    if isinstance(method, Variational):
        method = replace(method, crosscoder=SMALL.get(type(method.crosscoder), method.crosscoder))
    return replace(method, **CHEAP.get(type(method), {}))


LISTED = {name: cheap(entry.method) for name, entry in METHODS.items()}
every_method = pytest.mark.parametrize("method", LISTED.values(), ids=LISTED.keys())
