"""Cross-coders: families of distributions over z that `methods.Variational` fits to p(z|x)."""

from crosscoding.crosscoders.base import Crosscoder, Fitted
from crosscoding.crosscoders.fcn import FCN
from crosscoding.crosscoders.gaussian import Gaussian
from crosscoding.crosscoders.planar import Planar

__all__ = ["FCN", "Crosscoder", "Fitted", "Gaussian", "Planar"]
