"""Priors p(z) of a VAE: what a decoder's latent variable is drawn from."""

from crosscoding.priors.autoregressive import Autoregressive
from crosscoding.priors.base import ContinuousPrior, Prior
from crosscoding.priors.bernoulli import Bernoulli
from crosscoding.priors.categorical import Categorical
from crosscoding.priors.discrete import DiscretePrior
from crosscoding.priors.flow import Flow
from crosscoding.priors.gaussian import Gaussian
from crosscoding.priors.hierarchical import Hierarchical
from crosscoding.priors.mixture import Mixture
from crosscoding.priors.normal import Normal

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "ContinuousPrior",
    "DiscretePrior",
    "Flow",
    "Gaussian",
    "Hierarchical",
    "Mixture",
    "Normal",
    "Prior",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
