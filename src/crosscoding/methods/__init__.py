"""Inference methods: each takes a target, returns `Findings` on it, and has its own file.

`METHODS` lists them by the names used on the command line, in the tests and in the docs.
"""

from dataclasses import dataclass

from crosscoding.crosscoders import FCN, Gaussian, InverseAutoregressive, Mixture, Planar, Spline
from crosscoding.errors import unknown_name
from crosscoding.methods.auto import Auto
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.discrete import Discrete
from crosscoding.methods.grid import Grid
from crosscoding.methods.hmc import HMC
from crosscoding.methods.importance import Importance
from crosscoding.methods.laplace import Laplace
from crosscoding.methods.natural_gradient import NaturalGradient
from crosscoding.methods.rejection import Rejection
from crosscoding.methods.tempered_smc import TemperedSMC
from crosscoding.methods.variational import Variational

__all__ = [
    "HMC",
    "METHODS",
    "Auto",
    "Discrete",
    "Entry",
    "Grid",
    "Importance",
    "Laplace",
    "Method",
    "NaturalGradient",
    "Rejection",
    "Report",
    "TemperedSMC",
    "Variational",
    "method",
    "silent",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


@dataclass(frozen=True)
class Entry:
    """A listed method: its settings, a short label and one line of explanation."""

    method: Method
    label: str
    summary: str


METHODS = {
    "auto": Entry(
        Auto(), "Auto", "a cascade: cheap methods first, others where needed, with a verdict"
    ),
    "gvi": Entry(
        Variational(Gaussian()), "GVI", "a Gaussian with full covariance, fitted by Algorithm 1"
    ),
    "nf": Entry(
        Variational(Planar(16)), "NF", "a planar normalizing flow of 16 layers, by Algorithm 1"
    ),
    "fcn": Entry(
        Variational(FCN()),
        "FCN",
        "a fully connected network, by Algorithm 1; latent <= 3, no bound",
    ),
    "mixture": Entry(
        Variational(Mixture(4)),
        "MVI",
        "a mixture of 4 Gaussians with full covariance, by Algorithm 1",
    ),
    "spline": Entry(Variational(Spline()), "NSF", "a neural spline flow, by Algorithm 1"),
    "iaf": Entry(
        Variational(InverseAutoregressive()),
        "IAF",
        "an inverse autoregressive flow, by Algorithm 1; fast draws, slow densities",
    ),
    "hmc": Entry(HMC(), "HMC", "Hamiltonian Monte Carlo, 16 chains"),
    "rejection": Entry(
        Rejection(), "RS", "rejection sampling from the prior: exact, low dimensions only"
    ),
    "grid": Entry(Grid(), "Grid", "integration over a grid: exact, latent <= 3"),
    "laplace": Entry(Laplace(), "Laplace", "a Gaussian at each mode that several climbs find"),
    "ng": Entry(
        NaturalGradient(),
        "NG",
        "a Gaussian with full covariance, fitted by natural gradients in tens of steps",
    ),
    "importance": Entry(
        Importance(), "IS", "importance sampling from a mixture that adapts to p(z|x)"
    ),
    "smc": Entry(
        TemperedSMC(), "SMC", "particles from the prior to p(z|x), over rising temperatures"
    ),
    "discrete": Entry(
        Discrete(), "Discrete", "discrete latents only: enumerates all states, or anneals particles"
    ),
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: There is no such method; the message names the nearest one.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name].method
