"""Amortised cross-coders whose quality is known. Import as `from amortised_problems import …`."""

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


def narrow_at(vae: cc.VAE, mode: Tensor, log_scale: float) -> cc.Amortised:
    """A network that proposes N(mode, exp(2 log_scale) I) whatever the evidence."""
    numbers = torch.cat([mode, torch.full_like(mode, log_scale)])
    return cc.Amortised.of(vae, Constant(numbers), crosscoders.Gaussian(diagonal=True))
