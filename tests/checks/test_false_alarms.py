"""No false alarms for the models of the zoo, on data they were not trained on."""

import pytest

import crosscoding as cc
from crosscoding.zoo.training.data import load_digits, load_pictures, scaled
from crosscoding.zoo.training.recipe import RECIPES


@pytest.mark.parametrize(
    ("name", "with_encoder"),
    [(name, True) for name in RECIPES] + [("mnist-2d", False), ("mnist-20d", False)],
)
@pytest.mark.slow
def test_no_model_of_the_zoo_raises_a_false_alarm(name, with_encoder, data_folder):
    if name.startswith("mnist"):
        data = load_digits(data_folder, "test")
    else:
        archive = data_folder / f"{name.partition('-')[0]}_64.zip"
        data = scaled(load_pictures(archive, 64, last=300))
    vae = cc.zoo.load(name)
    if not with_encoder:
        vae = cc.VAE(vae.decoder, vae.latent_dim, vae.likelihood)
    report = vae.check(data)
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)
