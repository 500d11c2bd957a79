"""Narrow evidence on a surface that bends, in many dimensions, with its exact log p(x)."""

import math

import torch
from torch import Tensor, nn

import crosscoding as cc

SCALE = 0.01  # of the narrow element


class Bent(nn.Module):
    """f(z) = (z₁ + a (z₂² − 1), z₃); `folded`: |z₁ − ½| instead of z₁."""

    def __init__(self, bend: float, folded: bool = False) -> None:
        super().__init__()
        self.bend, self.folded = bend, folded

    def forward(self, z: Tensor) -> Tensor:
        first = (z[..., 0] - 0.5).abs() if self.folded else z[..., 0]
        return torch.stack([first + self.bend * (z[..., 1].square() - 1), z[..., 2]], -1)


def bent(
    bend: float, values: tuple[float, ...], *, folded: bool = False, latent_dim: int = 24
) -> cc.VAETarget:
    scale = torch.tensor([SCALE, 1.0])
    vae = cc.VAE(Bent(bend, folded), latent_dim, cc.likelihoods.Gaussian(scale))
    data = torch.tensor([[value, 0.4] for value in values])
    evidence = cc.Evidence(data, torch.ones_like(data, dtype=torch.bool))
    return cc.VAETarget(vae, evidence)


def exact_log_evidence(bend: float, values: tuple[float, ...], *, folded: bool = False) -> Tensor:
    """log p(x) of `bent`: z₁ in closed form, z₂ on a grid; a fold without the noise at it."""
    z = torch.linspace(-9, 9, 20001, dtype=torch.double)
    prior = torch.distributions.Normal(0.0, 1.0)
    left = torch.tensor(values, dtype=torch.double)[:, None] - bend * (z.square() - 1)
    first = torch.distributions.Normal(0.0, math.hypot(1.0, SCALE)).log_prob(left)
    if folded:
        both = torch.logaddexp(prior.log_prob(0.5 + left), prior.log_prob(0.5 - left))
        first = torch.where(left > 0, both, -math.inf)
    of_first = (prior.log_prob(z) + first).logsumexp(-1) + (z[1] - z[0]).log()
    return of_first + torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(0.4))
