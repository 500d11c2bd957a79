"""VAEs with discrete z: binary latents with a pair prior, and a VQ-VAE with a prior over codes.

`BinaryPairs` has 64 binary latents, in groups u and v, and a weight for every pair between them:

    log p(z) = aᵀu + bᵀv + uᵀWv − log Z,   log Z = log Σ_u exp(aᵀu + Σ_j softplus(b_j + (uᵀW)_j))

The sum runs over the smaller group's states, so log Z, its gradient and draws are exact. `Codes` is
a VQ-VAE: the encoder's vector in each place is replaced by the nearest of K codes.

Source: Rolfe (2017), for pair priors; Kool, van Hoof & Welling (2019), eq. 8, for the gradient with
a baseline from the other draws; van den Oord, Vinyals & Kavukcuoglu (2017), eq. 3 and appendix A.1.
Differs in: Rolfe smooths z and samples log Z; unused codes are moved to outputs of the encoder; the
weights of the VQ-VAE come from q ∝ exp(−‖e − c‖² / temperature).
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from crosscoding.zoo.networks import mlp
from crosscoding.zoo.training.families.base import NUM_PIXELS, Family
from crosscoding.zoo.training.families.posteriors import MaskedNetwork


class PairPrior(nn.Module):
    """p(u, v) ∝ exp(aᵀu + bᵀv + uᵀWv), binary, with at most 2^16 states of u.

    Args:
        sizes: Numbers of elements of u and of v.
    """

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.logits = nn.Parameter(torch.zeros(sum(sizes)))
        self.pairs = nn.Parameter(torch.zeros(*sizes))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: (*sample, latent) -> (*sample,)."""
        with torch.autocast("cpu", enabled=False):  # bfloat16 would round log Z
            u, v = z.split(self.sizes, -1)
            return z @ self.logits + ((u @ self.pairs) * v).sum(-1) - self.log_normaliser()

    def log_normaliser(self) -> Tensor:
        """log Z in nats, a scalar."""
        states = torch.arange(2 ** self.sizes[0])[:, None] >> torch.arange(self.sizes[0]) & 1
        u, (a, b) = states.to(self.logits), self.logits.split(self.sizes)
        return (u @ a + F.softplus(b + u @ self.pairs).sum(-1)).logsumexp(0)


class BinaryPairs(Family):
    """A discrete VAE: q(z|t) factorised, p(z) a pair model.

    Args:
        sizes: Numbers of latents in the two groups.
        encoder_hidden, hidden: Widths of the hidden layers of encoder and decoder.
        num_draws: Draws per datum and step, ≥ 2.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        encoder_hidden: tuple[int, ...],
        hidden: tuple[int, ...],
        num_draws: int,
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_draws = sum(sizes), num_draws
        self.prior = PairPrior(sizes)
        self.encoder = mlp((NUM_PIXELS, *encoder_hidden, self.latent_dim))
        self.decoder = mlp((self.latent_dim, *hidden, NUM_PIXELS))

    def log_weights(self, data: Tensor, num: int, *, generator: Generator) -> Tensor:
        log_joint, log_q = self._terms(data, num, generator)
        return log_joint - log_q

    def objective(self, data: Tensor, *, warmth: float, generator: Generator) -> Tensor:
        """The ELBO; its gradient uses the mean over the other draws as a baseline."""
        log_joint, log_q = self._terms(data, self.num_draws, generator)
        value = (log_joint - log_q).detach()
        baseline = (value.sum(0) - value) / (self.num_draws - 1)
        surrogate = log_joint + (value - baseline) * log_q
        return (value + surrogate - surrogate.detach()).mean(0)

    def start(self, data: Tensor, *, generator: Generator) -> None:
        with torch.no_grad():
            self.prior.pairs.normal_(0, 0.01, generator=generator)
            self.prior.logits.zero_()

    def _terms(self, data: Tensor, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """log p(z, t) and log q(z|t), both (num, B)."""
        logits = self.encoder(data).float()
        chance = torch.rand(num, *logits.shape, generator=generator)
        z = (chance < logits.sigmoid()).float()
        log_q = (z * logits - F.softplus(logits)).sum(-1)
        return self.prior.log_prob(z) + self.log_likelihood(z, data), log_q


class Codes(Family):
    """A VQ-VAE with an autoregressive prior, trained together.

    Args:
        places: Number D of places.
        num_codes: Number K of codes.
        code_dim: Size of a code's vector.
        encoder_hidden, hidden: Widths of the hidden layers of encoder and decoder.
        prior_width: Width of the prior's network.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    temperature: Tensor

    def __init__(
        self,
        places: int,
        num_codes: int,
        code_dim: int,
        encoder_hidden: tuple[int, ...],
        hidden: tuple[int, ...],
        prior_width: int,
    ) -> None:
        super().__init__()
        self.latent_dim, self.places, self.num_codes = places, places, num_codes
        self.encoder = mlp((NUM_PIXELS, *encoder_hidden, places * code_dim))
        self.decoder = mlp((places * code_dim, *hidden, NUM_PIXELS))
        self.prior = MaskedNetwork(places, num_codes, prior_width, num_codes)
        self.register_buffer("codes", torch.zeros(num_codes, code_dim))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("temperature", torch.tensor(1.0))

    def start(self, data: Tensor, *, generator: Generator) -> None:
        vectors = self._vectors(data).flatten(0, 1)
        chosen = torch.randperm(len(vectors), generator=generator)[: self.num_codes]
        self.counts.fill_(1.0)
        self.temperature.fill_(1.0)
        self.sums.copy_(vectors[chosen])
        self.codes.copy_(vectors[chosen])

    def objective(self, data: Tensor, *, warmth: float, generator: Generator) -> Tensor:
        """log p(t, z) at the nearest codes, minus a penalty on the encoder's distance from them."""
        vectors = self._vectors(data)
        distances = self._distances(vectors)
        nearest = distances.argmin(-1)
        codes = self.codes[nearest]
        passed = vectors + (codes - vectors).detach()
        log_likelihood = self.log_likelihood(passed.flatten(1)[None], data)[0]
        far = (vectors - codes).square().sum((-1, -2))
        one_hot = F.one_hot(nearest, self.num_codes).to(data)
        self._move_codes(vectors.detach(), one_hot, generator)
        mean_far = far.detach().mean() / self.places
        self.temperature.lerp_(2 * mean_far / self.codes.shape[-1], 0.01)
        return log_likelihood + self._log_prior(one_hot) - _COMMITMENT * far

    @torch.no_grad()
    def log_weights(self, data: Tensor, num: int, *, generator: Generator) -> Tensor:
        log_q = (-self._distances(self._vectors(data)) / self.temperature).log_softmax(-1)
        flat = log_q.exp().flatten(0, 1)
        chosen = torch.multinomial(flat, num, True, generator=generator).mT
        chosen = chosen.unflatten(1, log_q.shape[:2])  # (num, B, D)
        one_hot = F.one_hot(chosen, self.num_codes).to(data)
        inputs = self.codes[chosen].flatten(2)
        log_joint = self._log_prior(one_hot) + self.log_likelihood(inputs, data)
        return log_joint - (one_hot * log_q).sum((-1, -2))

    def _vectors(self, data: Tensor) -> Tensor:
        """The encoder's vectors, (B, D, code)."""
        return self.encoder(data).float().unflatten(1, (self.places, -1))

    def _distances(self, vectors: Tensor) -> Tensor:
        """‖e − c‖² of every vector and code, (B, D, K)."""
        with torch.autocast("cpu", enabled=False):
            products = vectors @ self.codes.mT
        own = vectors.square().sum(-1, keepdim=True)
        return own - 2 * products + self.codes.square().sum(-1)

    def _log_prior(self, one_hot: Tensor) -> Tensor:
        """log p(z) in nats: (*sample, D, K) -> (*sample,)."""
        return (self.prior(one_hot).log_softmax(-1) * one_hot).sum((-1, -2))

    @torch.no_grad()
    def _move_codes(self, vectors: Tensor, one_hot: Tensor, generator: Generator) -> None:
        """Move each code towards the mean of its vectors, and an unused one to some vector."""
        flat, of_code = vectors.flatten(0, 1), one_hot.flatten(0, 1)
        self.counts.lerp_(of_code.sum(0), 1 - _DECAY)
        with torch.autocast("cpu", enabled=False):
            self.sums.lerp_(of_code.mT @ flat, 1 - _DECAY)
        unused = self.counts < _UNUSED * len(flat) / self.num_codes
        others = flat[torch.randint(len(flat), (self.num_codes,), generator=generator)]
        usual = len(flat) / self.num_codes
        self.counts.masked_fill_(unused, usual)
        self.sums.copy_(torch.where(unused[:, None], usual * others, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])


_COMMITMENT = 0.25  # as in the paper
_DECAY = 0.99  # of the running means over batches, as in the paper
_UNUSED = 0.02  # of an equal share of all vectors; a code with fewer is moved
