"""Methods that need gradients, batched Jacobians or neither, a comparison of answers, a decoder."""

import pytest
import torch
from cheap_methods import CHEAP
from torch import nn

import crosscoding as cc
from crosscoding.methods import HMC, Auto, Importance, Laplace, NaturalGradient, Variational

METHODS = [
    cls(**CHEAP[cls]) for cls in (Auto, HMC, Importance, Laplace, NaturalGradient, Variational)
]
every_kind_of_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


class MeanAndScale(nn.Module):
    """A decoder whose elements have two parameters each."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, z):
        return self.mean(z), self.log_scale(z).exp()


def assert_same_answers(vae: cc.VAE, plain: cc.VAE, evidence: cc.Evidence, method) -> None:
    """Answers equal those of the plain decoder, up to amplified rounding."""
    mine, wanted = (cc.condition(model, evidence, method, seed=0) for model in (vae, plain))
    if isinstance(method, HMC):  # different rounding soon gives a different chain
        mean, spread = wanted.sample(80, seed=0).mean(0), wanted.sample(80, seed=0).std(0)
        # The 80 draws are 4 chains of 20, and worth about a third of their number.
        assert ((mine.sample(80, seed=0).mean(0) - mean).abs() < 5 * spread / 27**0.5).all()
        return
    torch.testing.assert_close(mine.sample(8, seed=0), wanted.sample(8, seed=0), rtol=0, atol=1e-2)
    torch.testing.assert_close(mine.log_evidence, wanted.log_evidence, rtol=0, atol=1e-3)
