"""Sums folded into a linear last layer: the same numbers as sums of decoded elements."""

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.target.folded_sums import FoldedSums
from crosscoding.target.observed_likelihood import Observed


def model(*, linear: bool = True, scale: torch.Tensor | float = 0.3) -> cc.VAE:
    last = [] if linear else [nn.Sigmoid()]
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 12), *last).double()
    with torch.no_grad():
        for index, parameter in enumerate(decoder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))
    return cc.VAE(decoder, 3, Gaussian(scale))


def evidence(vae: cc.VAE, num: int = 3, noise: float = 0.1, *, exact: bool = True) -> cc.Evidence:
    data = vae.sample_prior(num, seed=0)
    operator = torch.randn(4, 12, generator=seeded(1)).double()
    operator[3] = 0.0
    operator[3, 5] = 1.0
    sums = cc.Evidence.linear(operator, data @ operator.mT, noise)
    return sums & cc.Evidence(data, torch.arange(12) < 2) if exact else sums


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.3, torch.linspace(0.2, 0.9, 12).double()])
def test_values_gradients_and_curvature_are_those_without_folding(exact, noise, scale):
    vae = model(scale=scale)
    plain = cc.VAETarget(vae, evidence(vae, noise=noise, exact=exact)).flatten()
    folded = plain.prepare()
    assert isinstance(folded._observed, FoldedSums)
    assert not isinstance(plain._observed, FoldedSums)
    z = torch.randn(20, 3, 3, generator=seeded(2)).double().requires_grad_()
    values = [target.log_likelihood(z) for target in (plain, folded)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)
    slopes = [torch.autograd.grad(value.sum(), z)[0] for value in values]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)
    bends = [target.curvature(z.detach()) for target in (plain, folded)]
    torch.testing.assert_close(*bends, rtol=1e-9, atol=1e-9)
    some = torch.tensor([2, 0])
    at = z.detach()[:, some]
    chosen = [target.select(some).log_likelihood(at) for target in (plain, folded)]
    torch.testing.assert_close(*chosen, rtol=1e-10, atol=1e-10)
    query = torch.tensor([0, 2, 1, 2])
    alone = [target.log_likelihood_at(z.detach()[:4, 0], query) for target in (plain, folded)]
    torch.testing.assert_close(*alone, rtol=1e-10, atol=1e-10)


def test_only_linear_layers_and_shared_sums_fold():
    vae = model()
    known = evidence(vae)
    beside = known & cc.Evidence.interval(
        low=torch.where(torch.arange(12) == 3, -9.0, -torch.inf).double()
    )
    curved = model(linear=False)
    for own, what in ((curved, evidence(curved)), (vae, beside)):
        assert type(cc.VAETarget(own, what).flatten().prepare()._observed) is not FoldedSums
    own_sums = cc.Evidence.linear(
        torch.randn(3, 2, 12, generator=seeded(3)).double(), torch.zeros(3, 2).double()
    )
    assert isinstance(cc.VAETarget(vae, own_sums).flatten().prepare()._observed, Observed)


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.names, self.first, self.last = nn.Embedding(3, 8), nn.Linear(3, 8), nn.Linear(8, 12)
        self.double()

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(z) + self.names(label)).tanh())


def test_sums_of_decoders_with_covariates_fold():
    vae = cc.VAE(Labelled(), 3, Gaussian(0.3), given=torch.arange(2))
    label = torch.tensor([2, 0, 1])  # the first is no example
    data = vae.sample_prior(3, seed=0, given=label)
    operator = torch.randn(4, 12, generator=seeded(1)).double()
    known = cc.Evidence.linear(operator, data @ operator.mT, 0.1).with_given(label)
    plain = cc.VAETarget(vae, known).flatten()
    folded = plain.prepare()
    assert isinstance(folded._observed, FoldedSums)
    z = torch.randn(5, 3, 3, generator=seeded(2)).double()
    torch.testing.assert_close(plain.log_likelihood(z), folded.log_likelihood(z))
    some = torch.tensor([2, 0])
    chosen = [target.select(some).log_likelihood(z[:, some]) for target in (plain, folded)]
    torch.testing.assert_close(*chosen)


def test_answers_satisfy_the_sums():
    vae = model()
    known = evidence(vae, noise=0.0)
    posterior = cc.condition(vae, known, seed=0)
    assert posterior.trusted.all()
    rows, part = posterior.predict(20, seed=0), known.sums[0]
    torch.testing.assert_close(rows @ part.operator.mT, part.values.expand(20, -1, -1))
    grid = cc.condition(vae, known, cc.methods.TemperedSMC(), seed=0)
    error = torch.hypot(grid.log_evidence_error, posterior.log_evidence_error)
    assert ((grid.log_evidence - posterior.log_evidence).abs() < 5 * error + 1e-3).all()
