"""VAEs with continuous z: plain decoders with different q(z|t) or bounds, and ladders.

`Plain` and `ImportanceWeighted` have the prior N(0, I). A `Ladder` has levels, with the lowest one
next to the data:

    p(z) = N(z_L; 0, I) Π_l N(z_l; μ_l(z_{l+1}), diag σ²_l(z_{l+1})),   p(t|z) = p(t|z_1).

Its q(z|t) goes down through the same levels: each level's Gaussian is the product of the prior's
and one suggested by the data.

Source: Kingma & Welling (2014); Burda, Grosse & Salakhutdinov (2016), eq. 8 and 13–14; Sønderby et
al. (2016), eq. 14–19. Differs in: gradients of the k-sample bound come from a few draws that are
resampled by their weights, which leaves them unbiased; the ladder has no batch norm, and means and
log-variances of its p(z_l | z_{l+1}) are bounded.
"""

from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from crosscoding.zoo.networks import mlp
from crosscoding.zoo.training.families.base import NUM_PIXELS, Family, gaussian, standard_normal
from crosscoding.zoo.training.families.posteriors import Posterior

# Bounds of means and log-variances between levels. With standard deviations of at least e^-6.5,
# float32 resolves each level's noise; without a bound, training made some as small as 1e-13.
# Imposed on a ladder trained without a bound, −13 lowers the bound on log p(t) by 0.15 nats, and
# −10 by 0.9.
_LEAST, _MOST = -13.0, 64.0


class Plain(Family):
    """A VAE with the prior N(0, I), trained by its ELBO.

    Args:
        posterior: q(z|t).
        hidden: Widths of the decoder's hidden layers.
    """

    def __init__(self, posterior: Posterior, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_dim = posterior.latent_dim
        self.posterior = posterior
        self.decoder = mlp((self.latent_dim, *hidden, NUM_PIXELS))

    def log_weights(self, data: Tensor, num: int, *, generator: Generator) -> Tensor:
        z, log_q = self.posterior(data, num, generator=generator)
        return standard_normal(z) + self.log_likelihood(z, data) - log_q


class ImportanceWeighted(Plain):
    """A VAE with the prior N(0, I), trained by the importance-weighted bound of k draws.

    Args:
        posterior, hidden: As in `Plain`.
        num_weights: Number k of draws, each with its weight.
        num_followed: Number of draws, chosen from the k by weight, that the gradient goes through.
    """

    def __init__(
        self, posterior: Posterior, hidden: tuple[int, ...], num_weights: int, num_followed: int
    ) -> None:
        super().__init__(posterior, hidden)
        self.num_weights, self.num_followed = num_weights, num_followed

    def objective(self, data: Tensor, *, warmth: float, generator: Generator) -> Tensor:
        """The k-sample bound; its gradient is that of log w at draws chosen by weight."""
        state = generator.get_state()
        with torch.no_grad():
            log_weights = self.log_weights(data, self.num_weights, generator=generator)
            bound = log_weights.logsumexp(0) - torch.tensor(float(self.num_weights)).log()
            chosen = torch.multinomial(
                log_weights.softmax(0).mT, self.num_followed, True, generator=generator
            ).mT
        after = generator.get_state()
        generator.set_state(state)
        noise = torch.randn(self.num_weights, len(data), self.latent_dim, generator=generator)
        generator.set_state(after)
        own = noise.gather(0, chosen.unsqueeze(-1).expand(-1, -1, self.latent_dim))
        followed = self._log_weights_at(data, own).mean(0)
        return bound + followed - followed.detach()

    def _log_weights_at(self, data: Tensor, noise: Tensor) -> Tensor:
        """log w at given noise (num, B, latent), for a diagonal q(z|t)."""
        mean, log_variance = self.posterior.encoder(data).float().chunk(2, -1)
        z = mean + (0.5 * log_variance).exp() * noise
        return standard_normal(z) + self.log_likelihood(z, data) - gaussian(z, mean, log_variance)


class Ladder(Family):
    """A ladder VAE.

    Args:
        levels: Sizes of z_1 … z_L, the level next to the data first.
        hidden: Width of each level's deterministic layer and of the networks between levels.
        decoder_hidden: Widths of the decoder's hidden layers.
    """

    def __init__(
        self, levels: tuple[int, ...], hidden: tuple[int, ...], decoder_hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.levels, self.latent_dim = levels, sum(levels)
        ups = pairwise((NUM_PIXELS, *hidden))
        self.up = nn.ModuleList(nn.Sequential(nn.Linear(*size), nn.LeakyReLU()) for size in ups)
        sizes = zip(hidden, levels, strict=True)
        self.suggest = nn.ModuleList(nn.Linear(width, 2 * size) for width, size in sizes)
        self.down = nn.ModuleList(
            nn.Sequential(*mlp((above, width, 2 * below)), nn.Hardtanh(_LEAST, _MOST))
            for (below, above), width in zip(pairwise(levels), hidden[1:], strict=True)
        )
        self.decoder = mlp((levels[0], *decoder_hidden, NUM_PIXELS))

    def log_weights(self, data: Tensor, num: int, *, generator: Generator) -> Tensor:
        log_likelihood, divergence = self._terms(data, num, generator)
        return log_likelihood - divergence

    def objective(self, data: Tensor, *, warmth: float, generator: Generator) -> Tensor:
        log_likelihood, divergence = self._terms(data, 1, generator)
        return log_likelihood[0] - warmth * divergence[0]

    def _terms(self, data: Tensor, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """log p(t|z) and log q(z|t) − log p(z), both (num, B)."""
        h, suggested = data, []
        for up, suggest in zip(self.up, self.suggest, strict=True):
            h = up(h)
            suggested.append(suggest(h).float().chunk(2, -1))
        z, divergence = None, torch.zeros(())
        for level in reversed(range(len(self.levels))):
            mean, log_variance = suggested[level]
            if z is None:
                prior = torch.zeros_like(mean), torch.zeros_like(mean)
                own = mean, log_variance
            else:
                prior = self.down[level](z).float().chunk(2, -1)
                own = _product((mean, log_variance), prior)
            noise = torch.randn(num, len(data), self.levels[level], generator=generator)
            z = own[0] + (0.5 * own[1]).exp() * noise
            divergence = divergence + gaussian(z, *own) - gaussian(z, *prior)
        assert z is not None
        return self.log_likelihood(z, data), divergence


def _product(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the normalised product of two diagonal Gaussians."""
    log_precision = torch.logaddexp(-first[1], -second[1])
    share = (-first[1] - log_precision).exp()
    return share * first[0] + (1 - share) * second[0], -log_precision
