"""Amortised cross-coders whose quality is known. Import as `from amortised_problems import …`."""

import math

import torch
from problems import LinearGaussianProblem
from torch import Tensor, nn

import crosscoding as cc
from crosscoding import crosscoders


class ExactGaussian(nn.Module):
    """The exact posterior of a linear-Gaussian VAE for any mask, as the numbers of a `Gaussian`.

    factor: What its standard deviations are multiplied by.
    """

    def __init__(self, problem: LinearGaussianProblem, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        weight, bias, scale = problem._parameters()
        for name, tensor in {"weight": weight, "bias": bias, "precision": scale**-2}.items():
            self.register_buffer(name, tensor.to(problem.truth))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        each = mask * self.precision
        identity = torch.eye(self.weight.shape[1]).to(values)
        precision = identity + self.weight.mT @ (each[..., None] * self.weight)
        covariance = torch.linalg.inv(precision)
        mean = (covariance @ ((each * (values - self.bias)) @ self.weight)[..., None])[..., 0]
        root = self.factor * torch.linalg.cholesky(covariance)
        row, column = torch.tril_indices(*identity.shape, -1)
        diagonal = root.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([mean, diagonal, root[..., row, column]], -1)


class Constant(nn.Module):
    """The same numbers for every query."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.numbers.expand(len(values), -1).clone()


class TwoBumps(nn.Module):
    """A likelihood of one element that is the sum of two Gaussian bumps in z and a constant.

    The bumps lie at z₀ = 1 and z₀ = −1.5 and have the given widths; the second has `share` of the
    mass of both. log p(x|z) at x = 0 is −mean(z)²/2 − log √2π, with mean(z) so chosen.
    """

    def __init__(self, dim: int, widths: tuple[float, float], share: float) -> None:
        super().__init__()
        centres = torch.zeros(2, dim)
        centres[:, 0] = torch.tensor([1.0, -1.5])
        self.register_buffer("centres", centres)
        variances = torch.tensor(widths) ** 2
        self.register_buffer("variances", variances)
        log_mass = 0.5 * dim * (variances / (1 + variances)).log()
        log_mass = log_mass - 0.5 * centres.square().sum(-1) / (1 + variances)
        height = float(log_mass[0] - log_mass[1]) + math.log(share / (1 - share))
        self.heights = 0.0, height, -12.0
        log_masses = [*log_mass.double(), torch.zeros((), dtype=torch.double)]
        terms = [mass + own for mass, own in zip(log_masses, self.heights, strict=True)]
        constant = 0.5 * math.log(2 * math.pi)
        self.log_evidence = float(torch.stack(terms).logsumexp(0)) - height - 1 - constant

    def forward(self, z: Tensor) -> Tensor:
        squared = (z[..., None, :] - self.centres).square().sum(-1) / (2 * self.variances)
        parts = torch.cat([-squared, torch.zeros_like(squared[..., :1])], -1)
        height = (parts + torch.tensor(self.heights).to(z)).logsumexp(-1)
        return (2 * (self.heights[1] + 1 - height).clamp_min(1e-6)).sqrt()[..., None]

    def network(self, vae: cc.VAE) -> cc.Amortised:
        """A network that proposes the exact posterior of the first bump alone."""
        variance = self.variances[0]
        mean = self.centres[0] / (1 + variance)
        return narrow_at(vae, mean, 0.5 * float((variance / (1 + variance)).log()))


def narrow_at(vae: cc.VAE, mode: Tensor, log_scale: float) -> cc.Amortised:
    """A network that proposes N(mode, exp(2 log_scale) I) whatever the evidence."""
    numbers = torch.cat([mode, torch.full_like(mode, log_scale)])
    return cc.Amortised.of(vae, Constant(numbers), crosscoders.Gaussian(diagonal=True))
