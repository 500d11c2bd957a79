"""Outputs for unobserved elements may be infinite, NaN or invalid: p(z|x) ignores them."""

import math

import pytest
import torch
from families import FAMILIES, E, Family
from problems import seeded
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
    StudentT,
)

DOUBLE = torch.double
MORE = {
    "logits": Family(Bernoulli(), lambda n: n[..., 0], None, None),  # pyright: ignore
    "probabilities": Family(Bernoulli(logits=False), lambda n: n[..., 0].sigmoid(), None, None),  # pyright: ignore
    "Gaussian": Family(Gaussian(0.5), lambda n: n[..., 0], None, None),  # pyright: ignore
    "Gaussian of decoded scale": Family(
        Gaussian(None),
        lambda n: torch.stack([n[..., 0], 0.3 + n[..., 1].abs()], -1),
        None,  # pyright: ignore
        None,  # pyright: ignore
    ),
}
ALL = MORE | FAMILIES


class Breaking(nn.Module):
    """Parameters of a family whose last element is not finite where |z₁| > 2.5."""

    def __init__(self, family: Family, size: float | None) -> None:
        super().__init__()
        self.family, self.size = family, size
        num = max(sum(family.likelihood.param_shape), 1)
        weight = torch.randn(E * num, 2, generator=seeded(0), dtype=DOUBLE)
        self.weight = nn.Parameter(0.3 * weight)

    def forward(self, z: Tensor) -> Tensor:
        params = self.family.params((z @ self.weight.mT).unflatten(-1, (E, -1)) + 0.1)
        if self.size is None:
            return params
        grown = (114 * z[:, 0].square()).exp()  # inf from 2.5 on, and so is the derivative
        jump = self.size * (grown - grown.clamp(max=1e250))
        jump = jump.reshape(-1, *[1] * (params.ndim - 1))
        return torch.cat([params[:, :-1], params[:, -1:] + jump], 1)


@pytest.mark.parametrize(
    ("size", "num_observed"),
    [(0.0, 2), (0.0, 5), (1.0, 2), (-1.0, 5)],
    ids=["nan, gathered", "nan, all decoded", "inf, gathered", "-inf, all decoded"],
)
@pytest.mark.parametrize("family", ALL.values(), ids=ALL.keys())
@pytest.mark.slow
def test_values_derivatives_and_curvature_are_those_without_the_element(family, size, num_observed):
    whole = cc.VAE(Breaking(family, None), 2, family.likelihood)
    z = torch.tensor([[[0.3, -0.2]], [[2.9, 0.4]], [[-3.2, 0.1]]], dtype=DOUBLE)
    params = whole.decode_flat(z[:1, 0])
    values = family.values(params)
    mask = torch.arange(E) < num_observed
    results = []
    for vae in (whole, cc.VAE(Breaking(family, size), 2, family.likelihood)):
        target = cc.VAETarget(vae, cc.Evidence(values, mask)).flatten()
        for one in (target, target.prepare()):
            points = z.clone().requires_grad_()
            log_joint = one.log_joint(points)
            (gradient,) = torch.autograd.grad(log_joint.sum(), points)
            direction = nn.functional.normalize(torch.ones_like(z), dim=-1)
            query = torch.zeros(3, dtype=torch.long)
            results.append(
                [
                    log_joint.detach(),
                    one.pairwise_log_likelihood(z[:, 0]),
                    one.log_likelihood_at(z[:, 0], query),
                    one.log_likelihood_of_bank()[1],
                    gradient,
                    one.curvature(z),
                    one.curvature_along(z, direction),
                ]
            )
        assert not target.undefined.any()
    for plain, broken in zip(results[:2], results[2:], strict=True):
        for index, (expected, found) in enumerate(zip(plain, broken, strict=True)):
            assert found.isfinite().all()
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8, msg=str(index))
        assert torch.equal(plain[0], broken[0])


class Table(nn.Module):
    """A Gaussian, a count, a class of three and a rate: only the first is observed and finite."""

    def forward(self, z: Tensor) -> Tensor:
        grown = (114 * z.square()).exp()
        low = -(grown - grown.clamp(max=1e250))
        return torch.cat([0.7 * z, grown, low, z, low + z, 1 + low], -1)


class Alone(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.7 * z


def test_parts_of_a_table():
    table = Mixed([Gaussian(0.5), NegativeBinomial(2.0), Categorical(3), Poisson(log_rate=False)])
    row = torch.tensor([0.3, torch.nan, torch.nan, torch.nan], dtype=DOUBLE)
    vaes = cc.VAE(Double(Table()), 1, table), cc.VAE(Double(Alone()), 1, Gaussian(0.5))
    answers = [
        cc.condition(vae, cc.Evidence.from_nan(row[:num]), seed=0)
        for vae, num in zip(vaes, (4, 1), strict=True)
    ]
    assert torch.equal(answers[0].draws, answers[1].draws)
    assert torch.equal(answers[0].log_evidence, answers[1].log_evidence)
    assert answers[0].trusted


class Double(nn.Module):
    """A decoder in double precision, because of a weight that it does not use."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.unused = decoder, nn.Parameter(torch.zeros(1, dtype=DOUBLE))

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


# ---- meaningful infinities -----------------------------------------------------------------------

CERTAIN: dict[str, tuple[Likelihood, list, float, float]] = {
    "a logit of inf and 1": (Bernoulli(), [math.inf], 1.0, 0.0),
    "a logit of inf and 0": (Bernoulli(), [math.inf], 0.0, -math.inf),
    "a logit of inf and 0.5": (Bernoulli(), [math.inf], 0.5, -math.inf),
    "a logit of -inf and 0": (Bernoulli(), [-math.inf], 0.0, 0.0),
    "a logit of -inf and 1": (Bernoulli(), [-math.inf], 1.0, -math.inf),
    "a log rate of -inf and 0": (Poisson(), [-math.inf], 0.0, 0.0),
    "a log rate of -inf and 2": (Poisson(), [-math.inf], 2.0, -math.inf),
    "a mean of 0 and 0": (NegativeBinomial(2.0), [-math.inf], 0.0, 0.0),
    "a mean of 0 and 1": (NegativeBinomial(2.0), [-math.inf], 1.0, -math.inf),
    "a class that cannot be": (Categorical(3), [[0.0, 0.0, -math.inf]], 2.0, -math.inf),
    "beside a class that cannot be": (Categorical(3), [[0, 0, -math.inf]], 1.0, -math.log(2)),
    "no class": (Categorical(2), [[-math.inf, -math.inf]], 1.0, math.nan),
    "a scale of 0": (Gaussian(None), [[0.0, 0.0]], 0.0, math.nan),
    "a scale below 0": (StudentT(3.0, None), [[0.0, -1.0]], 0.0, math.nan),
    "a total count below 0": (NegativeBinomial(None), [[0.0, -1.0]], 0.0, math.nan),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CERTAIN)
def test_parameters_at_their_limits(case, dtype):
    """Alone, and beside an ordinary element whose log p must survive."""
    likelihood, given, value, expected = CERTAIN[case]
    usual = torch.full_like(torch.tensor(given, dtype=dtype), 0.4)
    params = torch.cat([torch.tensor(given, dtype=dtype), usual])
    values = torch.tensor([value, 1.0], dtype=dtype)
    expected = torch.tensor(expected, dtype=dtype)
    torch.testing.assert_close(likelihood.log_prob(params, values)[0], expected, equal_nan=True)
    beside = expected + likelihood.log_prob(usual, values[1:])[0]
    for mask, wanted in (([True, True], beside), ([False, True], beside - expected)):
        observed = torch.tensor([mask])
        if not mask[0]:
            wanted = likelihood.log_prob(usual, values[1:])[0]
        kept = likelihood.to_keep(params[None])
        pairwise = likelihood.pairwise_log_prob(kept, values[None] * observed, observed)[0, 0]
        torch.testing.assert_close(pairwise, wanted, equal_nan=True)
        own = params if mask[0] else likelihood.only(params[None], observed)[0]
        masked = likelihood.masked_log_prob(own[None], values[None] * observed, observed)[0]
        torch.testing.assert_close(masked, wanted, equal_nan=True)
    valid = likelihood.valid(params)
    assert valid.tolist() == [not expected.isnan(), True]


@pytest.mark.parametrize("count", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("log_rate", [False, True])
def test_a_count_is_impossible_at_an_infinite_rate(log_rate, count):
    likelihood, params = Poisson(log_rate), torch.tensor([[math.inf]])
    values, mask = torch.tensor([[count]]), torch.tensor([[True]])
    assert likelihood.log_prob(params, values) == -math.inf
    assert likelihood.masked_log_prob(params, values, mask) == -math.inf
    kept = likelihood.to_keep(params)
    assert likelihood.pairwise_log_prob(kept, values, mask) == -math.inf
    assert not likelihood.valid(params).any()  # it cannot be predicted from


def test_huge_logits_that_agree_with_the_data_do_not_swamp_the_others():
    """Σ a t and Σ b are 1e8 each, but log p is −log 2, from the second element."""
    likelihood, values = Bernoulli(), torch.tensor([[1.0, 1.0]])
    params, mask = torch.tensor([[1e8, 0.0], [0.3, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    expected = likelihood.log_prob(params, values).sum(-1)
    masked = likelihood.masked_log_prob(params[:, None], values, mask)[:, 0]
    torch.testing.assert_close(masked, expected)
    pairwise = likelihood.pairwise_log_prob(likelihood.to_keep(params), values, mask)[:, 0]
    torch.testing.assert_close(pairwise, expected)
    assert abs(expected[0] + math.log(2)) < 1e-6
