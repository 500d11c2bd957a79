"""A prior of every kind in two dimensions, in double precision."""

from functools import cache

import torch
from problems import seeded
from torch import Tensor, distributions, nn

from crosscoding.crosscoders import (
    Crosscoder,
    Fitted,
    InverseAutoregressive,
    Planar,
    Spline,
    fit_to_draws,
)
from crosscoding.priors import (
    Autoregressive,
    Flow,
    Gaussian,
    Hierarchical,
    Mixture,
    Normal,
    Prior,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.double)


def filled(network: nn.Module) -> nn.Module:
    """A network in double with weights that do not depend on the global generator."""
    network = network.double()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=index))
    return network


def mlp(num_in: int, num_out: int) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(num_in, 4), nn.Tanh(), nn.Linear(4, num_out)))


def narrow(network: nn.Module) -> nn.Module:
    """The network with small weights in its last layer."""
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.mul_(0.3)
    return network


class Masked(nn.Module):
    """Mean and log-variance of z_1, and of z_2 given z_1, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = narrow(mlp(1, 2))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.inner(z[:, :1]).chunk(2, -1)
        first = torch.full_like(mean, 0.5)
        return torch.cat([first, mean], 1), torch.cat([first, log_variance], 1)


def masked_linear() -> nn.Linear:
    """The same as one linear layer, which is saved as data."""
    linear = nn.Linear(2, 4).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0, 0], [0.7, 0], [0, 0], [0.4, 0]]))
        linear.bias.copy_(torch.tensor([0.3, -0.2, 0.1, -0.5]))
    return linear


class Sinh(nn.Module):
    """A bijection of the user's: z = sinh(s ε) / s."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.double))

    def forward_and_ladj(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return (self.scale * noise).sinh() / self.scale, (self.scale * noise).cosh().log().sum(-1)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise = (self.scale * z).asinh() / self.scale
        return noise, (self.scale * noise).cosh().log().sum(-1)


def bent(num: int = 300) -> Tensor:
    """Draws of a curved distribution, (num, 1, 2)."""
    z = drawn(num, 1, 2)
    z[..., 1] += 0.5 * z[..., 0].square()
    return z


@cache
def fitted(family: type[Crosscoder], *settings: int) -> Fitted:
    """A cross-coder fitted to these draws, once for all tests, as it takes a second or two."""
    return fit_to_draws(family(*settings), bent(), generator=seeded())


def transformed() -> distributions.Distribution:
    base = distributions.MultivariateNormal(
        torch.tensor([0.2, -0.1], dtype=torch.double),
        scale_tril=torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=torch.double),
    )
    sides = torch.tensor([6.0, 8.0], dtype=torch.double)
    steps = [distributions.SigmoidTransform(), distributions.AffineTransform(-sides / 2, sides)]
    return distributions.TransformedDistribution(base, steps)


def exponential() -> distributions.Distribution:
    base = distributions.Normal(torch.zeros(2).double(), torch.tensor([0.5, 0.3]).double())
    return distributions.TransformedDistribution(
        distributions.Independent(base, 1), [distributions.ExpTransform()]
    )


def mixture() -> Mixture:
    return Mixture(
        torch.tensor([0.2, 0.3, 0.5]),
        torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=torch.double),
        torch.tensor([[0.5, 0.3], [1.0, 1.0], [0.2, 0.7]], dtype=torch.double),
    )


AS_DATA = {
    "normal": lambda: Normal(2),
    "diagonal": lambda: Gaussian(drawn(2), torch.tensor([0.5, 2.0]).double()),
    "full": lambda: Gaussian(drawn(2), torch.tensor([[0.7, 0.0], [-0.4, 1.2]], dtype=torch.double)),
    "one scale": lambda: Gaussian(drawn(2), 1.7),
    "planar": lambda: Flow(fitted(Planar, 3)),
    "spline": lambda: Flow(fitted(Spline, 2, 4, 8)),
    "two maps": lambda: Flow(
        [
            fitted(InverseAutoregressive, 4, 1),
            fitted(Planar, 2),
        ]
    ),
    "levels": lambda: Hierarchical((1, 1), [narrow(mlp(1, 2))]),
    "mixture": mixture,
    "vamp": lambda: Mixture.vamp(drawn(3, 5), narrow(mlp(5, 4))),
    "autoregressive": lambda: Autoregressive(2, masked_linear()),
}
"""Priors that are saved as data."""

WITH_CODE = {
    "transformed": lambda: Flow(transformed()),
    "exponential": lambda: Flow(exponential()),
    "transforms": lambda: Flow(
        [distributions.AffineTransform(0.2, 0.4), distributions.ExpTransform()], latent_dim=2
    ),
    "bijection": lambda: Flow(Sinh(), latent_dim=2),
    "mixed maps": lambda: Flow([Sinh(0.3), fitted(Planar, 2)]),
    "masked": lambda: Autoregressive(2, Masked()),
}
"""Priors that hold code of the user's."""

PRIORS = AS_DATA | WITH_CODE


def prior_of(name: str) -> Prior:
    return PRIORS[name]()
