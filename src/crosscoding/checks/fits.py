"""p(z|t) of a few whole data, each a Gaussian at its best mode: what checks of a model rest on.

    p(z|t) ≈ N(z*, H⁻¹),   log p(t) ≈ log p(z*, t) − ½ log |H| + ½ D log 2π

Source: MacKay (2003), chapter 27. Differs in: `methods.Laplace` weighs all modes and checks them;
here the best of a few climbs is taken as it is, which is cheap and near enough to judge a model by.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders.precision import covariance_root
from crosscoding.evidence import Evidence
from crosscoding.methods.laplace import climb
from crosscoding.random import normal
from crosscoding.target import VAETarget
from crosscoding.vae import VAE

_OPERATIONS = 2e11  # multiply-adds for all climbs: some seconds
_FEWEST, _MOST = 4, 64  # climbs
_MANY = 16  # climbs, from which on each datum has two
_STEPS, _EVERY = 25, 9  # of a climb, at most, and how many of them with one curvature
_PASSES = 3  # of the decoder, that a step takes


@dataclass(frozen=True, eq=False)
class Fits:
    """Gaussians that stand for p(z|t) of N data.

    Args:
        data: These data, (N, *data).
        mean: z*, shape (N, latent).
        root: L, lower triangular, with L Lᵀ = H⁻¹, in double, (N, latent, latent).
        log_prob: log p(t), about, in nats, (N,).
    """

    data: Tensor
    mean: Tensor
    root: Tensor
    log_prob: Tensor

    def draws(self, num: int, *, generator: Generator) -> Tensor:
        """Draws of z in pairs ± around the mode, 2 num of them: (2 num, N, latent)."""
        half = normal((num, *self.mean.shape), generator=generator, like=self.mean).double()
        spread = torch.einsum("nij,snj->sni", self.root, half).to(self.mean)
        return self.mean + torch.cat([spread, -spread])


def fit(vae: VAE, data: Tensor, first: Tensor | None) -> Fits:
    """Fits of the first few data, as many as a bounded amount of work allows.

    Args:
        vae: The model.
        data: Whole data that it can have, (N, *data).
        first: A guess at z for each, (N, latent), or None.
    """
    passes = _STEPS * _PASSES + -(-_STEPS // _EVERY) * vae.latent_dim
    num_climbs = int(max(min(_OPERATIONS / (passes * vae.operations), _MOST), _FEWEST))
    num_starts = 2 if num_climbs >= _MANY else 1
    data = data[: num_climbs // num_starts]
    target = VAETarget(vae, Evidence(data, torch.ones_like(data, dtype=torch.bool)))
    points, log_likelihood = target.log_likelihood_of_bank()
    starts = points[log_likelihood.topk(min(num_starts, len(points)), dim=0).indices]
    if first is not None:
        starts = torch.cat([first[None, : len(data)], starts])
    modes = climb(target, starts[:num_starts], _STEPS, every=_EVERY)
    root = covariance_root(modes.precision)
    log_volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * vae.latent_dim * math.log(2 * math.pi)
    log_prob = modes.log_joint.double() + log_volume + constant
    best = log_prob.argmax(0), torch.arange(len(data), device=data.device)
    return Fits(data, modes.z[best], root[best], log_prob[best])
