"""Damaged folders of priors and covariates, and such as are made to do harm, are refused."""

import pytest
import torch
from prior_cases import filled
from tampering import (
    add_tensor,
    edit_description,
    edit_parts,
    edit_tensor,
    without_description,
    without_tensor,
)
from torch import nn

import crosscoding as cc
from crosscoding.errors import ModelFormatError
from crosscoding.likelihoods import Gaussian
from crosscoding.priors import Gaussian as GaussianPrior
from crosscoding.priors import Hierarchical, Mixture


def change_prior(change):
    return edit_parts(lambda _, description: change(description["prior"]))


def with_settings(**settings):
    return change_prior(lambda prior: prior["settings"].update(settings))


def saved(folder, prior=None) -> None:
    prior = prior or GaussianPrior(torch.zeros(2).double(), 1.0)
    cc.VAE(filled(nn.Linear(2, 5)), 2, Gaussian(0.5), prior=prior).save(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_description(prior="normal"), "prior"),
        (edit_description(prior={"name": "Gaussian"}), "a prior's description"),
        (change_prior(lambda p: p.update(name="Prior")), "known prior with its settings"),
        (change_prior(lambda p: p.update(name=3)), "known prior with its settings"),
        (change_prior(lambda p: p.update(more=3)), "a prior's description"),
        (change_prior(lambda p: p.update(settings=None)), "known prior with its settings"),
        (change_prior(lambda p: p["settings"].pop("full")), "known prior with its settings"),
        (change_prior(lambda p: p.update(networks={"mean": [["Evil", {}]]})), "known layer"),
        (with_settings(latent_dim=3), "expected"),
        (with_settings(latent_dim=-1), "known prior with its settings"),
        (with_settings(latent_dim="2"), "known prior with its settings"),
        (with_settings(full=True), r"expected \(2, 2\) for weight 'scale'"),
        (without_tensor("prior.mean"), "weight 'mean', got nothing"),
        (add_tensor("prior.more", torch.zeros(2)), "weight 'more'"),
        (edit_tensor("prior.scale", lambda t: t[:1]), "weight 'scale'"),
        (edit_tensor("prior.scale", lambda t: -t), "parts do not fit|other values"),
        (edit_tensor("prior.scale", lambda t: 2 * t), "outputs what it did"),
        (edit_tensor("prior.mean", lambda t: t * torch.nan), "finite"),
        (without_description("prior"), "unknown 'prior"),
        (edit_description(given=[3]), "how covariates are nested"),
        (add_tensor("given.0", torch.zeros(3, 2)), "no covariates but those described"),
    ],
)
def test_damaged_folders(change, words, tmp_path):
    saved(tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises((ModelFormatError, cc.NonFiniteError), match=words):
        cc.load_vae(tmp_path / "model")


@pytest.mark.parametrize(
    "layers",
    [
        [["Linear", {"in_features": 1, "out_features": 2, "bias": True}], ["Upsample", None]],
        [["Linear", {"in_features": 3, "out_features": 2, "bias": True}]],
    ],
)
def test_networks_that_grow_or_do_not_fit(layers, tmp_path):
    network = filled(nn.Sequential(nn.Linear(1, 2), nn.Unflatten(1, (1, 2)), nn.Flatten()))
    saved(tmp_path / "model", Hierarchical((1, 1), [network]))
    if layers[-1][0] == "Upsample":
        unflatten = ["Unflatten", {"dim": 1, "unflattened_size": [1, 2]}]
        upsample = {"size": None, "scale_factor": 1e9, "mode": "nearest", "align_corners": None}
        layers = [
            layers[0],
            unflatten,
            ["Upsample", upsample],
            ["Flatten", {"start_dim": 1, "end_dim": -1}],
        ]
    name = "conditionals.0"
    change_prior(lambda prior: prior["networks"].update({name: layers}))(tmp_path / "model")
    with pytest.raises(ModelFormatError):
        cc.load_vae(tmp_path / "model")


def test_settings_that_take_all_memory_are_refused(tmp_path):
    mixture = Mixture(torch.ones(2), torch.zeros(2, 2).double(), 1.0)
    saved(tmp_path / "model", mixture)
    with_settings(components=10**12)(tmp_path / "model")
    with pytest.raises(ModelFormatError, match="for weight 'log_weights'"):
        cc.load_vae(tmp_path / "model")


def test_a_prior_cannot_be_passed_where_none_was_saved(tmp_path):
    cc.VAE(nn.Linear(2, 5), 2, Gaussian(0.5)).save(tmp_path / "model")
    with pytest.raises(ValueError, match="expected no prior, as none was saved"):
        cc.load_vae(tmp_path / "model", prior=GaussianPrior(torch.zeros(2), 1.0))
