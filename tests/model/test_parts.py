"""A model as tensors and JSON and back; its folders are in test_files.py."""

import pytest
import torch
from problems import seeded
from torch import nn
from user_networks import Residual

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5))


STACKS = {
    "flat stack": network,
    "bare layer": lambda: nn.Linear(2, 5),
    "nested stack": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU()), nn.Linear(8, 5)
    ),
    "shared layer": lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2),
    "double": lambda: network().double(),
}


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
def test_parts_describe_the_model(make):
    vae = cc.VAE(make(), 2, Gaussian(0.2))
    again = cc.VAE.from_parts(vae.to_parts())
    z = torch.randn(4, 2, generator=seeded(0)).to(vae.dtype)
    assert again.dtype == vae.dtype
    assert again.latent_dim == vae.latent_dim
    assert again.likelihood.scale == 0.2
    torch.testing.assert_close(again.decode(z), vae.decode(z), rtol=0, atol=0)


def test_parts_keep_a_tensor_scale():
    scale = torch.linspace(0.1, 0.5, 5)
    vae = cc.VAE(nn.Sequential(nn.Linear(2, 5)), 2, Gaussian(scale))
    assert torch.equal(cc.VAE.from_parts(vae.to_parts()).likelihood.scale, scale)


def test_a_decoder_of_another_kind_has_no_parts():
    assert cc.VAE(Residual(7), 2, Gaussian()).to_parts() is None


def test_a_decoder_with_hooks_has_no_parts():
    """A description would lose what a hook does."""
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh())
    decoder[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert cc.VAE(decoder, 2, Gaussian()).to_parts() is None


def test_loading_a_model_leaves_the_global_generator_alone():
    parts = cc.VAE(nn.Sequential(nn.Linear(2, 5)), 2, Gaussian()).to_parts()
    before = torch.get_rng_state()
    cc.VAE.from_parts(parts)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("missing", ["architecture", "latent_dim", "likelihood"])
def test_parts_that_lack_an_entry_are_refused(missing):
    tensors, description = cc.VAE(nn.Sequential(nn.Linear(2, 5)), 2, Gaussian()).to_parts()
    del description[missing]
    with pytest.raises(cc.ModelFormatError, match=f"description is incomplete.*{missing}"):
        cc.VAE.from_parts((tensors, description))


@pytest.mark.parametrize("latent_dim", ["2", 3, 0, None, 2.0])
def test_parts_of_an_impossible_latent_dim_are_refused(latent_dim):
    tensors, description = cc.VAE(nn.Sequential(nn.Linear(2, 5)), 2, Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match=r"latent_dim|takes shape \(3,\), got"):
        cc.VAE.from_parts((tensors, {**description, "latent_dim": latent_dim}))


def test_parts_without_a_weight_are_refused():
    tensors, description = cc.VAE(nn.Sequential(nn.Linear(2, 5)), 2, Gaussian()).to_parts()
    del tensors["decoder.0.bias"]
    with pytest.raises(cc.ModelFormatError, match=r"weight '0\.bias', got nothing"):
        cc.VAE.from_parts((tensors, description))
