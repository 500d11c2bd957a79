"""Checks of models whose decoder takes covariates, or whose latents are discrete."""

import pytest
import torch
from discrete_models import NUM_ELEMENTS, model, priors
from faults import network
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian, Mixed

LATENT, SIZE, NUM_LABELS = 2, 12, 3


class Labelled(nn.Module):
    """A decoder that adds a shift and a gain of its own for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.shift = nn.Parameter(torch.randn(NUM_LABELS, SIZE, generator=seeded(2)))

    def forward(self, z, label):
        return self.network(z) * (1 + label[:, None]) + 3 * self.shift[label]


class WithoutLast(Labelled):
    """A decoder that fails for the last label."""

    def forward(self, z, label):
        return torch.where((label == NUM_LABELS - 1)[:, None], torch.nan, super().forward(z, label))


class Fixed(nn.Module):
    """The decoder of one label."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.inner, self.label = Labelled(), label

    def forward(self, z):
        return self.inner(z, torch.full((len(z),), self.label))


def labelled(likelihood=None, decoder=None) -> cc.VAE:
    examples = torch.arange(NUM_LABELS)
    return cc.VAE(decoder or Labelled(), LATENT, likelihood or Gaussian(0.3), given=examples)


LABELS = torch.arange(240) % NUM_LABELS
DATA = labelled().sample_prior(240, seed=1, given=LABELS)


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Mixed([(Gaussian(0.3), SIZE)])])
def test_a_right_model_passes_with_its_labels_only(likelihood):
    vae = labelled(likelihood)
    report = vae.check(DATA, given=LABELS)
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)
    assert report["scale"].figures["factor"] == pytest.approx(1, abs=0.1)
    wrong = vae.check(DATA, given=(LABELS + 1) % NUM_LABELS)
    assert wrong["explanation"].status == wrong["scale"].status == "warning"


def test_figures_are_those_of_the_label_fixed():
    """Data of one label are compared with the model of that label."""
    own = DATA[LABELS == 1][:40]
    ours = labelled().check(own, given=torch.tensor(1))
    alone = cc.VAE(Fixed(1), LATENT, Gaussian(0.3)).check(own)
    for name in ("explanation", "scale", "prior"):
        for figure, wanted in alone[name].figures.items():
            found = ours[name].figures[figure]
            assert found == pytest.approx(wanted, rel=0.05, abs=0.02), (name, figure)


def test_every_example_is_decoded_without_data():
    assert labelled().check().ok
    assert "are nan" in labelled(decoder=WithoutLast()).check()["output"].message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "takes some beside z: pass given="),
        (LABELS[:5], r"broadcast to \(240,\), got \(5,\)"),
        (LABELS + 1, "failed for 3"),
        (LABELS.double(), "of torch.int64"),
    ],
)
def test_covariates_that_do_not_fit_are_refused(given, words):
    vae = labelled()
    with pytest.raises(ValueError, match=words):
        vae.check(DATA, given=given)
    with pytest.raises(ValueError, match=words):
        cc.calibrate_scale(vae, DATA, given=given)


def test_covariates_for_a_decoder_without_are_refused():
    vae = cc.VAE(Fixed(0), LATENT, Gaussian(0.3))
    for ask in (vae.check, lambda *data, **given: cc.calibrate_scale(vae, *data, **given)):
        with pytest.raises(ValueError, match="expected no covariates"):
            ask(DATA, given=LABELS)


def test_the_scale_is_found_with_labels():
    found = cc.calibrate_scale(labelled(Gaussian(1.0)), DATA[:90], given=LABELS[:90])
    # 90 data of 12 elements, 2 of which z fits: 2.4 % of the scale
    assert found == pytest.approx(0.3, rel=0.07)
    one = DATA[LABELS == 2]
    found = cc.calibrate_scale(labelled(Gaussian(1.0)), one, given=torch.tensor(2))
    alone = cc.calibrate_scale(cc.VAE(Fixed(2), LATENT, Gaussian(1.0)), one)
    assert found == pytest.approx(alone, rel=2e-3)  # what both stop short of


@pytest.mark.parametrize("name", ["pairs", "codes", "autoregressive"])
def test_discrete_latents(name):
    vae = model(priors()[name])
    data = vae.sample_prior(100, seed=0)
    report = vae.check(data)
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)
    assert "goes through all states" in report["methods"].message
    assert report["data"].figures["count"] == 100
    assert vae.check(30 * data)["data"].status == "error"


class Mixing(nn.Module):
    """A decoder that subtracts the mean of the batch once it is armed, as a model in training."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.is_armed = inner, False

    def forward(self, z):
        output = self.inner(z)
        return output - output.mean(0) if self.is_armed else output


def test_a_decoder_of_codes_that_mixes_rows_is_found():
    right = model(priors()["codes"])
    vae = cc.VAE(Mixing(right.decoder), 5, right.likelihood, prior=right.prior)
    vae.decoder.is_armed = True
    finding = vae.check(torch.zeros(20, NUM_ELEMENTS))["repeatability"]
    assert finding.status == "error"
    assert "alone" in finding.message
