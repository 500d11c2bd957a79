"""What the families have in common: p(z), p(t|z), the training q(z|t), and importance weights.

    log w = log p(z) + log p(t|z) − log q(z|t),   z ~ q(z|t)

The mean of log w is the ELBO, and the log of the mean of k weights is a tighter bound.

Source: Burda, Grosse & Salakhutdinov (2016), eq. 8.
"""

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

DATA_SHAPE = (28, 28)
NUM_PIXELS = 784


class Family(nn.Module, ABC):
    """A VAE in training, for black and white digits.

    Attributes:
        latent_dim: Size of z.
        decoder: z (N, latent), as it enters the decoder -> logits (N, 784).
    """

    latent_dim: int
    decoder: nn.Module

    @abstractmethod
    def log_weights(self, data: Tensor, num: int, *, generator: Generator) -> Tensor:
        """log w of `num` draws per datum, in nats: data (B, 784) -> (num, B)."""

    def objective(self, data: Tensor, *, warmth: float, generator: Generator) -> Tensor:
        """What training maximises, for each datum in nats: (B, 784) -> (B,).

        By default the ELBO, from one draw.

        Args:
            data: Digits.
            warmth: Weight of the terms of p(z) and q(z|t), which rises from 0 to 1 in the first
                epochs, for families that use it.
            generator: Draws the noise.
        """
        return self.log_weights(data, 1, generator=generator)[0]

    def start(self, data: Tensor, *, generator: Generator) -> None:
        """Prepare the parameters, given some data (N, 784), before the first step."""

    def log_likelihood(self, inputs: Tensor, data: Tensor) -> Tensor:
        """log p(t|z): decoder inputs (num, B, *input), data (B, 784) -> nats (num, B)."""
        logits = self.decoder(inputs.flatten(0, 1)).float().unflatten(0, inputs.shape[:2])
        return torch.linalg.vecdot(logits, data) - F.softplus(logits).sum(-1)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats: (*sample, dim) -> (*sample,)."""
    return gaussian(z, torch.zeros_like(z), torch.zeros_like(z))


def gaussian(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_variance)) in nats: (*sample, dim) -> (*sample,)."""
    squares = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (squares + log_variance + _LOG_TWO_PI).sum(-1)


_LOG_TWO_PI = 1.8378770664093453
