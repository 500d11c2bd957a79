"""Decoders in half precision: nearly the same gradients, and never where they do not help."""

import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.model import coarse_decoder
from crosscoding.model.coarse_decoder import coarse


def _faces() -> cc.VAE:
    decoder = nn.Sequential(
        nn.Linear(6, 8 * 16),
        nn.Unflatten(1, (8, 4, 4)),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
        nn.Tanh(),
    )
    return cc.VAE(decoder, 6, cc.likelihoods.Gaussian(0.1))


def test_a_small_decoder_is_left_as_it_is():
    vae = _faces()
    assert coarse(vae) is vae


def test_gradients_are_nearly_those_of_the_decoder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coarse_decoder, "_EXPENSIVE", 0)
    monkeypatch.setattr(coarse_decoder, "half_is_faster", lambda device: True)
    vae = _faces()
    half = coarse(vae)
    assert half is not vae
    assert coarse(vae) is half
    z = torch.linspace(-1, 1, 12).reshape(2, 6).requires_grad_()
    slopes = [torch.autograd.grad(each.decode_flat(z).sum(), z)[0] for each in (vae, half)]
    torch.testing.assert_close(*slopes, rtol=0.05, atol=0.02)  # bfloat16 has 8 bits
    assert half.decode(z).dtype == vae.dtype


def test_a_decoder_that_fails_in_half_precision_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            hidden = self.linear(z)
            if hidden.dtype != torch.float32:
                raise TypeError("expected float32")
            return hidden

    monkeypatch.setattr(coarse_decoder, "_EXPENSIVE", 0)
    monkeypatch.setattr(coarse_decoder, "half_is_faster", lambda device: True)
    vae = cc.VAE(Strict(), 4, cc.likelihoods.Gaussian(0.1))
    assert coarse(vae) is vae


class Volumes(nn.Module):
    """A decoder of volumes, whose weights have five dimensions; a strict one keeps its dtype."""

    def __init__(self, *, strict: bool):
        super().__init__()
        self.linear, self.convolution = nn.Linear(6, 27), nn.Conv3d(1, 1, 3, padding=1)
        self.strict = strict

    def forward(self, z):
        hidden = self.linear(z)
        if self.strict and hidden.dtype != z.dtype:
            raise ValueError("expected one dtype")
        return self.convolution(hidden.unflatten(1, (1, 3, 3, 3)))


@pytest.mark.parametrize("strict", [False, True])
def test_whatever_half_precision_does_to_a_decoder_there_is_an_answer(monkeypatch, strict: bool):
    monkeypatch.setattr(coarse_decoder, "_EXPENSIVE", 0)
    monkeypatch.setattr(coarse_decoder, "half_is_faster", lambda device: True)
    vae = cc.VAE(Volumes(strict=strict), 6, cc.likelihoods.Gaussian(0.1))
    assert (coarse(vae) is vae) == strict
