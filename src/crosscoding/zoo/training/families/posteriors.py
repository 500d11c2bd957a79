"""Approximate posteriors q(z|t) of VAEs with a standard normal prior.

    Diagonal         z = μ + σ ε
    PlanarFlow       z = f_K ∘ … ∘ f_1 (μ + σ ε), planar maps whose parameters depend on t
    AutoregressiveFlow   z_k = s_k z_{k−1} + (1 − s_k) m_k,  s_k = sigmoid of a masked network

Each takes data (B, 784) and returns draws z (num, B, latent) and log q(z|t) in nats, (num, B).

Source: Rezende & Mohamed (2015), eq. 10–15; Kingma et al. (2016), algorithm 1. Differs in: the
masked networks of the latter have one hidden layer, and their order is reversed between maps.
"""

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from crosscoding.bijections.planar import constrained, planar
from crosscoding.zoo.networks import mlp
from crosscoding.zoo.training.families.base import NUM_PIXELS, gaussian


class Posterior(nn.Module, ABC):
    """q(z|t) = ∫ q(z|t, ε) N(ε; 0, I): a Gaussian, and maps that may follow it.

    Args:
        latent_dim: Size of z.
        hidden: Widths of the encoder's hidden layers.
        num_extra: How many numbers the encoder outputs besides mean and log-variance.
    """

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], num_extra: int = 0) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = mlp((NUM_PIXELS, *hidden, 2 * latent_dim + num_extra))

    def forward(self, data: Tensor, num: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of z, (num, B, latent), and log q(z|t) in nats, (num, B)."""
        output, dim = self.encoder(data).float(), self.latent_dim
        mean, log_variance, extra = output.split([dim, dim, output.shape[-1] - 2 * dim], -1)
        noise = torch.randn(num, *mean.shape, generator=generator)
        z = mean + (0.5 * log_variance).exp() * noise
        moved, ladj = self.flow(z, extra)
        return moved, gaussian(z, mean, log_variance) - ladj

    @abstractmethod
    def flow(self, z: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """The maps after the Gaussian: z (num, B, latent), extra (B, num_extra) -> z, ladj."""


class Diagonal(Posterior):
    """q(z|t) = N(μ(t), diag σ²(t))."""

    def flow(self, z: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        return z, z.new_zeros(())


class PlanarFlow(Posterior):
    """Planar maps after a diagonal Gaussian.

    Args:
        latent_dim, hidden: As in `Posterior`.
        num_maps: Number K of maps.
    """

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], num_maps: int) -> None:
        super().__init__(latent_dim, hidden, num_maps * (2 * latent_dim + 1))
        self.num_maps = num_maps

    def flow(self, z: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        ladj = z.new_zeros(z.shape[:-1])
        for own in extra.chunk(self.num_maps, -1):
            v, w, bias = own.split([self.latent_dim, self.latent_dim, 1], -1)
            z, step = planar(z, constrained(v, w), w, bias[:, 0])
            ladj = ladj + step
        return z, ladj


class AutoregressiveFlow(Posterior):
    """Inverse autoregressive maps after a diagonal Gaussian.

    Args:
        latent_dim, hidden: As in `Posterior`.
        num_maps: Number of maps.
        width: Width of each map's masked network.
        context: How many numbers the encoder passes to each network.
    """

    def __init__(
        self, latent_dim: int, hidden: tuple[int, ...], num_maps: int, width: int, context: int
    ) -> None:
        super().__init__(latent_dim, hidden, context)
        self.maps = nn.ModuleList(
            MaskedNetwork(latent_dim, 1, width, 2, context) for _ in range(num_maps)
        )

    def flow(self, z: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        ladj = z.new_zeros(z.shape[:-1])
        for network in self.maps:
            shift, gate = network(z.unsqueeze(-1), extra).unbind(-1)
            gate = gate + 2.0  # starts near the identity, as the paper advises
            scale = gate.sigmoid()
            z = (scale * z + (1 - scale) * shift).flip(-1)
            ladj = ladj + F.logsigmoid(gate).sum(-1)
        return z, ladj


class MaskedNetwork(nn.Module):
    """One hidden layer between sequences; output i depends only on the inputs before i.

    Args:
        places: Length D of the sequence.
        inputs: Input numbers per place.
        width: Width of the hidden layer.
        outputs: Output numbers per place.
        context: How many further numbers every output may depend on.

    Source: Germain, Gregor, Murray & Larochelle (2015), eq. 8–9. Differs in: the number of inputs
    that a hidden unit may depend on is spread evenly instead of drawn.
    """

    def __init__(
        self, places: int, inputs: int, width: int, outputs: int, context: int = 0
    ) -> None:
        super().__init__()
        self.shape = places, outputs
        self.first = nn.Linear(places * inputs, width)
        self.second = nn.Linear(width, places * outputs)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self._inputs = inputs

    def forward(self, sequence: Tensor, context: Tensor | None = None) -> Tensor:
        """Sequence (*sample, D, inputs), context (B, context) -> (*sample, D, outputs)."""
        before_hidden, after_hidden = self.masks()
        first, second = self.first, self.second
        h = F.linear(sequence.flatten(-2), first.weight * before_hidden, first.bias)
        if self.context is not None and context is not None:
            h = h + self.context(context)
        output = F.linear(F.elu(h), second.weight * after_hidden, second.bias)
        return output.float().unflatten(-1, self.shape)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Masks of the weights, 1 = kept: (width, D inputs) and (D outputs, width)."""
        (places, outputs), like = self.shape, self.first.weight
        place = torch.arange(places, device=like.device)
        num_seen = torch.arange(len(like), device=like.device) % max(places - 1, 1) + 1
        before = num_seen[:, None] > place.repeat_interleave(self._inputs)
        after = place.repeat_interleave(outputs)[:, None] >= num_seen
        return before.to(like), after.to(like)
