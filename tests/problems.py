"""Targets with exact answers. Import as `from problems import …`.

| what | exact |
| --- | --- |
| `linear_gaussian_problem()` | p(z|x), log p(x), log p(y|x), for any mask and batch |
| `ill_conditioned_problem()` | log p(x), for any condition number |
| `mixture_target()` | log normaliser (0), mode masses, draws, moments; a separated mode |
| `blocks(dim)` | log normaliser, mode masses, draws, moments; multimodal in any even dimension |
| `mirrored_problem()` | a VAE's two modes ±z*, of mass 1/2 each |
| `mirrored_vae()` | p(z|x) = p(−z|x), for any evidence |
| `Waves(rate)` | log p(x) for fully observed x; a decoder with many local modes |

All closed forms are computed in double precision and returned in the problem's dtype.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Normal

import crosscoding as cc

LOG_2PI = math.log(2 * math.pi)


def seeded(n: int = 0) -> Generator:
    """A generator with this seed."""
    return Generator().manual_seed(n)


def points(*shape: int) -> Tensor:
    """Draws from a standard normal, in double precision, the same for the same shape."""
    return torch.randn(*shape, generator=seeded(0), dtype=torch.double)


# ---- linear-Gaussian VAE ---------------------------------------------------------------------


@dataclass(frozen=True)
class LinearGaussianProblem:
    """t = W z + b + σ ε with z ~ N(0, I), some elements of t observed.

    Every method accepts other evidence, of any batch shape and mask; the default is the problem's.

    Attributes:
        vae: The model, its decoder an nn.Linear.
        evidence: About half of the elements of `truth`, different ones for each query.
        truth: Complete data, drawn from the model, shape (*batch, data_dim).
    """

    vae: cc.VAE
    evidence: cc.Evidence
    truth: Tensor

    @property
    def target(self) -> cc.VAETarget:
        return cc.VAETarget(self.vae, self.evidence)

    def exact_posterior(self, evidence: cc.Evidence | None = None) -> tuple[Tensor, Tensor]:
        """Mean (*batch, latent) and covariance (*batch, latent, latent) of p(z|x)."""
        dtype = self.truth.dtype
        _, mean, covariance, _ = self._solve(self.evidence if evidence is None else evidence)
        return mean.to(dtype), covariance.to(dtype)

    def exact_log_evidence(self, evidence: cc.Evidence | None = None) -> Tensor:
        """log p(x) in nats, shape (*batch,)."""
        evidence = self.evidence if evidence is None else evidence
        return self._solve(evidence)[3].to(self.truth.dtype)

    def exact_query_log_prob(
        self, truth: Tensor | None = None, evidence: cc.Evidence | None = None
    ) -> Tensor:
        """log p(y|x) = log p(x, y) − log p(x) of truth's unobserved elements, nats, (*batch,)."""
        truth = self.truth if truth is None else truth
        evidence = self.evidence if evidence is None else evidence
        whole = torch.where(evidence.mask, evidence.values, truth)
        everything = cc.Evidence(whole, torch.ones_like(evidence.mask))
        difference = self._solve(everything)[3] - self._solve(evidence)[3]
        return difference.to(self.truth.dtype)

    def exact_prediction(self, evidence: cc.Evidence | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of every element of t given x, noise included: (*batch, data_dim).

        Observed elements keep their value and have variance 0.
        """
        evidence = self.evidence if evidence is None else evidence
        weight, bias, scale = self._parameters()
        _, mean, covariance, _ = self._solve(evidence)
        predicted = mean @ weight.mT + bias
        variance = torch.einsum("ei,...ij,ej->...e", weight, covariance, weight) + scale.square()
        predicted = torch.where(evidence.mask, evidence.values.double(), predicted)
        variance = torch.where(evidence.mask, 0.0, variance)
        return predicted.to(self.truth.dtype), variance.to(self.truth.dtype)

    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        linear = self.vae.decoder
        assert isinstance(linear, nn.Linear)
        scale = torch.as_tensor(self.vae.likelihood.scale, dtype=torch.double)
        return linear.weight.double(), linear.bias.double(), scale.expand(linear.out_features)

    def _solve(self, evidence: cc.Evidence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Precision, mean, covariance of p(z|x), and log p(x), in double."""
        weight, bias, scale = self._parameters()
        observed = evidence.mask.double()
        element_precision = observed / scale.square()
        residual = evidence.values.double() - bias
        identity = torch.eye(weight.shape[1], dtype=torch.double)
        precision = identity + torch.einsum("ei,...e,ej->...ij", weight, element_precision, weight)
        covariance = torch.linalg.inv(precision)
        projected = (element_precision * residual) @ weight
        mean = (covariance @ projected.unsqueeze(-1)).squeeze(-1)
        log_evidence = -0.5 * (
            (observed * (LOG_2PI + 2 * scale.log())).sum(-1)
            + torch.linalg.slogdet(precision).logabsdet
            + (element_precision * residual.square()).sum(-1)
            - (projected * mean).sum(-1)
        )
        return precision, mean, covariance, log_evidence


def linear_gaussian_problem(
    latent_dim: int = 3,
    data_dim: int = 8,
    scale: float | Tensor = 0.5,
    batch: tuple[int, ...] | int = (4,),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LinearGaussianProblem:
    """A VAE whose conditionals are all known Gaussians, with data from it, half observed.

    batch: Shape of the batch; an int for one dimension, () for one query.
    """
    generator = seeded(seed)
    batch = (batch,) if isinstance(batch, int) else tuple(batch)
    decoder = nn.Linear(latent_dim, data_dim).to(dtype)
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(data_dim, latent_dim, generator=generator))
        decoder.bias.copy_(torch.randn(data_dim, generator=generator))
    scale = scale.to(dtype) if isinstance(scale, Tensor) else scale
    vae = cc.VAE(decoder, latent_dim, cc.likelihoods.Gaussian(scale))
    z = torch.randn(*batch, latent_dim, generator=generator).to(dtype)
    noise = torch.randn(*batch, data_dim, generator=generator).to(dtype)
    truth = (z @ decoder.weight.mT + decoder.bias + scale * noise).detach()
    mask = torch.rand(*batch, data_dim, generator=generator) < 0.5
    return LinearGaussianProblem(vae, cc.Evidence(truth, mask), truth)


def ill_conditioned_problem(
    latent_dim: int, condition: float, dtype: torch.dtype = torch.float32
) -> tuple[cc.VAETarget, float]:
    """A linear-Gaussian target whose precision has about this condition number, and log p(x).

    One element (two, for more than two latent dimensions) is observed with almost no noise. In the
    other directions p(z|x) is as wide as the prior.
    """
    problem = linear_gaussian_problem(latent_dim, 30, condition**-0.5, batch=1, dtype=dtype)
    num = 1 if latent_dim == 2 else 2
    evidence = cc.Evidence(problem.truth, torch.arange(30) < num)
    weight, bias, scale = problem._parameters()
    # In terms of the few observed elements, log p(x) has no differences of large numbers.
    covariance = weight[:num] @ weight[:num].mT + scale[:num].square().diag()
    normal = torch.distributions.MultivariateNormal(bias[:num], covariance)
    return cc.VAETarget(problem.vae, evidence), normal.log_prob(problem.truth[0, :num]).item()


# ---- bare densities --------------------------------------------------------------------------


class MixtureTarget(cc.DensityTarget):
    """A mixture of axis-aligned Gaussians: log p(z, x) = log_evidence + log Σ_k w_k N(z; m_k, s_k).

    Attributes:
        weights: Masses of the components, (K,), summing to 1.
        means, scales: Means and standard deviations of the components, (K, dim).
        log_evidence: Exact logarithm of the normaliser, a number.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        scales: Tensor,
        *,
        prior_scale: float,
        log_evidence: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights, self.means, self.scales = weights.to(dtype), means.to(dtype), scales.to(dtype)
        self.log_evidence = log_evidence
        super().__init__(
            lambda z: self.log_prob(z) + log_evidence,
            means.shape[-1],
            prior_scale=prior_scale,
            like=torch.empty(0, dtype=dtype),
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log-density in nats, (*sample, dim) -> (*sample,)."""
        standard = (z.unsqueeze(-2) - self.means) / self.scales
        parts = -0.5 * (standard.square() + LOG_2PI).sum(-1) - self.scales.log().sum(-1)
        return (parts + self.weights.log()).logsumexp(-1)

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Exact draws, (num, dim)."""
        which = self.weights.multinomial(num, replacement=True, generator=generator)
        noise = torch.randn(num, self.latent_dim, generator=generator, dtype=self.weights.dtype)
        return self.means[which] + self.scales[which] * noise

    def masses(self, draws: Tensor) -> Tensor:
        """Share of draws (S, *batch, dim) nearest to each component's mean, (*batch, K)."""
        distance = (draws.unsqueeze(-2) - self.means).square().sum(-1)
        nearest = distance.argmin(-1, keepdim=True) == torch.arange(len(self.weights))
        return nearest.to(draws.dtype).mean(0)

    def mean(self) -> Tensor:
        """Exact mean, (dim,)."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Exact covariance, (dim, dim)."""
        centred = self.means - self.mean()
        within = torch.diag_embed(self.weights @ self.scales.square())
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)


def mixture_target(dtype: torch.dtype = torch.float32) -> MixtureTarget:
    """Two components that touch and one far away (mass 0.25, 5 units off), as in Figure 9.

    It is normalised, so its log evidence is 0. `masses` identifies the far (last) mode exactly.
    """
    return MixtureTarget(
        torch.tensor([0.45, 0.3, 0.25]),
        torch.tensor([[-1.2, -0.8], [0.6, 0.0], [3.5, 4.0]]),
        torch.tensor([[0.6, 0.4], [0.4, 0.7], [0.4, 0.4]]),
        prior_scale=3.0,
        dtype=dtype,
    )


class BlocksTarget(cc.DensityTarget):
    """A product of dim / 2 independent blocks, each a 2-d mixture of two separated Gaussians.

    It has 2^(dim / 2) modes, whose masses are products of the block's `weights`.

    Attributes:
        block: The mixture of every block.
        log_evidence: Exact logarithm of the normaliser, a number.
    """

    def __init__(self, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"expected an even dim >= 2, got {dim}")
        self.block = MixtureTarget(
            torch.tensor([0.35, 0.65]),
            torch.tensor([[-1.0, -1.0], [1.0, 1.0]]),
            torch.full((2, 2), 0.4),
            prior_scale=1.0,
            log_evidence=-0.7,
            dtype=dtype,
        )
        self.num_blocks = dim // 2
        self.log_evidence = self.num_blocks * self.block.log_evidence
        super().__init__(
            lambda z: self.block.log_density(z.unflatten(-1, (-1, 2))).sum(-1),
            dim,
            prior_scale=1.5,
            like=torch.empty(0, dtype=dtype),
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log-density in nats, (*sample, dim) -> (*sample,)."""
        return self.block.log_prob(z.unflatten(-1, (-1, 2))).sum(-1)

    def sample(self, num: int, *, generator: Generator) -> Tensor:
        """Exact draws, (num, dim)."""
        draws = self.block.sample(num * self.num_blocks, generator=generator)
        return draws.reshape(num, self.latent_dim)

    def masses(self, draws: Tensor) -> Tensor:
        """Share of draws (S, *batch, dim) in each block's second mode, (*batch, K); truth: 0.65."""
        return self.block.masses(draws.unflatten(-1, (-1, 2)))[..., 1]

    def mean(self) -> Tensor:
        """Exact mean, (dim,)."""
        return self.block.mean().repeat(self.num_blocks)

    def covariance(self) -> Tensor:
        """Exact covariance, (dim, dim)."""
        return torch.block_diag(*[self.block.covariance()] * self.num_blocks)


def blocks(dim: int, *, dtype: torch.dtype = torch.float32) -> BlocksTarget:
    """The product of dim / 2 bimodal blocks; dim is even."""
    return BlocksTarget(dim, dtype=dtype)


# ---- a VAE with two mirrored modes -----------------------------------------------------------


class Even(nn.Module):
    """A linear map of all products z_i z_j, equal at z and −z and at no other points."""

    def __init__(self, latent_dim: int, data_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(latent_dim * (latent_dim + 1) // 2, data_dim)

    def forward(self, z: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(z.shape[-1], z.shape[-1])
        return self.linear(z[:, rows] * z[:, columns])


@dataclass(frozen=True)
class MirroredProblem:
    """A VAE with p(z|x) = p(−z|x), and evidence under which its two modes lie near ±mode.

    Attributes:
        vae: The model.
        evidence: A single query, batch shape (); all elements but the last are observed.
        truth: The complete datum.
        mode: A latent point, (latent,), close to one mode; the other mode is its mirror image.
    """

    vae: cc.VAE
    evidence: cc.Evidence
    truth: Tensor
    mode: Tensor

    @property
    def target(self) -> cc.VAETarget:
        return cc.VAETarget(self.vae, self.evidence)

    def masses(self, draws: Tensor) -> Tensor:
        """Share of draws (S, *batch, latent) on the side of `mode`, (*batch,); truth: 1/2."""
        return (draws @ self.mode > 0).to(draws.dtype).mean(0)


def mirrored_vae(
    latent_dim: int = 2,
    data_dim: int = 6,
    scale: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> cc.VAE:
    """A small VAE whose decoder is even in z, so that p(z|x) = p(−z|x) for any evidence."""
    generator = seeded(seed)
    decoder = Even(latent_dim, data_dim).to(dtype)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return cc.VAE(decoder, latent_dim, cc.likelihoods.Gaussian(scale))


def mirrored_problem(dtype: torch.dtype = torch.float32) -> MirroredProblem:
    """`mirrored_vae` with evidence that leaves exactly two modes, of mass 1/2 each."""
    vae = mirrored_vae(dtype=dtype)
    mode = torch.tensor([1.2, 0.8], dtype=dtype)
    truth = vae.decode(mode)
    mask = torch.arange(len(truth)) < len(truth) - 1
    return MirroredProblem(vae, cc.Evidence(truth, mask), truth, mode)


class Waves(nn.Module):
    """(sin ω z, z): each latent dimension has as many local modes as waves, independently."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([torch.sin(self.rate * z), z], -1)

    def log_evidence(self, x: Tensor, scale: float) -> Tensor:
        """log p(x) in nats, (B,), for fully observed x (B, 2 latent): an integral per dimension."""
        z = torch.linspace(-9, 9, 40_001, dtype=torch.double)
        waves, values = x.double().chunk(2, -1)
        log_joint = Normal(0.0, 1.0).log_prob(z) + (
            Normal(torch.sin(self.rate * z), scale).log_prob(waves[..., None])
            + Normal(z, scale).log_prob(values[..., None])
        )
        return (log_joint.logsumexp(-1) + (z[1] - z[0]).log()).sum(-1)
