"""Priors that do not fit the decoder, or contradict themselves, are refused in one sentence."""

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.priors import (
    ContinuousPrior,
    Flow,
    Hierarchical,
    Normal,
)
from crosscoding.priors import (
    Gaussian as GaussianPrior,
)
from crosscoding.priors.normal import standard_log_prob


def vae(prior, latent_dim: int = 2) -> cc.VAE:
    return cc.VAE(nn.Linear(latent_dim, 5), latent_dim, Gaussian(0.1), prior=prior)


class Doubled(ContinuousPrior):
    """z = 2 ε, with methods that a test may get wrong."""

    def __init__(self, **wrong):
        super().__init__(2)
        self.wrong = wrong

    def from_noise(self, noise, given=None):
        return self.wrong.get("forward", lambda e: 2 * e)(noise)

    def to_noise(self, z, given=None):
        return self.wrong.get("inverse", lambda z: z / 2)(z)

    def log_prob(self, z, given=None):
        usual = standard_log_prob(z / 2) - 2 * torch.tensor(2.0).log()
        return self.wrong.get("density", lambda log_prob: log_prob)(usual)


def test_a_prior_of_the_users_own_works():
    answer = cc.condition(vae(Doubled()), cc.Evidence(torch.zeros(5), torch.arange(5) < 3), seed=0)
    assert answer.sample(10).shape == (10, 2)


def test_the_default_is_standard_normal():
    assert isinstance(vae(None).prior, Normal)
    assert vae(Normal()).prior.latent_dim == 2
    assert repr(vae(None)) == repr(vae(Normal())) == repr(vae(Normal(2)))
    evidence = cc.Evidence(torch.zeros(5), torch.arange(5) < 3)
    torch.manual_seed(0)
    decoder = nn.Linear(2, 5)
    answers = [
        cc.condition(cc.VAE(decoder, 2, Gaussian(0.1), prior=prior), evidence, seed=0)
        for prior in (None, Normal(), Normal(2))
    ]
    for answer in answers[1:]:
        assert torch.equal(answer.sample(9, seed=0), answers[0].sample(9, seed=0))


@pytest.mark.parametrize(
    ("prior", "error", "words"),
    [
        ("normal", TypeError, "one of crosscoding.priors"),
        (Normal, TypeError, "one of crosscoding.priors"),
        (Normal(3), ValueError, "prior of 2 numbers, as latent_dim says, got Normal of 3"),
        (GaussianPrior(torch.zeros(4), 1.0), ValueError, "got Gaussian of 4"),
        (GaussianPrior(torch.zeros(2), 1.0).double(), ValueError, "decoder's torch.float32"),
        (Hierarchical((1, 1), [nn.Linear(2, 2)]), ValueError, "the top level first"),
        (Doubled(inverse=lambda z: z), ValueError, "one-to-one prior, got Doubled, whose inverse"),
        (Doubled(forward=torch.abs, inverse=torch.abs), ValueError, "whose inverse is off"),
        (Doubled(density=lambda log_prob: log_prob + 1), ValueError, "density of from_noise"),
        (Doubled(density=lambda log_prob: -log_prob), ValueError, "density of from_noise"),
        (Doubled(density=lambda log_prob: log_prob * torch.nan), ValueError, "got nan nats"),
        (Doubled(forward=lambda e: e[..., :1]), ValueError, r"got \(5, 1\)"),
        (Doubled(forward=lambda e: e / 0), cc.NonFiniteError, "finite draws from the prior"),
        (Doubled(forward=lambda e: e - e.mean(0)), ValueError, "does not depend on the other rows"),
        (Doubled(forward=lambda e: e + torch.rand(2)), ValueError, "deterministic prior"),
    ],
)
def test_refusals(prior, error, words):
    with pytest.raises(error, match=words):
        vae(prior)


def test_a_latent_variable_that_the_decoder_does_not_take_is_refused():
    prior = Hierarchical((1, 1), [nn.Linear(1, 2)], last_only=True)
    with pytest.raises(ValueError, match=r"decoder to take rows of shape \(2,\)"):
        vae(prior)


def test_a_prior_of_covariates_needs_a_decoder_that_takes_them():
    prior = GaussianPrior(nn.Linear(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"expected VAE\(\.\.\., given=\.\.\.\)"):
        vae(prior)


def test_a_level_of_nearly_no_width_is_refused():
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, -60.0]))
    with pytest.raises(ValueError, match="the prior's precision tell different z apart"):
        vae(Hierarchical((1, 1), [layer]))


def test_the_users_prior_is_copied_and_frozen():
    prior = GaussianPrior(nn.Parameter(torch.ones(2)), torch.ones(2))
    model = vae(prior)
    with torch.no_grad():
        prior.mean.zero_()
    assert model.prior.mean.tolist() == [1, 1]
    assert not model.prior.mean.requires_grad
    assert prior.mean.requires_grad


def test_draws_from_the_model_come_from_the_prior():
    model = vae(GaussianPrior(torch.tensor([10.0, -10.0]), 0.01))
    z, _ = model.simulate(50, generator=seeded())
    assert (z - torch.tensor([10.0, -10.0])).abs().max() < 0.1


def test_a_flow_of_another_size_is_refused():
    from torch import distributions

    base = distributions.Independent(distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    flow = Flow(distributions.TransformedDistribution(base, [distributions.ExpTransform()]))
    with pytest.raises(ValueError, match="got Flow of 3"):
        vae(flow)
