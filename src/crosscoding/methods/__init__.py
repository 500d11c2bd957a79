"""Methods: from a target to what is found out about it. One file a method."""

from crosscoding.methods.auto import Auto
from crosscoding.methods.base import Method, Report, silent
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
    "Auto",
    "Grid",
    "Importance",
    "Laplace",
    "Method",
    "NaturalGradient",
    "Rejection",
    "Report",
    "TemperedSMC",
    "Variational",
    "silent",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
