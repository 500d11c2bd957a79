"""The contract of priors over discrete latents: D places, each with one of K values.

z holds the values as floating-point numbers, shape (*sample, D). The decoder takes them as numbers
that gradients can move: zeros and ones as they are, codes as one-hot rows. Such an *input* has
shape (*sample, *input_shape).
"""

from abc import abstractmethod

import torch
from torch import Tensor

from crosscoding.covariates import Covariates
from crosscoding.errors import check_count
from crosscoding.persistence.layers import MOST_VALUES
from crosscoding.priors.base import Prior


class DiscretePrior(Prior):
    """p(z) over D places with K values each.

    Args:
        num_places: D, ≥ 1.
        num_values: K, ≥ 2.

    Attributes:
        latent_dim: D.
        num_values: K.
        input_shape: Shape of what the decoder takes for one z.
    """

    noise_dim: int | None = None
    input_shape: torch.Size

    def __init__(self, num_places: int, num_values: int) -> None:
        super().__init__()
        check_count("the number of places", num_places, 1)
        check_count("the number of values", num_values, 2)
        if num_places * num_values > MOST_VALUES:
            raise ValueError(
                f"expected at most {MOST_VALUES} values in all places together, got "
                f"{num_places} x {num_values}"
            )
        self.latent_dim, self.num_values = num_places, num_values

    @abstractmethod
    def log_density(self, inputs: Tensor) -> Tensor:
        """log p(z) + log Z in nats, a differentiable function of inputs (*sample, *input_shape)."""

    @property
    def log_normaliser(self) -> Tensor:
        """log Z in nats, a scalar."""
        return torch.zeros(())

    @property
    def log_normaliser_error(self) -> float:
        """Standard error of log Z in nats; 0 where it is exact."""
        return 0.0

    @abstractmethod
    def inputs_of(self, z: Tensor) -> Tensor:
        """The decoder's inputs for z; z is not checked."""

    @abstractmethod
    def changes(self, z: Tensor, slope: Tensor) -> Tensor:
        """By how much a function grows, to first order, if a place takes another value.

        Args:
            z: Values, (*sample, D).
            slope: The function's gradient with respect to the inputs, (*sample, *input_shape).
        Returns:
            Shape (*sample, D, K); 0 at the value that the place has.
        """

    @property
    def num_states(self) -> int:
        """Number of different z, K^D."""
        return self.num_values**self.latent_dim

    def states(self, start: int, stop: int, like: Tensor) -> Tensor:
        """The z with these numbers, from 0 to K^D − 1: (stop − start, D), the last place fastest.

        Only for K^D < 2^63.
        """
        number = torch.arange(start, min(stop, self.num_states), device=like.device)
        powers = self.num_values ** torch.arange(self.latent_dim - 1, -1, -1, device=like.device)
        return (number[:, None] // powers % self.num_values).to(like)

    def decoder_input(self, z: Tensor) -> Tensor:
        self.check(z)
        return self.inputs_of(z)

    def log_prob(self, z: Tensor, given: Covariates = None) -> Tensor:
        self.check(z)
        return self.log_density(self.inputs_of(z)) - self.log_normaliser

    def check(self, z: Tensor) -> None:
        """Raise ValueError unless z (*sample, D) holds whole numbers from 0 to K − 1."""
        if z.ndim < 1 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected z of shape (*sample, {self.latent_dim}), got {tuple(z.shape)}"
            )
        wrong = ~((z >= 0) & (z < self.num_values) & (z == z.floor()))
        if wrong.any():
            raise ValueError(
                f"expected z to hold whole numbers from 0 to {self.num_values - 1}, got "
                f"{z[wrong][0].item():.6g}"
            )


def checked_logits(logits: object, name: str = "logits") -> Tensor:
    """The logits, if they are a tensor of finite floating-point numbers.

    Raises:
        TypeError: They are not a floating-point tensor.
        ValueError: Some of them are NaN or infinite.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"expected {name} to be a floating-point tensor, got {got}")
    if not logits.isfinite().all():
        raise ValueError(f"expected finite {name}, got NaN or infinity")
    return logits
