"""Cross-coders: families of distributions over z that `methods.Variational` fits to p(z|x)."""

from crosscoding.crosscoders.autoregressive import InverseAutoregressive
from crosscoding.crosscoders.base import Crosscoder, Fitted
from crosscoding.crosscoders.fcn import FCN
from crosscoding.crosscoders.fits_to_draws import fit_to_draws
from crosscoding.crosscoders.gaussian import Gaussian
from crosscoding.crosscoders.mixture import Mixture
from crosscoding.crosscoders.planar import Planar
from crosscoding.crosscoders.spline import Spline

__all__ = [
    "FCN",
    "Crosscoder",
    "Fitted",
    "Gaussian",
    "InverseAutoregressive",
    "Mixture",
    "Planar",
    "Spline",
    "fit_to_draws",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
