"""A decoder that every library wraps, evidence for it, and what onnx2pytorch needs to import."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc


def _stand_in(name: str, *names: str) -> None:
    """Register an empty module of this name that has the given names."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(dict.fromkeys(names))
    sys.modules[name] = module


@pytest.fixture(scope="session")
def onnx2pytorch():
    """The library, imported without torchvision if that is not installed.

    It uses torchvision only to read pictures and cut out boxes, which no decoder does; and a
    torchvision that was built for another torch cannot be imported.
    """
    pytest.importorskip("onnx")
    missing = importlib.util.find_spec("torchvision") is None
    if missing:
        _stand_in("torchvision")
        _stand_in("torchvision.io", "decode_image", "ImageReadMode")
        _stand_in("torchvision.ops", "deform_conv2d", "roi_align", "roi_pool")
    try:
        return pytest.importorskip("onnx2pytorch")
    finally:
        for name in ("torchvision", "torchvision.io", "torchvision.ops"):
            if missing:
                del sys.modules[name]


@pytest.fixture(scope="session")
def decoder() -> nn.Module:
    """From z (B, 4) to pictures (B, 1, 8, 8), with layers that VAEs have."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            *(nn.Linear(4, 32), nn.Tanh(), nn.Unflatten(1, (8, 2, 2))),
            *(nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.SiLU()),
            *(nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, padding=1)),
        )
        layers(torch.randn(64, 4))  # gives batch norm its running statistics
    return layers.eval()


@pytest.fixture(scope="session")
def plain(decoder) -> cc.VAE:
    """The same decoder, used directly."""
    return cc.VAE(decoder, 4, cc.likelihoods.Gaussian(0.1))


@pytest.fixture(scope="session")
def z() -> torch.Tensor:
    return torch.randn(5, 4, generator=seeded(1))


@pytest.fixture(scope="session")
def evidence(plain) -> cc.Evidence:
    return cc.Evidence(plain.sample_prior(2, seed=1), cc.random_mask((1, 8, 8), 0.3, seed=0))
