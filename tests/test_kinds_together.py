"""Covariates, priors, discrete latents and partly known elements in one query."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import crosscoding as cc
from crosscoding import likelihoods, priors
from crosscoding.methods import Grid


class Labelled(nn.Module):
    """A linear map of z and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 + 3, 6)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.linear(torch.cat([z, label], -1))


def labelled() -> tuple[cc.VAE, cc.Evidence, Tensor]:
    """A model with labels and a prior of its own, evidence for six queries, and their data."""
    torch.manual_seed(0)
    labels = torch.eye(3)
    prior = priors.Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]))
    vae = cc.VAE(Labelled(), 2, likelihoods.Gaussian(0.3), prior=prior, given=labels)
    given = labels.repeat(2, 1)
    data = vae.sample_prior(6, seed=1, given=given)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    return vae, cc.Evidence(data, mask, given=given), data


def assert_like_a_grid(vae: cc.VAE, evidence: cc.Evidence) -> cc.Posterior:
    """`Auto` is trusted and agrees with quadrature."""
    answer = cc.condition(vae, evidence, seed=0)
    exact = cc.condition(vae, evidence, Grid(), seed=0)
    assert answer.trusted.all()
    torch.testing.assert_close(answer.log_evidence, exact.log_evidence, rtol=0, atol=0.02)
    return answer


def test_labels_and_intervals_together():
    vae, evidence, data = labelled()
    low = torch.where(evidence.mask, -torch.inf, data - 0.2)
    both = evidence & cc.Evidence.interval(low, data + 0.2)
    assert torch.equal(both.given, evidence.given)
    draws = assert_like_a_grid(vae, both).predict(50, seed=0)
    assert ((draws >= low - 1e-6) & (draws <= data + 0.2 + 1e-6))[:, ~evidence.mask].all()


def test_labels_and_sums_together():
    vae, evidence, data = labelled()
    both = evidence & cc.Evidence.linear(torch.ones(1, 6), data.sum(1, keepdim=True))
    draws = assert_like_a_grid(vae, both).predict(50, seed=0)
    torch.testing.assert_close(draws.sum(-1), data.sum(1).expand(50, -1))


def test_evidence_with_labels_is_saved(tmp_path):
    vae, evidence, data = labelled()
    answer = cc.condition(vae, evidence & cc.Evidence.interval(data - 1, data + 1), seed=0)
    with pytest.warns(UserWarning, match="pass the model when loading"):
        answer.save(tmp_path / "answer")
    loaded = cc.Posterior.load(tmp_path / "answer", vae=vae)
    assert torch.equal(loaded.target.evidence.given, evidence.given)
    assert torch.equal(loaded.predict(3, seed=1), answer.predict(3, seed=1))


def test_labels_that_differ_are_refused():
    _, evidence, _ = labelled()
    other = cc.Evidence(evidence.values, evidence.mask, given=evidence.given.flip(0))
    with pytest.raises(ValueError, match="expected evidence with the same covariates"):
        _ = evidence & other


def bits() -> tuple[cc.VAE, Tensor, Normal]:
    """A model of eight bits, three data, and p(t|z) of every state, (256, 5)."""
    torch.manual_seed(0)
    prior = priors.Bernoulli(torch.zeros(8))
    vae = cc.VAE(nn.Linear(8, 5), 8, likelihoods.Gaussian(0.4), prior=prior)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    return vae, vae.sample_prior(3, seed=0), Normal(vae.decoder(states), 0.4)


def test_bits_and_intervals_together():
    vae, data, law = bits()
    low = torch.tensor([-torch.inf] * 3 + [0.0] * 2).expand(3, 5)
    evidence = cc.Evidence(data, torch.arange(5) < 2) & cc.Evidence.interval(low)
    answer = cc.condition(vae, evidence, seed=0)
    log_likelihood = law.log_prob(data[:, None])[..., :2].sum(-1)
    log_likelihood = log_likelihood + (1 - law.cdf(torch.tensor(0.0)))[:, 3:].log().sum(-1)
    exact = log_likelihood.logsumexp(1) - 8 * math.log(2)
    assert answer.trusted.all()
    torch.testing.assert_close(answer.log_evidence, exact)


def test_bits_and_sums_together():
    vae, data, law = bits()
    total = data.sum(1, keepdim=True)
    answer = cc.condition(vae, cc.Evidence.linear(torch.ones(1, 5), total), seed=0)
    of_total = Normal(law.mean.sum(1), 0.4 * math.sqrt(5))
    exact = of_total.log_prob(total).logsumexp(1) - 8 * math.log(2)
    assert answer.trusted.all()
    torch.testing.assert_close(answer.log_evidence, exact)
    draws = answer.predict(20, seed=0)
    torch.testing.assert_close(draws.sum(-1), total[:, 0].expand(20, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        cc.Evidence.interval(torch.tensor([-10.0, -torch.inf])),
        cc.Evidence.interval(torch.full((2,), math.nan)),
        cc.Evidence.one_of(torch.ones(2, 3, dtype=torch.bool)),
    ],
)
def test_what_values_settle_adds_nothing(other):
    """Such evidence once had nothing left that is known in part, and crashed."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    vae = cc.VAE(decoder, 2, likelihoods.Gaussian(0.5))
    value = cc.Evidence(torch.tensor([0.3, 0.0]), torch.tensor([True, False]))
    together, alone = (cc.condition(vae, e, seed=0) for e in (value & other, value))
    assert torch.equal(together.log_evidence, alone.log_evidence)


def test_a_query_without_bounds_is_answered_alone_as_in_its_batch():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    vae = cc.VAE(decoder, 2, likelihoods.Gaussian(0.5))
    evidence = cc.Evidence.interval(torch.tensor([[0.1, -torch.inf], [math.nan, -torch.inf]]))
    batch = cc.condition(vae, evidence, seed=0)
    assert cc.condition(vae, evidence[1], seed=0).log_evidence == batch.log_evidence[1] == 0


def test_empty_batches():
    vae, evidence, _ = labelled()
    assert cc.condition(vae, evidence[:0], seed=0).log_evidence.shape == (0,)
    vae, data, _ = bits()
    answer = cc.condition(vae, cc.Evidence(data[:0], torch.tensor(True)), seed=0)
    assert answer.log_prob(answer.sample(2)).shape == (2, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cc.Evidence.interval(torch.zeros(2, device="meta")), "low with numbers in it"),
        (lambda: priors.Gaussian(torch.zeros(2, device="meta"), 1.0), "mean with numbers in it"),
        (lambda: priors.Mixture([1.0, 1.0], torch.zeros(2, 2), 1.0), "expected weights to be"),
    ],
)
def test_what_holds_no_numbers_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_noise_of_counts_is_bounded():
    vae = cc.VAE(nn.Linear(2, 2), 2, likelihoods.Poisson())
    evidence = cc.Evidence(torch.ones(2), torch.tensor(True), noise=1e20)
    with pytest.raises(ValueError, match="noise of at most 1,000 for counts"):
        cc.condition(vae, evidence, seed=0)


def test_noise_of_sums_below_rounding_is_none():
    vae = cc.VAE(nn.Linear(2, 3), 2, likelihoods.Gaussian(0.5))
    for noise in (0.0, 1e-20):
        evidence = cc.Evidence.linear(torch.ones(1, 3), torch.tensor([1.0]), noise)
        answer = cc.condition(vae, evidence, seed=0)
        assert cc.query_log_prob(answer, answer.predict(1, seed=1)[0]).log_prob > -100
