"""The target of Figure 9: a mixture of Gaussians in two dimensions with one distant component.

The paper does not state its mixture. This one has three components that overlap and a distant one.
"""

import math

import torch
from torch import Generator, Tensor

from crosscoding.random import generator_from, normal, uniform
from crosscoding.target.density import DensityTarget

WEIGHTS = (0.3, 0.25, 0.2, 0.25)
MEANS = ((-1.5, -0.5), (0.0, 1.0), (1.5, -0.5), (3.5, 3.0))
SCALES = ((0.7, 0.4), (0.5, 0.5), (0.4, 0.8), (0.5, 0.5))


def log_prob(z: Tensor) -> Tensor:
    """Normalised log-density in nats, (*sample, 2) -> (*sample,)."""
    means, scales = torch.tensor(MEANS).to(z), torch.tensor(SCALES).to(z)
    standard = (z.unsqueeze(-2) - means) / scales
    parts = -0.5 * standard.square().sum(-1) - scales.log().sum(-1) - math.log(2 * math.pi)
    return (parts + torch.tensor(WEIGHTS).to(z).log()).logsumexp(-1)


def sample(num: int, *, seed: int | Generator | None = None) -> Tensor:
    """Exact draws, shape (num, 2)."""
    generator, like = generator_from(seed), torch.empty(0)
    borders = torch.tensor(WEIGHTS).cumsum(0)[:-1].contiguous()
    which = torch.searchsorted(borders, uniform((num,), generator=generator, like=like))
    noise = normal((num, 2), generator=generator, like=like)
    return torch.tensor(MEANS)[which] + torch.tensor(SCALES)[which] * noise


def target() -> DensityTarget:
    """The mixture as a target; its log evidence is 0."""
    return DensityTarget(log_prob, latent_dim=2, prior_scale=3.0)
