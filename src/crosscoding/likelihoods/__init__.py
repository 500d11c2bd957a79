"""Likelihoods p(t|z): what a decoder's outputs mean."""

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.binary import Bernoulli, ContinuousBernoulli
from crosscoding.likelihoods.categories import Categorical, Ordinal
from crosscoding.likelihoods.continuous import Gaussian, Laplace, StudentT
from crosscoding.likelihoods.counts import BetaBinomial, NegativeBinomial, Poisson
from crosscoding.likelihoods.discretized_logistic import DiscretizedLogistic
from crosscoding.likelihoods.log_normal import LogNormal
from crosscoding.likelihoods.mixed import Mixed
from crosscoding.likelihoods.mixture import Mixture
from crosscoding.likelihoods.zero_inflated import ZeroInflated

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "Mixed",
    "Mixture",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflated",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
