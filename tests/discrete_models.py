"""Small models with discrete latents, whose answers are known by enumeration."""

import torch
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.priors import Bernoulli, Categorical, DiscretePrior

NUM_ELEMENTS = 40


class Shifted(nn.Module):
    """Logits of each place from the one-hot codes before it."""

    def __init__(self, places: int, codes: int, seed: int = 0) -> None:
        super().__init__()
        self.shape = places, codes
        self.weight = nn.Parameter(
            torch.randn(places, codes, places, codes, generator=seeded(seed))
        )
        before = torch.ones(places, places).tril(-1)
        self.register_buffer("mask", before[:, None, :, None])

    def forward(self, one_hot: Tensor) -> Tensor:
        return torch.einsum("ikjl,njl->nik", self.weight * self.mask, one_hot)


def pairs_of(dim: int, seed: int = 0, strength: float = 0.7) -> Tensor:
    """Symmetric pairs with a zero diagonal."""
    upper = (strength * torch.randn(dim, dim, generator=seeded(seed))).triu(1)
    return upper + upper.mT


def priors() -> dict[str, DiscretePrior]:
    """Priors of at most 2^12 states."""
    logits = torch.randn(12, generator=seeded(1))
    return {
        "bernoulli": Bernoulli(logits),
        "pairs": Bernoulli(logits, pairs_of(12)),
        "codes": Categorical(4, 5, logits=torch.randn(5, 4, generator=seeded(2))),
        "uniform": Categorical(3, 6),
        "autoregressive": Categorical(4, 5, network=Shifted(5, 4)),
    }


def model(prior: DiscretePrior, strength: float = 3.0, seed: int = 0) -> cc.VAE:
    """A model with this prior; with a larger strength, p(z|x) is narrower and has more modes."""
    size = prior.input_shape.numel()
    first, last = nn.Linear(size, 24), nn.Linear(24, NUM_ELEMENTS)
    with torch.no_grad():
        for layer in (first, last):
            scale = strength / layer.in_features**0.5
            layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=seeded(seed)))
            layer.bias.zero_()
    decoder = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)
    return cc.VAE(decoder, prior.latent_dim, cc.likelihoods.Bernoulli(), prior=prior)


def queries(vae: cc.VAE, num: int = 6, share: float = 0.4) -> cc.Evidence:
    """Evidence that the model itself drew, with a mask for each query."""
    chance = torch.rand(num, NUM_ELEMENTS, generator=seeded(5))
    return cc.Evidence(vae.sample_prior(num, seed=3), chance < share)


def every_state(prior: DiscretePrior) -> Tensor:
    """All z, by counting, (K^D, D)."""
    ranges = [torch.arange(prior.num_values)] * prior.latent_dim
    return torch.cartesian_prod(*ranges).reshape(-1, prior.latent_dim).float()


def by_brute_force(vae: cc.VAE, evidence: cc.Evidence) -> tuple[Tensor, Tensor]:
    """All z, and log p(z, x) of each query there, decoded one query after the other, in double."""
    assert isinstance(vae.prior, DiscretePrior)
    z = every_state(vae.prior)
    logits = vae.decode(z).double()
    of_element = -nn.functional.softplus(torch.where(evidence.values[:, None] > 0, -logits, logits))
    log_likelihood = torch.where(evidence.mask[:, None], of_element, 0.0).sum(-1)
    return z, vae.prior.log_prob(z).double()[:, None] + log_likelihood.mT
