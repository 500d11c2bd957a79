"""Diagnostics of draws and weights, on plain tensors; they know nothing about VAEs."""

from crosscoding.diagnostics.chains import chain_ess, r_hat
from crosscoding.diagnostics.importance import importance_ess, log_mean_exp, mean_error
from crosscoding.diagnostics.mmd import kernel_mmd
from crosscoding.diagnostics.pareto import pareto_k_limit, pareto_smooth

__all__ = [
    "chain_ess",
    "importance_ess",
    "kernel_mmd",
    "log_mean_exp",
    "mean_error",
    "pareto_k_limit",
    "pareto_smooth",
    "r_hat",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
