"""Convolutions run in the layout that is fastest, unless the network needs another one."""

import torch
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


def images(flatten: nn.Module) -> nn.Module:
    """A decoder of pictures of 8 x 8 with 3 channels, and what becomes of these."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 4 * 4 * 4),
        nn.Unflatten(1, (4, 4, 4)),
        nn.ConvTranspose2d(4, 6, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 3, 3, padding=1),
        flatten,
    )


class View(nn.Module):
    def forward(self, image):
        return image.view(len(image), -1)


def has_channels_last(vae: cc.VAE) -> bool:
    weight = vae.decoder[4].weight
    return weight.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_of_the_copy_have_channels_last_and_decode_the_same():
    decoder = images(nn.Identity())
    vae = cc.VAE(decoder, 2, Gaussian(0.1))
    assert has_channels_last(vae)
    assert decoder[4].weight.is_contiguous()
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.decode(z), decoder(z).detach())


def test_a_network_that_needs_the_usual_layout_keeps_it():
    vae = cc.VAE(images(View()), 2, Gaussian(0.1))
    assert not has_channels_last(vae)
    evidence = cc.Evidence(vae.sample_prior(1, seed=0)[0], torch.arange(192) < 40)
    assert cc.condition(vae, evidence, seed=0).log_evidence.isfinite()


def test_the_layout_is_not_saved_and_comes_back(tmp_path):
    vae = cc.VAE(images(nn.Identity()), 2, Gaussian(0.1))
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    assert has_channels_last(again)
    z = torch.zeros(1, 2)
    assert torch.equal(again.decode(z), vae.decode(z))
