"""Networks such as users write, in a module that saved models can name."""

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
