"""A conditional VAE, trained for a single split of the datum into evidence and query.

    ELBO(y|x) = E_{q(z|x,y)}[log p(y|x,z)] − KL[q(z|x,y) ‖ p(z|x)]

Each of its three networks has the hidden and latent sizes of the VAE that it is compared with. Both
Gaussians are diagonal.

Source: Sohn, Lee & Yan (2015), eq. 4. Differs in: no hybrid objective.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from crosscoding.random import generator_from, normal


@dataclass(frozen=True)
class CVAERecipe:
    """How a conditional VAE is trained.

    Args:
        hidden: Width of the hidden layer of each network.
        latent_dim: Size of z.
        epochs: Passes over the data.
        batch_size: Data per step.
        learning_rate: Adam's initial rate; it decays to zero along half a cosine.
    """

    hidden: int
    latent_dim: int
    epochs: int
    batch_size: int = 256
    learning_rate: float = 2e-3


class ConditionalVAE(nn.Module):
    """p(z|x), q(z|x, y) and p(y|x, z) of binary data, for one mask.

    Args:
        mask: Which elements are evidence, boolean, shape (E,).
        recipe: Sizes.
        generator: Draws the initial weights.
    """

    def __init__(self, mask: Tensor, recipe: CVAERecipe, *, generator: Generator) -> None:
        super().__init__()
        size, hidden, latent = len(mask), recipe.hidden, recipe.latent_dim
        num_seen = int(mask.sum())
        self.latent_dim = latent
        self.seen, self.unseen = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        with torch.device("meta"):  # torch would draw the weights from its global generator
            prior = _network(num_seen, hidden, 2 * latent)
            recognition = _network(size, hidden, 2 * latent)
            decoder = _network(num_seen + latent, hidden, size - num_seen)
        self.prior = prior.to_empty(device="cpu")
        self.recognition = recognition.to_empty(device="cpu")
        self.decoder = decoder.to_empty(device="cpu")
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def log_weights(self, data: Tensor, noise: Tensor) -> Tensor:
        """log p(y|x,z) + log p(z|x) − log q(z|x,y) at z ~ q(z|x,y), in nats.

        Their mean over draws is the ELBO; the log of the mean of their exponentials is tighter.

        Args:
            data: Complete data, shape (B, E), zeros and ones.
            noise: Standard normal, shape (S, B, latent).
        Returns:
            Shape (S, B).
        """
        x, y = data[:, self.seen], data[:, self.unseen]
        mean, log_std = self.recognition(data).chunk(2, -1)
        prior_mean, prior_log_std = self.prior(x).chunk(2, -1)
        z = mean + log_std.exp() * noise
        logits = self.decoder(torch.cat([x.expand(len(z), *x.shape), z], -1))
        log_likelihood = (y * logits - F.softplus(logits)).sum(-1)
        standard = (z - prior_mean) * (-prior_log_std).exp()
        log_prior = -(0.5 * standard.square() + prior_log_std).sum(-1)
        log_posterior = -(0.5 * noise.square() + log_std).sum(-1)  # D/2 log 2π cancels
        return log_likelihood + log_prior - log_posterior


def train(
    data: Tensor,
    mask: Tensor,
    recipe: CVAERecipe,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, value: None,
) -> ConditionalVAE:
    """Train a conditional VAE for one mask.

    Args:
        data: Zeros and ones, shape (N, E).
        mask: Which elements are evidence, boolean, shape (E,).
        recipe: Sizes and steps.
        seed: Of the initial weights, the order of the data and the draws.
        on_epoch: Called after each epoch with the number of epochs and their mean ELBO in nats.
    """
    generator = generator_from(seed)
    model = ConditionalVAE(mask, recipe, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    num_steps = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(data), generator=generator).split(recipe.batch_size):
            shape = (1, len(rows), recipe.latent_dim)
            noise = normal(shape, generator=generator, like=data)
            values = model.log_weights(data[rows], noise)
            optimizer.zero_grad(set_to_none=True)
            (-values.mean()).backward()
            optimizer.step()
            schedule.step()
            total += values.detach().sum().item()
        on_epoch(epoch + 1, total / len(data))
    return model.requires_grad_(False)


@torch.no_grad()
def log_prob(model: ConditionalVAE, data: Tensor, num_draws: int, *, seed: int) -> Tensor:
    """Importance-weighted lower bound on log p(y|x) in nats, shape (B,).

    Source: Burda, Grosse & Salakhutdinov (2016), eq. 8. Differs in: nothing.
    """
    generator = generator_from(seed)
    parts = []
    for rows in torch.arange(len(data)).split(50):
        noise = normal((num_draws, len(rows), model.latent_dim), generator=generator, like=data)
        weights = model.log_weights(data[rows], noise)
        parts.append(weights.logsumexp(0) - math.log(num_draws))
    return torch.cat(parts)


def _network(fan_in: int, hidden: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, hidden), nn.ReLU(), nn.Linear(hidden, fan_out))
