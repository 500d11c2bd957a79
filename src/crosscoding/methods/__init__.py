"""Methods: from a target to what is found out about it. One file a method."""

from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.grid import Grid
from crosscoding.methods.hmc import HMC
from crosscoding.methods.rejection import Rejection
from crosscoding.methods.variational import Variational

__all__ = ["HMC", "Grid", "Method", "Rejection", "Report", "Variational", "silent"]
