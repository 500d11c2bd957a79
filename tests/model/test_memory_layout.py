"""Convolutions run in the layout that is fastest, unless the network needs another one."""

import pytest
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


class Normalised(nn.Conv2d):
    """Computes its weight from two others in each run, as some weight norms do."""

    def __init__(self):
        super().__init__(3, 3, 1)
        self.size = nn.Parameter(torch.tensor(2.0))
        self.direction = nn.Parameter(self.weight.detach() / self.weight.detach().norm())
        del self.weight

    def forward(self, image):
        return nn.functional.conv2d(image, self.size * self.direction, self.bias)


def test_a_convolution_without_a_weight_of_its_own_is_left_alone():
    vae = cc.VAE(images(Normalised()), 2, Gaussian(0.1))
    assert has_channels_last(vae)
    assert vae.data_shape == (3, 8, 8)


class FirstRun(nn.Module):
    """Normalises by the first batch that it sees, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, image):
        if self.seen == 0:
            self.shift.copy_(image.mean())
            self.seen.fill_(1)
        return image - self.shift


def test_a_network_that_changes_in_its_first_run_is_refused_as_ever():
    with pytest.raises(ValueError, match="keep its weights unchanged"):
        cc.VAE(images(FirstRun()), 2, Gaussian(0.1))


def test_one_convolution_and_norms_over_images_are_left_alone():
    one = nn.Sequential(nn.Linear(2, 48), nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 3, 1))
    assert cc.VAE(one, 2, Gaussian(0.1)).decoder[2].weight.is_contiguous()
    assert not has_channels_last(cc.VAE(images(nn.LayerNorm([3, 8, 8])), 2, Gaussian(0.1)))


def test_the_layout_is_not_saved_and_comes_back(tmp_path):
    vae = cc.VAE(images(nn.Identity()), 2, Gaussian(0.1))
    vae.save(tmp_path / "model")
    again = cc.load_vae(tmp_path / "model")
    assert has_channels_last(again)
    z = torch.zeros(1, 2)
    assert torch.equal(again.decode(z), vae.decode(z))
