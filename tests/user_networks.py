"""Networks such as users write, in a module that saved models can name."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A decoder that is not a stack of layers: it has a skip connection."""

    def __init__(self, hidden: int, sizes: tuple[int, int] = (2, 6)) -> None:
        super().__init__()
        self.first = nn.Linear(sizes[0], hidden)
        self.skip = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, sizes[1])

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).tanh()
        return self.last(h + self.skip(h).relu())


class Shifted(Residual):
    """Another decoder with the same weights."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + 1


class Pair(nn.Module):
    """An encoder that outputs a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(data), self.log_variance(data)


class Outer:
    """A class that holds another."""

    class Inner(nn.Linear):
        """A nested class."""


class Normed(nn.Module):
    """A decoder that is not a stack of layers, with computed weights."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 5))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(5, num_outputs))

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.first(z).tanh())


class Function(nn.Module):
    """A linear layer after, or before, a function."""

    def __init__(self, before=lambda z: z, after=lambda output: output) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.linear = nn.Linear(2, 5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 10).reshape(5, 2))
            self.linear.bias.copy_(torch.linspace(0.5, -0.5, 5))

    def forward(self, z: Tensor) -> Tensor:
        return self.after(self.linear(self.before(z)))
