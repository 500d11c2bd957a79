"""Fixtures: a saved model of any kind."""

import pytest
from saved_models import ARGUMENTS, MODELS, filled

import crosscoding as cc


@pytest.fixture
def saved(tmp_path):
    """A function from a model's name to the model and the folder it was saved in."""

    def save(name):
        vae = MODELS[name]()
        filled(vae.decoder)
        vae = cc.VAE(vae.decoder, vae.latent_dim, vae.likelihood, vae.encoder)
        vae.save(tmp_path / "model", **ARGUMENTS.get(name, {}))
        return vae, tmp_path / "model"

    return save
