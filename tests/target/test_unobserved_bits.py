"""log p and answers are to the bit those of a model without the unobserved elements."""

from collections.abc import Callable, Sequence

import pytest
import torch
from overflowing import DTYPES
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding import likelihoods
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)
from crosscoding.methods import HMC, Laplace, TemperedSMC

FAST = {  # a few steps of each: one bit that differs shows at once
    "hmc": HMC(num_chains=3, num_warmup=6, num_draws=4, num_leapfrog=3),
    "laplace": Laplace(num_starts=2, num_fresh=40),
    "smc": TemperedSMC(60, num_moves=1, num_leapfrog=2),
}
OBSERVED = 7


class SideBySide(nn.Module):
    """Columns of the seven weights; None stands for one that overflows where |z₁| > 2.5."""

    def __init__(
        self, columns: Sequence[int | None], params: Callable[[Tensor], Tensor], num: int, dtype
    ) -> None:
        super().__init__()
        self.columns, self.params, self.num = columns, params, num
        weight = torch.randn(OBSERVED, num, 2, generator=seeded(0), dtype=torch.double)
        self.weight = nn.Parameter(0.8 * weight.to(dtype))

    def column(self, z: Tensor, index: int | None) -> Tensor:
        if index is not None:
            terms = z[:, None] * self.weight[index]
            return self.params((terms[..., 0] + terms[..., 1] + 0.1)[:, None])
        own = self.params(0.1 * z[:, :1, None].expand(-1, 1, self.num))
        grown = ((14.2 if z.dtype == torch.float32 else 113.6) * z[:, :1].square()).exp()
        jump = grown - grown.clamp(max=1e30 if z.dtype == torch.float32 else 1e250)
        return own + jump.reshape(-1, *[1] * (own.ndim - 1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.column(z, index) for index in self.columns], 1)


def positive_second(numbers: Tensor) -> Tensor:
    return torch.stack([numbers[..., 0], 0.1 + numbers[..., 1].abs()], -1)


def first(numbers: Tensor) -> Tensor:
    return numbers[..., 0]


def rate(numbers: Tensor) -> Tensor:
    return 0.1 + numbers[..., 0].abs()


def probability(numbers: Tensor) -> Tensor:
    return numbers[..., 0].sigmoid()


def increasing(numbers: Tensor) -> Tensor:
    return (numbers.abs() + 0.2).cumsum(-1) - 1.5


def themselves(numbers: Tensor) -> Tensor:
    return numbers


KINDS: dict[str, tuple[Likelihood, Callable[[Tensor], Tensor], int, float]] = {
    "Gaussian": (Gaussian(0.5), first, 1, 0.4),
    "Gaussian of decoded scale": (Gaussian(None), positive_second, 2, 0.4),
    "Gaussian of log variance": (Gaussian(None, log_variance=True), themselves, 2, 0.4),
    "Laplace of decoded scale": (likelihoods.Laplace(None), positive_second, 2, 0.4),
    "Student-t of decoded scale": (StudentT(3.0, None), positive_second, 2, 0.4),
    "Bernoulli": (Bernoulli(), first, 1, 1.0),
    "probabilities": (Bernoulli(logits=False), probability, 1, 1.0),
    "continuous Bernoulli": (ContinuousBernoulli(), first, 1, 0.3),
    "Poisson": (Poisson(), first, 1, 2.0),
    "rates": (Poisson(log_rate=False), rate, 1, 2.0),
    "negative binomial": (NegativeBinomial(2.0), first, 1, 2.0),
    "negative binomial of decoded count": (NegativeBinomial(None), positive_second, 2, 2.0),
    "beta-binomial": (BetaBinomial(8, None), positive_second, 2, 3.0),
    "classes": (Categorical(3), themselves, 3, 1.0),
    "ordinal": (Ordinal([-1.0, 0.0, 1.5]), first, 1, 2.0),
    "ordinal of decoded cuts": (Ordinal(None, 4), increasing, 3, 2.0),
    "discretised": (DiscretizedLogistic(None, bins=11), positive_second, 2, 0.4),
}
BESIDE = [None, 0, 1, 2, None, None, 3, 4, 5, None, 6]


def with_and_without(kind: str, dtype: torch.dtype, shape: str) -> list[cc.VAETarget]:
    """The target beside columns that overflow and without them; in a table, of one part or two."""
    likelihood, params, num, value = KINDS[kind]
    targets = []
    for columns in (BESIDE, range(OBSERVED)):
        decoder = SideBySide(columns, params, num, dtype)
        mask = torch.tensor([column is not None for column in columns])
        if shape == "(2, 1)":  # of which the second observes less
            mask = torch.stack([mask, mask & torch.tensor([c not in (2, 5) for c in columns])])
            mask = mask[:, None]
        values = torch.full(mask.shape, value, dtype=dtype)
        vae = cc.VAE(decoder, 2, likelihood)
        targets.append(cc.VAETarget(vae, cc.Evidence(values, mask)))
    return targets


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["()", "(2, 1)"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_p_and_its_derivatives_are_to_the_bit_those_without_the_other_columns(
    kind, shape, dtype
):
    results = []
    for target in with_and_without(kind, dtype, shape):
        flat = target.flatten().prepare()
        num = flat.num_queries
        z = torch.randn(9, num, 2, generator=seeded(3), dtype=torch.double).to(dtype)
        z[:2, :, 0] = 2.8  # where the other columns are infinite
        points = z.clone().requires_grad_()
        log_joint = flat.log_joint(points)
        (slope,) = torch.autograd.grad(log_joint.sum(), points)
        shared = z[:, 0]
        results.append(
            [
                log_joint.detach(),
                slope,
                flat.pairwise_log_likelihood(shared),
                flat.log_likelihood_at(shared, torch.arange(9) % num),
                flat.log_likelihood_of_bank()[1],
                flat.curvature(z),
                flat.curvature_along(z, nn.functional.normalize(torch.ones_like(z), dim=-1)),
                target.log_likelihood(z.reshape(9, *target.batch_shape, 2)),
            ]
        )
    for index, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert wanted.isfinite().all()
        assert torch.equal(found, wanted), index


@pytest.mark.parametrize("method", FAST.values(), ids=FAST)
@pytest.mark.parametrize(
    "kind",
    [
        "Gaussian of log variance",
        "Student-t of decoded scale",
        "rates",
        "negative binomial of decoded count",
        "ordinal",
    ],
)
def test_answers_are_to_the_bit_those_without_the_other_columns(kind, method):
    found, wanted = (
        cc.condition(target.vae, target.evidence, method, seed=0)
        for target in with_and_without(kind, torch.float32, "(2, 1)")
    )
    for name in ("draws", "log_evidence", "log_evidence_error", "ess"):
        pair = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True, msg=name)


TABLE = ["Gaussian of decoded scale", "rates", "classes", "negative binomial of decoded count"]


class Table(nn.Module):
    """Columns of several kinds, each as (kind, column); column None as of `SideBySide`."""

    def __init__(self, columns: Sequence[tuple[str, int | None]], dtype: torch.dtype) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            SideBySide([column], *KINDS[kind][1:3], dtype) for kind, column in columns
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([column(z).flatten(1) for column in self.each], 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", FAST.values(), ids=FAST)
def test_a_table_answers_to_the_bit_as_without_its_other_columns(method, dtype):
    """One of its kinds is not observed at all, and one query observes less than the other."""
    answers = []
    for others in (True, False):
        columns = [
            (kind, column)
            for kind in (TABLE if others else TABLE[:3])
            for column in ([None, 0, 1, None, 2] if kind != TABLE[3] else [None, 3])
            if others or column is not None
        ]
        seen = [column is not None and kind != TABLE[3] for kind, column in columns]
        less = [own and column != 1 for own, (_, column) in zip(seen, columns, strict=True)]
        vae = cc.VAE(Table(columns, dtype), 2, Mixed([(KINDS[kind][0], 1) for kind, _ in columns]))
        evidence = cc.Evidence(torch.ones(2, len(columns), dtype=dtype), torch.tensor([seen, less]))
        answers.append(cc.condition(vae, evidence, method, seed=0))
    for name in ("draws", "log_evidence", "ess"):
        pair = [getattr(answer, name) for answer in answers]
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True, msg=name)
