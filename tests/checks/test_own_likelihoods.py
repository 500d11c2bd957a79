"""A likelihood of one's own that contradicts itself is named by the check, a right one passes."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding import random
from crosscoding.likelihoods import Gaussian, Likelihood, Mixed, Mixture, Poisson, ZeroInflated


@dataclass(frozen=True)
class Exponential(Likelihood):
    """p(t|z) = λ e^(−λ t) of a decoded log λ."""

    support = "numbers >= 0"
    kind = "real"

    def log_prob(self, params, values):
        return params - values * params.exp()

    def mean(self, params):
        return (-params).exp()

    def variance(self, params):
        return (-2 * params).exp()

    def fisher(self, params):
        return torch.ones_like(params)

    def noise(self, shape, *, generator, like):
        return random.uniform(shape, generator=generator, like=like)

    def draw(self, params, noise):
        return -(-noise).log1p() * (-params).exp()

    def in_support(self, values):
        return values.isfinite() & (values >= 0)


class Unnormalised(Exponential):
    def log_prob(self, params, values):
        return -values * params.exp()


class WrongMean(Exponential):
    def mean(self, params):
        return params.exp()


class WrongVariance(Exponential):
    def variance(self, params):
        return (-params).exp() + 1


class WrongFisher(Exponential):
    def fisher(self, params):
        return params.exp()


class WrongSupport(Exponential):
    def in_support(self, values):
        return values > 0.5


class Infinite(Exponential):
    def log_prob(self, params, values):
        return super().log_prob(params, values) + 0 * params * values.log()


class WrongShape(Exponential):
    def noise(self, shape, *, generator, like):
        return random.uniform((*shape, 2), generator=generator, like=like)


class SwappedDraws(Exponential):
    def draw(self, params, noise):
        return -(-noise).log1p() * params.exp()


@dataclass(frozen=True)
class Counts(Poisson):
    """A Poisson variable by another name."""


def model(likelihood, outputs: int = 3) -> cc.VAE:
    layer = nn.Linear(2, outputs)
    with torch.no_grad():
        layer.weight.copy_(0.3 * torch.arange(2.0 * outputs).reshape(outputs, 2).sin())
        layer.bias.fill_(0.2)
    return cc.VAE(layer, 2, likelihood)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Exponential(), 3),
        (Mixed([(Exponential(), 2), Gaussian(0.1)]), 3),
        (Mixture(Exponential(), 2), 8),
        (Counts(), 3),
        (ZeroInflated(Counts()), 6),
    ],
    ids=["alone", "in a table", "in a mixture", "a count", "inflated"],
)
@pytest.mark.slow
def test_a_right_likelihood_passes(likelihood, outputs):
    if isinstance(likelihood, (Mixture, ZeroInflated)):
        num = likelihood.param_shape[0]
        decoder = nn.Sequential(nn.Linear(2, outputs), nn.Unflatten(1, (outputs // num, num)))
        report = cc.VAE(decoder, 2, likelihood).check()
    else:
        report = model(likelihood, outputs).check()
    assert report["likelihood"].status == "ok", report["likelihood"].message
    assert report.ok


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Unnormalised, "does not average 0"),
        (SwappedDraws, "does not average 0"),
        (WrongMean, "mean is not the mean"),
        (WrongVariance, "variance is not the variance"),
        (WrongSupport, "in_support says"),
        (Infinite, "parameters of 1 and the value 0"),
        (WrongShape, "return one number for each element"),
    ],
)
def test_a_likelihood_that_contradicts_itself_is_an_error(fault, words):
    report = model(fault()).check()
    assert report["likelihood"].status == "error"
    assert words in report["likelihood"].message
    assert fault.__name__ in report["likelihood"].message


def test_a_wrong_fisher_information_is_a_warning():
    report = model(WrongFisher()).check()
    assert report["likelihood"].status == "warning"
    assert "WrongFisher.fisher" in report["likelihood"].message


def test_likelihoods_of_the_package_are_not_checked_again():
    assert "likelihood" not in model(Poisson()).check()
    inside = model(Mixed([(WrongMean(), 2), Gaussian(0.1)])).check()
    assert inside["likelihood"].status == "error"


class OfRate(Exponential):
    """The same of a rate λ, which must be > 0; only `valid` says so."""

    takes = "rates > 0"

    def valid(self, params):
        return super().valid(params) & (params > 0)

    def log_prob(self, params, values):
        return super().log_prob(params.log(), values)


def test_a_decoder_whose_finite_output_is_never_valid_is_refused():
    decoder = nn.Linear(2, 3)
    with torch.no_grad():
        decoder.weight.mul_(0.01)
        decoder.bias.copy_(torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(
        ValueError, match=r"parameters of OfRate, got -.*takes rates > 0.*element 2"
    ):
        cc.VAE(decoder, 2, OfRate())


def test_large_rates_have_a_likelihood_though_their_mean_overflows():
    """log p(20|z) for a log rate of 95 z, against a fine sum: its mean is inf at some draws."""
    decoder = nn.Linear(1, 1, bias=False)
    nn.init.constant_(decoder.weight, 95.0)
    vae = cc.VAE(decoder, 1, Poisson())
    answer = cc.condition(vae, cc.Evidence.from_nan(torch.tensor([20.0])), seed=0)
    assert answer.verdicts[0].label == "trusted"
    assert abs(answer.log_evidence - -8.46904) < 0.01


def test_a_decoder_whose_finite_output_is_sometimes_invalid_is_doubted():
    decoder = nn.Linear(1, 2)
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[0.0], [1.0]]))
        decoder.bias.fill_(0.5)
    with pytest.warns(UserWarning, match=r"takes rates > 0\) for element 1"):
        vae = cc.VAE(decoder, 1, OfRate())
    assert "takes rates > 0" in vae.check()["output"].message
