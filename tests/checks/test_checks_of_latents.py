"""Where data lie in latent space, and whether the encoder belongs to the decoder."""

import math

import pytest
import torch
from faults import drawn, right, status, wrapped
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc

PROBLEM = linear_gaussian_problem(latent_dim=3, data_dim=10, batch=400)


class Exact(nn.Module):
    """The posterior of a linear model: mean and log variance, side by side or as a tuple."""

    def __init__(self, together: bool = True, move: float = 0.0, stretch: float = 1.0) -> None:
        super().__init__()
        self.together, self.move, self.stretch = together, move, stretch

    def forward(self, data):
        evidence = cc.Evidence(data, torch.ones_like(data, dtype=torch.bool))
        mean, covariance = PROBLEM.exact_posterior(evidence)
        mean = self.move + self.stretch * mean
        log_variance = covariance.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([mean, log_variance], -1) if self.together else (mean, log_variance)


def with_encoder(encoder):
    """The linear model with an encoder."""
    return cc.VAE(PROBLEM.vae.decoder, 3, PROBLEM.vae.likelihood, encoder)


@pytest.mark.parametrize("together", [True, False])
def test_an_exact_encoder_has_the_prior(together):
    report = with_encoder(Exact(together)).check(PROBLEM.truth)
    assert report["prior"].status == "ok"
    assert report["prior"].figures["kl"] < 0.05  # 3 moments' noise of 400 data each: about 3 / 400
    assert report["prior"].figures["active_share"] == 1
    assert report["encoder"].status == "ok"


@pytest.mark.parametrize("change", [{"move": 2.0}, {"stretch": 3.0}, {"stretch": 0.05}], ids=str)
def test_an_aggregated_posterior_that_is_not_the_prior(change):
    finding = with_encoder(Exact(**change)).check(PROBLEM.truth)["prior"]
    assert finding.status == "warning"
    assert "completions from little evidence" in finding.message


def test_too_few_data_for_moments_are_noted():
    assert status(with_encoder(Exact()), "prior", PROBLEM.truth[:50]) == "note"


def test_data_farther_out_than_the_prior_are_noticed_without_an_encoder():
    shrunk = wrapped(lambda net, z: net(z / 5))
    assert status(right(), "prior", drawn(right())) == "ok"
    finding = shrunk.check(drawn(right()))["prior"]
    assert finding.status == "warning"
    assert finding.figures["mean_square"] == pytest.approx(25, rel=0.5)  # 32 data


def test_an_encoder_of_another_model():
    class Other(Exact):
        def forward(self, data):
            mean, log_variance = super().forward(data).chunk(2, -1)
            return mean.roll(1, -1), log_variance

    assert status(with_encoder(Other()), "encoder", PROBLEM.truth) == "warning"


@pytest.mark.parametrize("num", [2, 8, 12, 15])
def test_few_data_say_nothing_about_the_encoder(num):
    """With eight or fewer, even a perfect encoder was once said to be no better than chance."""
    report = with_encoder(Exact()).check(PROBLEM.truth[:num])
    assert "encoder" not in [finding.name for finding in report.findings]


def test_an_encoder_that_outputs_nan():
    class Narrow(Exact):
        def forward(self, data):
            return super().forward(torch.where(data.abs() < 100, data, math.nan))

    data = PROBLEM.truth.clone()
    data[7, 0] = 1000
    finding = with_encoder(Narrow()).check(data)["prior"]
    assert finding.status == "error"
    assert "NaN" in finding.message


def test_a_digit_model_and_its_encoder():
    digits = cc.zoo.digits()[0]
    report = cc.zoo.load("mnist-20d").check(digits)
    assert report.ok
    assert report.summary == "no problems found"
