"""Decoders of many kinds, each with a likelihood, queries, and the exact answer where possible.

`PRODUCTS` consist of independent blocks with two latent dimensions and a few data elements each:
log p(x) is the sum over blocks, each integrated on a fine grid, and thus exact for any latent size.
`TRAINED` are small decoders that are trained on real data, in under a minute each, and cached. All
are plain modules as users write them; nothing is adapted to this library.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from reference import CACHE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import crosscoding as cc
from crosscoding import likelihoods as of

KEPT = CACHE / "others"


@dataclass(frozen=True)
class Case:
    """A model, queries, and a function that computes log p(x) exactly, if there is one."""

    vae: cc.VAE
    evidence: cc.Evidence
    exact: Callable[[], Tensor] | None = None


# ---- products of blocks --------------------------------------------------------------------------


class Product(nn.Module):
    """Independent blocks, each of which decodes two latent dimensions."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, z: Tensor) -> Tensor:
        parts = [block(z[:, 2 * i : 2 * i + 2]) for i, block in enumerate(self.blocks)]
        return torch.cat(parts, dim=1)


class Block(nn.Module):
    """A random network with two inputs, and a function from its output to parameters."""

    def __init__(self, num: int, last: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, num))
        self.last = last
        for index, parameter in enumerate(self.parameters()):
            generator = torch.Generator().manual_seed(100 * seed + index)
            nn.init.normal_(parameter, 0, (1.2, 0.5, 0.45, 0.5)[index], generator=generator)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.layers(z))


def product(
    dim: int,
    num: int,
    likelihood: Callable[[int], of.Likelihood],
    last: Callable[[Tensor], Tensor] = lambda h: h,
    *,
    share: float = 0.6,
    dtype: torch.dtype = torch.float32,
    queries: int = 8,
) -> Case:
    """A model of dim / 2 blocks with `num` outputs; `likelihood` takes the number of blocks."""
    blocks = [Block(num, last, seed).to(dtype) for seed in range(dim // 2)]
    vae = cc.VAE(Product(blocks), dim, likelihood(len(blocks)))
    truth = vae.sample_prior(queries, seed=1)
    masks = [cc.random_mask(vae.data_shape, share, seed=i) for i in range(queries)]
    evidence = cc.Evidence(truth, torch.stack(masks))

    def exact() -> Tensor:
        parts = evidence.values.split(truth.shape[1] // len(blocks), 1)
        observed = evidence.mask.split(truth.shape[1] // len(blocks), 1)
        total = torch.zeros(queries, dtype=torch.double)
        for block, values, mask in zip(blocks, parts, observed, strict=True):
            alone = cc.VAE(block, 2, likelihood(1))
            grid = cc.methods.Grid(tolerance=2e-4)
            total += cc.condition(alone, cc.Evidence(values, mask), grid, seed=0).log_evidence
        return total

    return Case(vae, evidence, exact)


def pairs(h: Tensor) -> Tensor:
    """A location and a positive scale for each element."""
    location, width = h.chunk(2, -1)
    return torch.stack([location, 0.05 + F.softplus(width - 1)], -1)


def mixed_columns(h: Tensor) -> Tensor:
    """Parameters of `Mixed([Gaussian(None), Poisson(), Categorical(3), StudentT()])`."""
    scale = 0.05 + F.softplus(h[:, 1:2] - 1)
    return torch.cat([h[:, :1], scale, h[:, 2:]], 1)


def columns(num_blocks: int) -> of.Likelihood:
    block = (of.Gaussian(None), of.Poisson(), of.Categorical(3), of.StudentT(4.0, 0.3))
    return of.Mixed(block * num_blocks)


def classes(h: Tensor) -> Tensor:
    return 1.5 * h.unflatten(-1, (-1, 5))


PRODUCTS: dict[str, Callable[[], Case]] = {
    "student-t, D = 8": lambda: product(8, 8, lambda _: of.StudentT(4.0, 0.3)),
    "laplace, D = 8, float64": lambda: product(
        8, 16, lambda _: of.Laplace(None), pairs, dtype=torch.double
    ),
    "discretized, D = 8": lambda: product(
        8, 8, lambda _: of.DiscretizedLogistic(0.03), lambda h: h.sigmoid()
    ),
    "beta-binomial, D = 8": lambda: product(8, 8, lambda _: of.BetaBinomial(20, 10.0)),
    "negative binomial, D = 8": lambda: product(
        8, 16, lambda _: of.NegativeBinomial(), lambda h: pairs(2 * h) * torch.tensor([1.0, 3.0])
    ),
    "mixed, D = 8": lambda: product(8, 7, columns, mixed_columns),
    "poisson, D = 20": lambda: product(20, 8, lambda _: of.Poisson(), lambda h: h + 1),
    "categorical, D = 20": lambda: product(20, 40, lambda _: of.Categorical(5), classes),
    "ordinal, D = 20": lambda: product(
        20, 8, lambda _: of.Ordinal((-1.0, 0.0, 1.5)), lambda h: 2 * h
    ),
    "student-t, D = 20": lambda: product(20, 8, lambda _: of.StudentT(4.0, 0.3)),
    "continuous Bernoulli, D = 2": lambda: product(
        2, 20, lambda _: of.ContinuousBernoulli(), lambda h: 4 * h
    ),
}


# ---- trained decoders ----------------------------------------------------------------------------


class Table(nn.Module):
    """A residual network with two heads, (mean, scale)."""

    def __init__(self, latent: int, num: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent, 64)
        self.inner = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.mean, self.log_scale = nn.Linear(64, num), nn.Linear(64, num)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(z)
        for layer in self.inner:
            h = h + layer(F.silu(h))
        return self.mean(h), self.log_scale(h).clamp(-4, 3).exp()


class Frey(nn.Module):
    """Transposed convolutions with skip connections from z; faces of 28 x 20."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.lin = nn.Linear(latent, 32 * 7 * 5)
        self.up1 = nn.ConvTranspose2d(32, 24, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(24, 16, 4, 2, 1)
        self.skip = nn.Linear(latent, 24)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.elu(self.lin(z)).unflatten(1, (32, 7, 5))
        h = F.elu(self.up1(h) + self.skip(z)[:, :, None, None])
        return self.out(F.elu(self.up2(h))).sigmoid()[:, 0]


class Attention(nn.Module):
    """Self-attention between 7 x 7 patches of a digit; outputs 28 x 28 logits."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(latent, 16 * 48)
        self.place = nn.Parameter(torch.randn(16, 48) / 10)
        self.attend = nn.MultiheadAttention(48, 4, batch_first=True)
        self.norm = nn.LayerNorm(48)
        self.out = nn.Sequential(nn.Linear(48, 128), nn.GELU(), nn.Linear(128, 49))

    def forward(self, z: Tensor) -> Tensor:
        h = F.gelu(self.tokens(z)).unflatten(1, (16, 48)) + self.place
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        patches = self.out(h).unflatten(2, (7, 7)).unflatten(1, (4, 4))
        return patches.transpose(2, 3).flatten(3).flatten(1, 2)


def _stored(name: str, part: str) -> Tensor:
    with np.load(Path(os.environ["CROSSCODING_DATA"]) / f"{name}.npz") as arrays:
        return torch.from_numpy(arrays[part])


def wine() -> Tensor:
    table = _stored("uci", "wine-quality-red").float()
    return (table - table.mean(0)) / table.std(0)


def frey() -> Tensor:
    return _stored("freyfaces", "images").float().reshape(-1, 28, 20) / 255


def digits() -> Tensor:
    return _stored("mnist", "train_images")[:20_000].float() / 255


def learnt(
    name: str, decoder: nn.Module, latent: int, data: Tensor, likelihood: of.Likelihood, steps: int
) -> cc.VAE:
    """A VAE with a trained decoder; training runs once, and the weights are cached."""
    path = KEPT / f"{name}.safetensors"
    if not path.is_file():
        _train(decoder, latent, data, likelihood, steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(decoder.state_dict(), path)
    decoder.load_state_dict(load_file(path))
    return cc.VAE(decoder, latent, likelihood)


def _train(
    decoder: nn.Module, latent: int, data: Tensor, likelihood: of.Likelihood, steps: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    size = data[0].numel()
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 2 * latent)
    )
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    for _ in range(steps):
        x = data[torch.randint(len(data), (128,), generator=generator)]
        mean, log_scale = encoder(x).chunk(2, 1)
        eps = torch.randn(mean.shape, generator=generator)
        output = decoder(mean + log_scale.exp() * eps)
        params = likelihood.join(output) if isinstance(output, tuple) else output
        fit = likelihood.log_prob(params, x).flatten(1).sum(1)
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale
        optimizer.zero_grad()
        (kl.sum(1) - fit).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 100.0)
        optimizer.step()


def asked(vae: cc.VAE, data: Tensor, shares: tuple[float, ...], queries: int = 8) -> Case:
    """Queries about random data, with the given shares of elements observed in turn."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(2))[:queries]
    masks = [
        cc.random_mask(vae.data_shape, shares[i % len(shares)], seed=i) for i in range(queries)
    ]
    return Case(vae, cc.Evidence(data[order], torch.stack(masks)))


def of_table() -> Case:
    data = wine()
    torch.manual_seed(0)
    vae = learnt("wine", Table(5, 12), 5, data, of.StudentT(4.0, None), 4000)
    return asked(vae, data, (0.3, 0.7))


def of_faces() -> Case:
    data = frey()
    torch.manual_seed(0)
    vae = learnt("frey", Frey(10), 10, data, of.DiscretizedLogistic(0.05), 1500)
    return asked(vae, data, (0.05, 0.25))


def of_digits() -> Case:
    data = digits()
    torch.manual_seed(0)
    vae = learnt("digits", Attention(20), 20, data, of.ContinuousBernoulli(), 1500)
    return asked(vae, data, (0.05, 0.25))


def of_grey_digits() -> Case:
    """Digits with 8 grey values as classes, the decoder with the widest output."""
    data = (digits() * 7).round()
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Linear(12, 200), nn.ReLU(), nn.Linear(200, 784 * 8), nn.Unflatten(1, (28, 28, 8))
    )
    vae = learnt("grey", decoder, 12, data, of.Categorical(8), 1000)
    return asked(vae, data, (0.05, 0.25))


TRAINED: dict[str, Callable[[], Case]] = {
    "wine: residual, two heads, student-t, D = 5": of_table,
    "frey: convolutions, discretized, D = 10": of_faces,
    "digits: attention, continuous Bernoulli, D = 20": of_digits,
    "digits: mlp, 8 grey classes, D = 12": of_grey_digits,
}
