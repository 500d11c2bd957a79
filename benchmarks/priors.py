"""Measures what priors and covariates cost, in decodes and in answers of `Auto`.

    python benchmarks/priors.py [--queries 20]

The decoder has layers of 20, 256 and 784 (in the last two rows, its input is 10 numbers and a
label), and queries observe 20 % of the elements. The first row is a plain model, for comparison.
Times are CPU seconds of one process, which other load on the machine hardly changes.
"""

import argparse
import time

import torch
from torch import Generator, Tensor, nn

import crosscoding as cc
from crosscoding.crosscoders import Planar, Spline, fit_to_draws
from crosscoding.likelihoods import Bernoulli
from crosscoding.model.in_noise import in_noise
from crosscoding.priors import Flow, Gaussian, Hierarchical, Mixture, Prior

_DIM, _SIZE, _LABELS = 20, 784, 10
_POINTS, _REPEATS = 2000, 10  # decoded to time a decode


class Labelled(nn.Module):
    """A decoder of z and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(_LABELS, 16)
        self.first, self.last = nn.Linear(10 + 16, 256), nn.Linear(256, _SIZE)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.last(self.first(torch.cat([z, self.names(label)], -1)).relu())


def network(num_in: int, num_out: int, hidden: int = 64) -> nn.Module:
    return nn.Sequential(nn.Linear(num_in, hidden), nn.Tanh(), nn.Linear(hidden, num_out))


def priors() -> dict[str, Prior | None]:
    generator = Generator().manual_seed(0)
    z = torch.randn(500, 1, _DIM, generator=generator)
    z = z + 0.3 * z.roll(1, -1).square()
    root = torch.linalg.cholesky(torch.cov(z[:, 0].mT))
    return {
        "normal": None,
        "gaussian, full": Gaussian(torch.zeros(_DIM), root),
        "levels 5, 15": Hierarchical((5, 15), [network(5, 30)]),
        "flow, 4 planar": Flow(fit_to_draws(Planar(4), z, generator=generator)),
        "flow, 4 spline": Flow(fit_to_draws(Spline(), z, generator=generator)),
        "mixture of 10": Mixture(torch.ones(10), torch.randn(10, _DIM, generator=generator), 0.5),
    }


def ladder(decoder: nn.Module) -> cc.VAE:
    """Three levels of 8, 12 and 20, of which the decoder takes the last."""
    levels = [network(8, 24), network(12, 40)]
    prior = Hierarchical((8, 12, _DIM), levels, next_only=True, last_only=True)
    return cc.VAE(decoder, prior.latent_dim, Bernoulli(), prior=prior)


@torch.no_grad()
def decode_seconds(vae: cc.VAE) -> float:
    """CPU seconds to decode one point of noise."""
    noise = torch.randn(_POINTS, vae.latent_dim, generator=Generator().manual_seed(0))
    own = in_noise(vae)
    own.decode_flat(noise)
    start = time.process_time()
    for _ in range(_REPEATS):
        own.decode_flat(noise)
    return (time.process_time() - start) / (_POINTS * _REPEATS)


def report(name: str, vae: cc.VAE, evidence: cc.Evidence, decode: str) -> None:
    start = time.process_time()
    posterior = cc.condition(vae, evidence, seed=0, progress=False)
    seconds = (time.process_time() - start) / len(evidence.values)
    decodes = sum(stage.decodes.mean().item() for stage in posterior.trace)
    trusted = posterior.trusted.float().mean().item()
    print(f"{name:24} {decode:>10} {1e3 * seconds:10.0f} {decodes:10.0f} {trusted:9.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=20)
    num = parser.parse_args().queries
    torch.manual_seed(0)
    mask = torch.rand(_SIZE) < 0.2
    decoder = network(_DIM, _SIZE, 256)
    for parameter in decoder.parameters():
        parameter.data *= 2
    print(f"{'prior':24} {'decode, µs':>10} {'query, ms':>10} {'decodes':>10} {'trusted':>9}")
    models = {n: cc.VAE(decoder, _DIM, Bernoulli(), prior=prior) for n, prior in priors().items()}
    for name, vae in (models | {"ladder of 40": ladder(decoder)}).items():
        data = vae.sample_prior(num, seed=0)
        report(name, vae, cc.Evidence(data, mask), f"{1e6 * decode_seconds(vae):.1f}")
    labels = torch.arange(num) % _LABELS
    labelled = Labelled()
    for name, examples in {
        "labels, all known": torch.arange(_LABELS),
        "one known": labels[:1],
    }.items():
        vae = cc.VAE(labelled, 10, Bernoulli(), given=examples)
        data = vae.sample_prior(num, seed=0, given=labels)
        report(name, vae, cc.Evidence(data, mask, given=labels), "")


if __name__ == "__main__":
    main()
