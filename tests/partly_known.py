"""Models with evidence that is not exact values, and their exact answers.

Import as `from partly_known import …`.
"""

import math
from dataclasses import dataclass

import scipy.stats
import torch
from problems import seeded
from torch import Tensor, distributions, nn
from torch.distributions import MultivariateNormal

import crosscoding as cc
from crosscoding import likelihoods

DOUBLE = torch.double
TOTAL = torch.tensor([[1.0, 1.0, 2.0, 0, 0, 0, 0, 0, 0, 0]])


# ---- a table of every kind ----------------------------------------------------------------------


class TableDecoder(nn.Module):
    """Three normal columns, the last of decoded scale, a count, classes, and a Student column."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 13))
        generator = seeded(0)
        with torch.no_grad():
            for weight in self.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise / weight.shape[-1] ** 0.5)

    def forward(self, z: Tensor) -> Tensor:
        output = self.net(z)
        return torch.cat([output[:, :3], output[:, 3:4].abs() + 0.3, output[:, 4:]], 1)


def table_vae() -> cc.VAE:
    """A model of ten columns: 0 to 2 normal, 3 a count, 4 a class, 5 to 7 one-hot, 8, 9."""
    parts = [
        (likelihoods.Gaussian(0.4), 2),
        likelihoods.Gaussian(None),
        likelihoods.Poisson(),
        likelihoods.Categorical(3),
        (likelihoods.Categorical(3, one_hot=True), 3),
        likelihoods.Bernoulli(),
        likelihoods.StudentT(4.0, 0.3),
    ]
    return cc.VAE(TableDecoder(), 2, likelihoods.Mixed(parts))


def table_evidence() -> cc.Evidence:
    """Two queries that differ in what is known: values, noise, intervals, sets and a total."""
    low, high = torch.full((2, 10), math.nan), torch.full((2, 10), math.nan)
    low[0, 3] = 2  # a count of at least 2
    low[1, 9], high[1, 9] = -0.2, 0.3
    low[1, 8] = 1
    allowed = torch.ones(2, 10, 3, dtype=torch.bool)
    allowed[0, 4, 2] = False
    allowed[1, 5, 1] = False  # a one-hot variable that is not of its first class
    values, mask, noise = torch.zeros(2, 10), torch.zeros(2, 10).bool(), torch.zeros(2, 10)
    values[0, 9], values[0, 8], mask[0, 8:] = 0.3, 1, True
    values[1, 1], noise[1, 1], mask[1, 1] = 0.2, 0.3, True
    values[1, 3], noise[1, 3], mask[1, 3] = 2.2, 0.8, True
    return cc.Evidence.all_of(
        [
            cc.Evidence.interval(low, high),
            cc.Evidence.one_of(allowed),
            cc.Evidence(values, mask, noise=noise),
            cc.Evidence.linear(TOTAL, torch.tensor([[1.0], [0.5]])),
        ]
    )


@torch.no_grad()
def table_log_likelihood(vae: cc.VAE, z: Tensor) -> Tensor:
    """log p(x|z) of the two queries at z (N, 2), from distributions of torch and SciPy: (N, 2)."""
    output = vae.decoder(z).double()
    mean, scale = output[:, :3], torch.full((len(z), 3), 0.4, dtype=DOUBLE)
    scale[:, 2] = output[:, 3]
    count = distributions.Poisson(output[:, 4].exp())
    classes = output[:, 5:8].softmax(-1)
    one_hot = output[:, 8:11].softmax(-1)
    one = output[:, 11].sigmoid().log()
    location = output[:, 12]
    weights = TOTAL[0, :3].double()

    first = (1 - count.log_prob(torch.tensor([0.0, 1.0])[:, None]).exp().sum(0)).log()
    first = first + classes[:, :2].sum(-1).log() + one
    first = first + distributions.StudentT(4.0, location, 0.3).log_prob(output.new_tensor(0.3))
    spread = (scale.square() @ weights.square()).sqrt()
    first = first + distributions.Normal(mean @ weights, spread).log_prob(output.new_tensor(1.0))

    ends = (torch.tensor([0.3, -0.2], dtype=DOUBLE)[:, None] - location) / 0.3
    below = torch.as_tensor(scipy.stats.t.cdf(ends.numpy(), 4))
    second = (below[0] - below[1]).log() + one + one_hot[:, 1:].sum(-1).log()
    counts = torch.arange(40.0)[:, None]
    noisy = distributions.Normal(counts.double(), 0.8).log_prob(output.new_tensor(2.2))
    second = second + (count.log_prob(counts) + noisy).logsumexp(0)
    rows = torch.stack([weights, torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE)])
    covariance = rows @ scale.square().diag_embed() @ rows.mT
    covariance = covariance + torch.tensor([0.0, 0.3**2], dtype=DOUBLE).diag()
    sums = MultivariateNormal(mean @ rows.mT, covariance)
    return torch.stack([first, second + sums.log_prob(output.new_tensor([0.5, 0.2]))], -1)


# ---- linear decoders with normal noise ----------------------------------------------------------


@dataclass(frozen=True)
class SumsProblem:
    """t = W z + b + σ ε, of which exact values, noisy values and sums are known.

    Attributes:
        vae: The model, in double.
        evidence: Two queries.
        rows: For each query, what is known: r · t = value, with noise of a standard deviation.
    """

    vae: cc.VAE
    evidence: cc.Evidence
    rows: tuple[tuple[Tensor, Tensor, Tensor], ...]

    def joint(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of t under the model."""
        weight, bias = self.vae.decoder.weight.detach(), self.vae.decoder.bias.detach()
        scale = torch.as_tensor(self.vae.likelihood.scale, dtype=DOUBLE).expand(len(bias))
        return bias, weight @ weight.mT + scale.square().diag()

    def log_evidence(self) -> Tensor:
        """log p(x) in nats, (2,)."""
        mean, covariance = self.joint()
        return torch.stack(
            [
                MultivariateNormal(
                    row @ mean, row @ covariance @ row.mT + noise.square().diag()
                ).log_prob(value)
                for row, value, noise in self.rows
            ]
        )

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of t given what is known, (2, E) and (2, E, E)."""
        mean, covariance = self.joint()
        found = []
        for row, value, noise in self.rows:
            inner = row @ covariance @ row.mT + noise.square().diag()
            gain = torch.linalg.solve(inner, row @ covariance).mT
            found.append((mean + gain @ (value - row @ mean), covariance - gain @ row @ covariance))
        return torch.stack([m for m, _ in found]), torch.stack([c for _, c in found])


def sums_problem() -> SumsProblem:
    """Six elements: one exact, one noisy, an exact sum and a noisy one, different by query."""
    generator = seeded(0)
    decoder = nn.Linear(2, 6).double()
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(6, 2, generator=generator))
        decoder.bias.copy_(torch.randn(6, generator=generator))
    scale = torch.tensor([0.3, 0.2, 0.5, 0.3, 0.4, 0.6], dtype=DOUBLE)
    vae = cc.VAE(decoder, 2, likelihoods.Gaussian(scale))
    operator = torch.tensor([[0, 0, 1.0, 1, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=DOUBLE)
    values = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0.5, 0.2, 0, 0, 0, 0]], dtype=DOUBLE)
    mask = torch.tensor([[True] + [False] * 5, [True, True] + [False] * 4])
    noise = torch.tensor([0.0, 0.3, 0, 0, 0, 0], dtype=DOUBLE)
    sums = torch.tensor([[1.0, 0.5], [0.2, math.nan]], dtype=DOUBLE)
    spread = torch.tensor([0.0, 0.1], dtype=DOUBLE)
    evidence = cc.Evidence(values, mask, noise=noise)
    evidence = evidence & cc.Evidence.linear(operator, sums, spread)
    unit = torch.eye(6, dtype=DOUBLE)
    known = (
        (torch.stack([unit[0], *operator]), [1.0, 1.0, 0.5], [0.0, 0.0, 0.1]),
        (torch.stack([unit[0], unit[1], operator[0]]), [0.5, 0.2, 0.2], [0.0, 0.3, 0.0]),
    )
    rows = tuple(
        (row, torch.tensor(values, dtype=DOUBLE), torch.tensor(spread, dtype=DOUBLE))
        for row, values, spread in known
    )
    return SumsProblem(vae, evidence, rows)
