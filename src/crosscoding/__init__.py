"""Conditional inference on variational autoencoders that are already trained.

Given any observed part x of a datum t = (x, y): what is p(y|x)? `condition` answers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crosscoding import (
    adapters,
    checks,  # noqa: F401 (importing it registers what `VAE.check` calls)
    crosscoders,
    diagnostics,
    likelihoods,
    masks,
    methods,
    priors,
    tables,
    zoo,
)
from crosscoding.amortisation import amortise
from crosscoding.calibration.scale import calibrate_scale
from crosscoding.calibration.twins import calibrate
from crosscoding.conditioning import condition, infer, query_log_prob
from crosscoding.errors import BudgetError, ModelFormatError, NonFiniteError
from crosscoding.evidence import Evidence
from crosscoding.masks import random_mask, rectangle_mask, stroke_mask
from crosscoding.model.amortised import Amortised
from crosscoding.model.bank import Bank
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE
from crosscoding.result.posterior import Posterior
from crosscoding.target.base import Target
from crosscoding.target.density import DensityTarget
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    from crosscoding import batch, plots

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Amortised",
    "Bank",
    "BudgetError",
    "DensityTarget",
    "Evidence",
    "ModelFormatError",
    "NonFiniteError",
    "Posterior",
    "Target",
    "VAETarget",
    "adapters",
    "amortise",
    "batch",
    "calibrate",
    "calibrate_scale",
    "condition",
    "crosscoders",
    "diagnostics",
    "infer",
    "likelihoods",
    "load_vae",
    "masks",
    "methods",
    "plots",
    "priors",
    "query_log_prob",
    "random_mask",
    "rectangle_mask",
    "stroke_mask",
    "tables",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in ("batch", "plots"):  # loaded when first used, as matplotlib takes long to load
        return import_module(f"crosscoding.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
