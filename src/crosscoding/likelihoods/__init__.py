"""Likelihoods p(t|z): what the numbers that a decoder puts out mean."""

from crosscoding.likelihoods.base import Likelihood
from crosscoding.likelihoods.binary import Bernoulli, ContinuousBernoulli
from crosscoding.likelihoods.continuous import Gaussian, Laplace, StudentT
from crosscoding.likelihoods.counts import BetaBinomial, NegativeBinomial, Poisson

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "ContinuousBernoulli",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
]
