"""Two groups of states around two patterns, one of which annealed particles miss.

    log p(x|z) = D (a max(m₁ − c₁, 0) + b max(m₂ − c₂, 0)) + constant

m is the overlap of z with a pattern: 1 if they are equal, 0 on average. Between the groups
log p(x|z) is flat, so entropy alone draws particles, away from both. log p(x) is a sum over
overlaps.
"""

import math

import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.priors import Bernoulli


class Wells(nn.Module):
    """A decoder whose first element, if it is 0, has that log-likelihood."""

    def __init__(self, patterns: Tensor, slopes: tuple[float, float], starts: tuple[float, float]):
        super().__init__()
        self.patterns = nn.Parameter(patterns)
        self.slopes, self.starts = slopes, starts
        best = max(slope * (1 - start) for slope, start in zip(slopes, starts, strict=True))
        self.top = patterns.shape[1] * best + 1.0

    def gain(self, overlaps: Tensor) -> Tensor:
        """log p(x|z), without the constant, at overlaps (*sample, 2)."""
        above = (overlaps - overlaps.new_tensor(self.starts)).clamp_min(0)
        return self.patterns.shape[1] * (above * overlaps.new_tensor(self.slopes)).sum(-1)

    def forward(self, z: Tensor) -> Tensor:
        overlaps = (2 * z - 1) @ self.patterns.mT / z.shape[-1]
        first = (2 * (self.top - self.gain(overlaps))).clamp_min(1e-6).sqrt()
        return torch.stack([first, torch.zeros_like(first)], -1)


def wells(dim: int, slopes: tuple[float, float], starts: tuple[float, float], *, opposite: bool):
    """A model, evidence, and the exact log p(x); `dim` is even.

    The second pattern is the first one's opposite, or differs from it in half of the places.
    """
    first = torch.where(torch.rand(dim, generator=seeded(0)) < 0.5, 1.0, -1.0)
    second = first.clone()
    changed = torch.randperm(dim, generator=seeded(1))[: dim if opposite else dim // 2]
    second[changed] *= -1
    decoder = Wells(torch.stack([first, second]), slopes, starts)
    num_same, num_other = dim - len(changed), len(changed)
    same, other = torch.meshgrid(
        torch.arange(num_same + 1), torch.arange(num_other + 1), indexing="ij"
    )
    agree = torch.stack([same + other, same + num_other - other], -1)
    log_count = _log_binomial(num_same)[same] + _log_binomial(num_other)[other]
    log_joint = log_count - dim * math.log(2) + decoder.gain(2 * agree.double() / dim - 1)
    log_evidence = log_joint.flatten().logsumexp(0) - decoder.top - 0.5 * math.log(2 * math.pi)
    prior = Bernoulli(torch.zeros(dim))
    vae = cc.VAE(decoder, dim, cc.likelihoods.Gaussian(1.0), prior=prior)
    return vae, cc.Evidence(torch.zeros(2), torch.tensor([True, False])), float(log_evidence)


def _log_binomial(num: int) -> Tensor:
    of = torch.arange(num + 1, dtype=torch.double)
    return math.lgamma(num + 1) - (of + 1).lgamma() - (num - of + 1).lgamma()
