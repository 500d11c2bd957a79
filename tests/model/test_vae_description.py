"""What terminals and notebooks show of models and of evidence."""

from io import StringIO

import torch
from rich.console import Console
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


def printed(shown) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(shown)
    return console.file.getvalue()


def test_a_model_is_shown_with_its_parts_and_its_cost():
    vae = cc.VAE(nn.Linear(2, 5), 2, Gaussian(0.1))
    for shown in (printed(vae), vae._repr_html_()):
        for word in ("Linear, 15 parameters", "2 dimensions, prior N(0, I)", "(5,), Gaussian"):
            assert word in shown
        assert "10 multiply-adds" in shown
        assert "float32 on cpu" in shown
    assert "data:image" not in vae._repr_html_()


def test_a_model_of_pictures_shows_what_it_draws():
    vae = cc.zoo.load("mnist-20d")
    assert vae._repr_html_().count("data:image/png;base64,") == 1
    assert "data:image" not in printed(vae)
    assert "encoder" in printed(vae)
    assert vae._repr_html_() == vae._repr_html_()


def test_a_prior_and_covariates_are_named():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, z, label):
            return self.layer(torch.cat([z, label], -1))

    prior = cc.priors.Gaussian(torch.zeros(2), 2 * torch.ones(2))
    vae = cc.VAE(Labelled(), 2, Gaussian(0.1), prior=prior, given=torch.eye(2))
    assert "prior Gaussian" in printed(vae)
    assert "(2,) a query" in printed(vae)


def test_evidence_counts_what_is_known_in_which_way():
    noise = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0])
    allowed = torch.ones(5, 3, dtype=torch.bool)
    allowed[3, 0] = False
    low = torch.tensor([-torch.inf, -torch.inf, 1.0, -torch.inf, -torch.inf])
    evidence = (
        cc.Evidence(torch.zeros(5), torch.arange(5) < 2, noise=noise, given=torch.ones(2))
        & cc.Evidence.interval(low=low)
        & cc.Evidence.one_of(allowed)
        & cc.Evidence.linear(torch.ones(2, 5), torch.zeros(2))
    )
    assert repr(evidence) == (
        "Evidence(shape=(5,), 80.0% observed, 1 noisy, 1 interval, 1 set, 2 sums)"
    )
    for shown in (printed(evidence), evidence._repr_html_()):
        for word in ("known exactly", "with noise", "in an interval", "in a set", "2 a query"):
            assert word in shown
        assert shown.count("1 of 5 elements (20.0%)") == 5
        assert "(2,)" in shown
    nothing = cc.Evidence(torch.zeros(0, 5), torch.zeros(0, 5) > 0)
    assert "0 of 0 elements (0.0%)" in printed(nothing)
