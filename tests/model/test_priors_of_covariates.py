"""Priors that take covariates: answers are those of the prior with its covariates fixed."""

import pytest
import torch
from labelled_decoders import (
    DATA,
    EVIDENCE,
    LABELS,
    MASK,
    NUM_LABELS,
    ROUNDING,
    Fixed,
    Labelled,
    fixed,
    labelled,
)
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian
from crosscoding.priors import Gaussian as GaussianPrior
from crosscoding.priors import Hierarchical


def test_a_prior_of_covariates():
    means = nn.Embedding(NUM_LABELS, 2).double()
    scale = torch.tensor([0.5, 1.5]).double()
    prior = GaussianPrior(means, scale)
    vae = labelled(prior=prior)
    posterior = cc.condition(vae, EVIDENCE, seed=0)
    for label in range(NUM_LABELS):
        own = label == LABELS
        of_label = GaussianPrior(means.weight[label].detach(), scale)
        alone = cc.condition(
            fixed(label, prior=of_label), cc.Evidence(DATA[own], MASK[own]), seed=0
        )
        torch.testing.assert_close(posterior.log_evidence[own], alone.log_evidence, **ROUNDING)
        torch.testing.assert_close(
            posterior.sample(50, seed=1)[:, own], alone.sample(50, seed=1), **ROUNDING
        )
        z = alone.sample(5, seed=2)
        everything = posterior.sample(5, seed=2)
        everything[:, own] = z
        grid = cc.condition(vae, EVIDENCE, cc.methods.Grid(), seed=0)
        alone = cc.condition(
            fixed(label, prior=of_label),
            cc.Evidence(DATA[own], MASK[own]),
            cc.methods.Grid(),
            seed=0,
        )
        torch.testing.assert_close(
            grid.log_prob(everything)[:, own], alone.log_prob(z), rtol=1e-3, atol=1e-3
        )


class Level(nn.Module):
    """The second level of a hierarchy: mean and log-variance from the first, and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.last = nn.Embedding(NUM_LABELS, 4), nn.Linear(1, 4)
        self.double()

    def forward(self, above: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = (self.last(above).tanh() + self.names(label)).chunk(2, -1)
        return mean, log_variance


@pytest.mark.slow
def test_a_hierarchy_of_covariates():
    level = Level()
    prior = Hierarchical((1, 2), [level], last_only=True, takes_given=True)
    vae = cc.VAE(Labelled(), 3, Gaussian(0.4), prior=prior, given=torch.arange(NUM_LABELS))
    posterior = cc.condition(vae, EVIDENCE, seed=0)
    for label in range(NUM_LABELS):
        own = label == LABELS
        of_label = Hierarchical((1, 2), [Fixed(level, torch.tensor(label))], last_only=True)
        plain = cc.VAE(Fixed(Labelled(), torch.tensor(label)), 3, Gaussian(0.4), prior=of_label)
        alone = cc.condition(plain, cc.Evidence(DATA[own], MASK[own]), seed=0)
        torch.testing.assert_close(posterior.log_evidence[own], alone.log_evidence, **ROUNDING)
        draws = posterior.sample(50, seed=1)[:, own]
        torch.testing.assert_close(draws, alone.sample(50, seed=1), **ROUNDING)


class Blind(nn.Module):
    """A decoder of z alone, a class of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 8).double()

    def forward(self, z: Tensor) -> Tensor:
        return self.last(z)


@pytest.mark.parametrize("kind", [Blind, lambda: nn.Sequential(Blind().last)])
def test_a_prior_of_covariates_beside_a_decoder_that_takes_none(kind, tmp_path):
    means = nn.Sequential(nn.Embedding(NUM_LABELS, 2)).double()
    decoder = kind()
    prior = GaussianPrior(means, torch.tensor([0.5, 1.5]).double())
    options = {"prior": prior, "given": torch.arange(NUM_LABELS)}
    vae = cc.VAE(decoder, 2, Gaussian(0.4), **options)
    posterior = cc.condition(vae, EVIDENCE, seed=0)
    assert posterior.trusted.all()
    weight, bias = (part.detach() for part in decoder.parameters())
    scale = torch.tensor([0.5, 1.5]).double()
    for query, label in enumerate(LABELS.tolist()):
        own = MASK[query]
        mean = weight[own] @ means[0].weight[label].detach() + bias[own]
        covariance = weight[own] * scale.square() @ weight[own].mT + 0.16 * torch.eye(
            int(own.sum())
        )
        exact = torch.distributions.MultivariateNormal(mean, covariance.double())
        exact = exact.log_prob(DATA[query, own])
        torch.testing.assert_close(posterior.log_evidence[query], exact, rtol=0, atol=0.02)
    mine = {"prior": prior} | ({"decoder": kind()} if isinstance(decoder, Blind) else {})
    with pytest.warns(UserWarning, match="prior=Gaussian"):
        vae.save(tmp_path / "model")
    loaded = cc.load_vae(tmp_path / "model", **mine)
    assert str(loaded) == str(vae)
    again = cc.condition(loaded, EVIDENCE, seed=0)
    assert torch.equal(again.log_evidence, posterior.log_evidence)
