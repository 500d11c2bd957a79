"""Networks of others: tried before they are relied on, and refused where p(t|z) would be none.

What decoders in particular are refused for is in test_vae.py.
"""

import pytest
import torch
from torch import Tensor, nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


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
    with pytest.raises(ValueError, match=f"decoder to leave its weights as they are.*'{changed}'"):
        cc.VAE(make(), 2, Gaussian())


@pytest.mark.parametrize("make", TRAINING.values(), ids=TRAINING)
def test_and_the_module_that_was_passed_is_left_as_it_was(make):
    decoder = make()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(ValueError, match="leave its weights"):
        cc.VAE(decoder, 2, Gaussian())
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_spectral_norm_that_stops_in_eval_mode_is_accepted():
    for norm in (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm):
        decoder = nn.Sequential(norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 5))
        with torch.no_grad():
            decoder(torch.zeros(1, 2))
        cc.VAE(decoder, 2, Gaussian())


def test_what_is_worked_out_once_and_kept_is_accepted():
    class Cached(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            if not hasattr(self, "shift"):
                self.register_buffer("shift", torch.ones(5))
            return super().forward(z) + self.shift

    cc.VAE(Cached(2, 5), 2, Gaussian())


def test_nan_that_stays_nan_is_no_change():
    decoder = nn.Linear(2, 5)
    decoder.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
    cc.VAE(decoder, 2, Gaussian())


def test_a_decoder_that_writes_over_z_is_refused():
    """Particles of the caller's would be changed; and ReLU twice is ReLU, so outputs agree."""
    decoder = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 5))
    with pytest.raises(ValueError, match=r"leave its input as it is.*inplace=False"):
        cc.VAE(decoder, 2, Gaussian())


class NeedsGPU(nn.Linear):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__(2, 5)
        self.error = error

    def forward(self, z: Tensor) -> Tensor:
        if self.error is AssertionError:
            return super().forward(z.cuda())
        raise self.error("Found no NVIDIA driver on your system: CUDA is not available")


@pytest.mark.parametrize("error", [AssertionError, RuntimeError])
def test_a_decoder_that_asks_for_a_gpu_that_is_not_there_is_refused(error, monkeypatch):
    if error is AssertionError and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=r"CUDA.*take \.cuda\(\) out of its code"):
        cc.VAE(NeedsGPU(error), 2, Gaussian())


def test_whatever_a_decoder_raises_is_told_in_a_line():
    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise KeyError("skip")

    with pytest.raises(
        ValueError, match=r"it failed on \(5, 2\): 'skip'; check latent_dim, or wrap"
    ):
        cc.VAE(Broken(), 2, Gaussian())
