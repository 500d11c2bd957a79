"""p(z|t) of a few complete data, each a Gaussian at its best mode, for checks of a model.

    p(z|t) ≈ N(z*, H⁻¹),   log p(t) ≈ log p(z*, t) − ½ log |H| + ½ D log 2π

Source: MacKay (2003), chapter 27. Differs in: nothing. `methods.Laplace` weighs all modes and
checks them; here the best of a few climbs is used unchecked, which is cheap and good enough to
judge a model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoding.covariates import mapped
from crosscoding.evidence import Evidence
from crosscoding.methods.numerics.gauss_newton import climb, half_log_determinant
from crosscoding.model.bound import free
from crosscoding.model.vae import VAE
from crosscoding.target.vae_target import VAETarget

_OPERATIONS = 1e11  # multiply-adds for all climbs: a few seconds
_FEWEST, _MOST = 4, 64  # climbs
_MANY = 16  # climbs, from which each datum gets two
_STEPS, _EVERY = 25, 9  # most steps of a climb, and how many share one curvature
_PASSES = 3  # of the decoder, per step


@dataclass(frozen=True, eq=False)
class Fits:
    """Gaussian approximations of p(z|t) for N data.

    Args:
        vae: The model, for the covariates of these data.
        data: The data, (N, *data).
        mean: z*, shape (N, latent).
        precision: H, in double, (N, latent, latent).
        log_prob: Approximate log p(t) in nats, (N,).
    """

    vae: VAE
    data: Tensor
    mean: Tensor
    precision: Tensor
    log_prob: Tensor


def fit(vae: VAE, data: Tensor, first: Tensor | None) -> Fits:
    """Fits to the first few data, as many as a bounded amount of work allows.

    Args:
        vae: The model, bound to the covariates of the data if its decoder takes any.
        data: Complete data in its support, (N, *data).
        first: A guess at z for each, (N, latent), or None.
    """
    passes = _STEPS * _PASSES + -(-_STEPS // _EVERY) * vae.latent_dim
    num_climbs = int(max(min(_OPERATIONS / (passes * vae.operations), _MOST), _FEWEST))
    num_starts = 2 if num_climbs >= _MANY else 1
    data = data[: num_climbs // num_starts]
    given = mapped(lambda tensor: tensor[: len(data)], vae.given)
    whole = torch.ones_like(data, dtype=torch.bool)
    target = VAETarget(free(vae), Evidence(data, whole, given=given))
    points, log_likelihood = target.log_likelihood_of_bank()
    starts = points[log_likelihood.topk(min(num_starts, len(points)), dim=0).indices]
    if first is not None:
        starts = torch.cat([first[None, : len(data)], starts])
    modes = climb(target, starts[:num_starts], _STEPS, every=_EVERY)
    constant = 0.5 * vae.latent_dim * math.log(2 * math.pi)
    log_prob = modes.log_joint.double() - half_log_determinant(modes.precision) + constant
    best = log_prob.argmax(0), torch.arange(len(data), device=data.device)
    return Fits(target.vae, data, modes.z[best], modes.precision[best], log_prob[best])
