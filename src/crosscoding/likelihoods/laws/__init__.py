"""p(t|z) of elements that are known only in part, and the mass of what is known."""

from crosscoding.likelihoods.laws.base import Law, MixtureLaw, WeightedLaw
from crosscoding.likelihoods.laws.counts import CountLaw, counts_near, some_count_agrees
from crosscoding.likelihoods.laws.exponential import TruncatedExponential
from crosscoding.likelihoods.laws.finite import FiniteLaw
from crosscoding.likelihoods.laws.known import Known, log_normal
from crosscoding.likelihoods.laws.normal import TruncatedNormal, tilted_normal
from crosscoding.likelihoods.laws.student import TruncatedStudent

__all__ = [
    "CountLaw",
    "FiniteLaw",
    "Known",
    "Law",
    "MixtureLaw",
    "TruncatedExponential",
    "TruncatedNormal",
    "TruncatedStudent",
    "WeightedLaw",
    "counts_near",
    "log_normal",
    "some_count_agrees",
    "tilted_normal",
]
