"""Users' networks are tried before use, and refused if p(t|z) would not be a distribution.

What decoders in particular are refused for is in test_vae.py.
"""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from user_networks import Function

import crosscoding as cc
from crosscoding.likelihoods import Gaussian

# ---- networks that train themselves ------------------------------------------------------------


class StaysInTraining(nn.BatchNorm1d):
    """Batch norm that never leaves training mode, as some papers' code has it."""

    def train(self, mode: bool = True):
        return super().train(True)


class Counts(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 5)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(z)


class PowerIteration(nn.Linear):
    """Spectral norm that goes on iterating in eval mode."""

    def __init__(self) -> None:
        super().__init__(2, 5)
        self.register_buffer("left", torch.ones(5))

    def forward(self, z: Tensor) -> Tensor:
        self.left = nn.functional.normalize(self.weight @ (self.weight.mT @ self.left), dim=0)
        return super().forward(z) / (self.left @ self.weight).norm()


class Learns(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        self.weight.data.mul_(1 - 1e-6)  # behind autograd's back
        return super().forward(z)


TRAINING = {
    "0.running_mean": lambda: nn.Sequential(StaysInTraining(2), nn.Linear(2, 5)),
    "calls": Counts,
    "left": PowerIteration,
    "weight": lambda: Learns(2, 5),
}


@pytest.mark.parametrize(("changed", "make"), TRAINING.items(), ids=TRAINING)
def test_a_decoder_that_trains_itself_is_refused(changed, make):
    with pytest.raises(ValueError, match=f"decoder to keep its weights unchanged.*'{changed}'"):
        cc.VAE(make(), 2, Gaussian())


@pytest.mark.parametrize("make", TRAINING.values(), ids=TRAINING)
def test_a_refused_module_is_left_unchanged(make):
    decoder = make()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(ValueError, match="keep its weights"):
        cc.VAE(decoder, 2, Gaussian())
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_spectral_norm_that_stops_in_eval_mode_is_accepted():
    for norm in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        decoder = nn.Sequential(norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 5))
        with torch.no_grad():
            decoder(torch.zeros(1, 2))
        cc.VAE(decoder, 2, Gaussian())


def test_values_that_are_computed_once_and_kept_are_accepted():
    class Cached(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            if not hasattr(self, "shift"):
                self.register_buffer("shift", torch.ones(5))
            return super().forward(z) + self.shift

    cc.VAE(Cached(2, 5), 2, Gaussian())


def test_nan_that_stays_nan_does_not_count_as_a_change():
    decoder = nn.Linear(2, 5)
    decoder.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
    cc.VAE(decoder, 2, Gaussian())


# ---- noise -------------------------------------------------------------------------------------


def dropout(p: float):
    return lambda output: nn.functional.dropout(output, p)


NOISE = {
    "dropout of next to nothing": dropout(1e-6),
    "torch": lambda output: output + 1e-9 * torch.randn_like(output),
    "torch in double": lambda output: output + 0 * torch.rand(()),
    "numpy": lambda output: output + 1e-9 * float(np.random.standard_normal()),  # noqa: NPY002
    "python": lambda output: output + 1e-9 * random.gauss(0, 1),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_a_decoder_that_draws_random_numbers_is_refused_however_small_they_are(noise):
    decoder = Function(after=noise)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(ValueError, match=r"deterministic decoder, got one that draws random num"):
        cc.VAE(decoder, 2, Gaussian())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


class NoiseOfItsOwn(nn.Linear):
    """Noise from a generator that is an attribute."""

    def __init__(self, generator) -> None:
        super().__init__(2, 5)
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            noise = torch.rand((), generator=self.generator)
        elif isinstance(self.generator, random.Random):
            noise = self.generator.random()
        else:
            noise = float(self.generator.uniform())
        return super().forward(z) + 1e-12 * noise


@pytest.mark.parametrize(
    "make",
    [torch.Generator, np.random.default_rng, np.random.RandomState, random.Random],
    ids=["torch", "numpy", "older numpy", "python"],
)
def test_noise_from_the_networks_own_generator_is_noticed(make):
    with pytest.raises(ValueError, match="deterministic decoder"):
        cc.VAE(NoiseOfItsOwn(make()), 2, Gaussian())


def test_noise_from_a_generator_elsewhere_is_noticed_if_it_shows():
    generator = np.random.default_rng(0)
    noisy = Function(after=lambda output: output + 1e-5 * float(generator.standard_normal()))
    with pytest.raises(ValueError, match="deterministic decoder, got different outputs"):
        cc.VAE(noisy, 2, Gaussian())


def test_noise_that_is_drawn_once_and_kept_is_accepted():
    class Kept(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            if not hasattr(self, "noise"):
                self.noise = torch.randn(5)
            return super().forward(z) + self.noise

    cc.VAE(Kept(2, 5), 2, Gaussian())


# ---- what fails --------------------------------------------------------------------------------


class NeedsGPU(nn.Linear):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__(2, 5)
        self.error = error

    def forward(self, z: Tensor) -> Tensor:
        if self.error is AssertionError:
            return super().forward(z.cuda())
        raise self.error("Found no NVIDIA driver on your system: CUDA is not available")


@pytest.mark.parametrize("error", [AssertionError, RuntimeError])
def test_a_decoder_that_needs_a_missing_gpu_is_refused(error, monkeypatch):
    if error is AssertionError and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=r"CUDA.*remove \.cuda\(\) from its code"):
        cc.VAE(NeedsGPU(error), 2, Gaussian())


def test_whatever_a_decoder_raises_is_reported_in_one_line():
    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise KeyError("skip")

    with pytest.raises(
        ValueError, match=r"it failed on \(5, 2\): 'skip'; check latent_dim, or wrap"
    ):
        cc.VAE(Broken(), 2, Gaussian())
