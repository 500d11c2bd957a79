"""Counts that do not match the model's, also of users' likelihoods, and the check that finds it."""

import pytest
import torch
from faults import LATENT, drawn, network, right, status
from torch import nn
from torch.nn import functional

import crosscoding as cc
from crosscoding.checks.column_baseline import log_prob_of_columns
from crosscoding.likelihoods import (
    BetaBinomial,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
)


def rates(shift: float, last: nn.Module) -> nn.Sequential:
    """A decoder of rates, all of which stay above 0."""
    decoder = network(last=last)
    with torch.no_grad():
        decoder[2].weight.mul_(0.3)
        decoder[2].bias.add_(shift)
    return decoder


@pytest.mark.parametrize("shift", [-1.0, 0.0, 2.0, 5.0])
def test_rates_that_are_mistaken_for_logarithms(shift):
    decoder = rates(shift, nn.Softplus())
    vae = cc.VAE(decoder, LATENT, Poisson(log_rate=False))
    data = drawn(vae, 400)
    assert status(vae, "counts", data) == "ok"
    finding = cc.VAE(decoder, LATENT, Poisson()).check(data)["counts"]
    assert finding.status == "warning"
    assert "read as Poisson(log_rate=False), the decoder's output gives" in finding.message
    assert finding.message.endswith("use Poisson(log_rate=False)")


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_logarithms_that_are_mistaken_for_rates(shift):
    decoder = rates(shift, nn.ReLU())
    data = drawn(cc.VAE(decoder, LATENT, Poisson()), 400)
    finding = cc.VAE(decoder, LATENT, Poisson(log_rate=False)).check(data)["counts"]
    assert finding.status == "warning"
    assert finding.message.endswith("use Poisson(log_rate=True)")


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(3.0), BetaBinomial(9, 4.0)])
@pytest.mark.slow
def test_counts_of_other_data(likelihood):
    vae = cc.VAE(network(), LATENT, likelihood)
    data = drawn(vae, 400)
    assert status(vae, "counts", data) == "ok"
    finding = vae.check((data / 4).floor())["counts"]
    assert finding.status == "warning"
    assert "was it trained on such data" in finding.message


def test_counts_in_some_columns():
    decoder = rates(1.0, nn.Softplus())
    data = drawn(cc.VAE(decoder, LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(False), 4)])), 400)
    finding = cc.VAE(decoder, LATENT, Mixed([(Gaussian(0.3), 8), (Poisson(), 4)])).check(data)
    assert finding["counts"].message.startswith("columns 8 to 11: the model's counts add up to")
    assert finding["counts"].message.endswith("use Poisson(log_rate=False)")


@pytest.mark.parametrize("num", [1, 2, 9])
def test_a_few_counts_are_not_enough_to_judge_by(num):
    decoder = rates(-3.0, nn.Softplus())  # next to none, and now and then one
    vae = cc.VAE(decoder, LATENT, Poisson(log_rate=False))
    report = vae.check(drawn(vae, 400)[:num].clamp_min(1))
    assert "counts" not in report
    assert "most values of" not in str(report)


def test_numbers_are_not_counted():
    assert "counts" not in right().check(drawn(right()))


# ---- likelihoods of one's own ------------------------------------------------------------------


class Geometric(Likelihood):
    """Failures before a success of probability σ(l): log p(t) = log σ(l) + t log σ(−l)."""

    support = "whole numbers from 0"
    kind = "counts"

    def log_prob(self, params, values):
        return functional.logsigmoid(params) + values * functional.logsigmoid(-params)

    def mean(self, params):
        return (-params).exp()

    def variance(self, params):
        return self.mean(params) * (1 + self.mean(params))

    def fisher(self, params):
        return (-params).sigmoid()

    def noise(self, shape, *, generator, like):
        return torch.rand(shape, generator=generator, dtype=like.dtype)

    def draw(self, params, noise):
        return (noise.log() / functional.logsigmoid(-params)).floor()

    def in_support(self, values):
        return (values >= 0) & (values == values.floor())

    def to_parts(self):
        return {}, {"name": "Geometric", "settings": {}}


class Kindless(Geometric):
    """The same, of an author who does not say that they are counts."""

    kind = ""


def test_counts_of_a_users_likelihood_are_checked():
    vae = cc.VAE(rates(0.0, None), LATENT, Geometric())
    data = drawn(vae, 400)
    report = vae.check(data)
    assert report["explanation"].status == report["counts"].status == "ok"
    finding = vae.check(10 * data)["counts"]
    assert finding.status == "warning"
    assert "was it trained on such data" in finding.message
    assert vae.check(10 * data)["units"].message.endswith("pass counts unscaled")
    torch.testing.assert_close(
        log_prob_of_columns(Geometric(), data, torch.zeros(12)),
        log_prob_of_columns(Poisson(), data, torch.zeros(12)),
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_a_likelihood_without_a_kind_is_not_compared(mixed):
    likelihood = Mixed([(Gaussian(0.3), 4), (Kindless(), 8)]) if mixed else Kindless()
    vae = cc.VAE(rates(0.0, None), LATENT, likelihood)
    finding = vae.check(drawn(vae, 200))["explanation"]
    assert finding.status == "note"
    assert finding.message.endswith("set kind of Kindless to one of real, binary, counts, classes")


def test_every_likelihood_says_its_kind():
    """Except those made of others, which say theirs."""
    names = set(cc.likelihoods.__all__) - {"Likelihood", "Mixed", "Mixture", "ZeroInflated"}
    kinds = {getattr(cc.likelihoods, name).kind for name in names}
    assert kinds == {"real", "binary", "counts", "classes"}
    assert cc.likelihoods.Bernoulli.kind == "binary"
    assert cc.likelihoods.Ordinal.kind == "classes"
    assert cc.likelihoods.ZeroInflated(cc.likelihoods.Poisson()).kind == "counts"
