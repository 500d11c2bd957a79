"""What a model is recognised by when a run is resumed."""

from dataclasses import replace

import pytest
import torch
from amortised_problems import Constant
from torch import nn

import crosscoding as cc
from crosscoding import crosscoders
from crosscoding.batch.folder import Folder
from crosscoding.batch.model_fingerprint import model_fingerprint
from crosscoding.batch.models import folder_for_workers
from crosscoding.model.amortised_coverage import Coverage, CoveredShare
from crosscoding.model.amortised_record import Record


class Curved(nn.Module):
    """A network with a plain attribute that its text does not show."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 3)

    def forward(self, z):
        return self.linear(z).abs() ** self.power


def model(power=1.0):
    return cc.VAE(Curved(power), 2, cc.likelihoods.Gaussian(0.5))


def amortised(vae, network, crosscoder):
    return vae.with_amortised(cc.Amortised.of(vae, network, crosscoder))


def test_another_plain_attribute_is_another_model():
    assert model_fingerprint(model()) == model_fingerprint(model())
    assert model_fingerprint(model()) != model_fingerprint(model(5.0))


def test_another_density_of_the_prior_is_another_model(monkeypatch):
    vae = model()
    before, original = model_fingerprint(vae), type(vae.prior).log_prob
    monkeypatch.setattr(
        type(vae.prior), "log_prob", lambda self, z, given=None: 2 * original(self, z[:, :1])
    )
    assert model_fingerprint(vae) != before


class Scaled(nn.Module):
    """Proposes N(0, scale² I) for all evidence."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, values, mask):
        return self.scale * torch.ones(len(values), 4)


def test_the_amortised_network_is_part_of_the_model():
    vae, numbers = model(), torch.zeros(4)
    diagonal, mixture = crosscoders.Gaussian(diagonal=True), crosscoders.Mixture(1)
    found = [
        vae,
        amortised(vae, Constant(numbers), diagonal),
        amortised(vae, Constant(numbers + 0.5), diagonal),
        amortised(vae, Constant(torch.zeros(6)), mixture),
        amortised(vae, Scaled(0.5), diagonal),
        amortised(vae, Scaled(-0.5), diagonal),
    ]
    prints = [model_fingerprint(one) for one in found]
    assert len(set(prints)) == len(prints)
    again = amortised(model(), Constant(numbers), diagonal)
    assert model_fingerprint(again) == prints[1]


@pytest.mark.parametrize("factor", [1 + 1e-5, 1 - 1e-5])
def test_rounding_of_outputs_makes_no_other_model(monkeypatch, factor):
    vae = model()
    before, original = model_fingerprint(vae), cc.VAE.own_print

    def other_processor(self):
        found = original(self)
        noise = torch.linspace(-1, 1, found.outputs.numel()).reshape(found.outputs.shape)
        return type(found)(found.outputs * (1 + (factor - 1) * noise), found.likelihood)

    monkeypatch.setattr(cc.VAE, "own_print", other_processor)
    assert model_fingerprint(vae) == before


def test_what_twins_say_of_a_network_is_part_of_the_model():
    vae = amortised(model(), Constant(torch.zeros(4)), crosscoders.Gaussian(diagonal=True))
    part = CoveredShare(0.0, 1.0, 400, 0, -9.0, 0.0)
    record = Record("masks", 1, 1.0, 0.0, 0.0, 0.0, (), Coverage(cc.masks.mixed(), (part,)))
    known = vae.with_amortised(vae.amortised.with_record(record))
    assert model_fingerprint(known) != model_fingerprint(vae)


class Own(cc.masks.MaskDistribution):
    """Masks of a class that no file describes."""

    def draw(self, num, shape, *, generator):
        return torch.ones(num, *shape, dtype=torch.bool)


def test_workers_refuse_a_network_whose_twins_are_lost_on_the_way(tmp_path):
    torch.manual_seed(0)
    linear = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))
    made = cc.amortise(linear, masks=Own(), max_steps=1)
    part = CoveredShare(0.0, 1.0, 400, 0, -9.0, 0.0)
    record = replace(made.amortised.record, coverage=Coverage(Own(), (part,)))
    vae = made.with_amortised(made.amortised.with_record(record))
    with pytest.raises(ValueError, match="cross-coder's coverage cannot be saved"):
        folder_for_workers(vae, Folder(tmp_path, ".parquet"))
