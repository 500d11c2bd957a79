"""Decoders whose rows depend on each other are refused, and rounding does not count as that."""

import pytest
import torch
from torch import Tensor, nn
from user_networks import Function

import crosscoding as cc
from crosscoding.likelihoods import Categorical, Gaussian, Mixed

MIXING = {
    "a share of the mean": lambda output: output + 1e-4 * output.mean(0),
    "statistics of the batch, faintly": lambda output: output - 1e-4 * output.std(0),
    "the largest of the batch": lambda output: output / output.abs().max().clamp_min(8),
    "the first row": lambda output: output + 1e-4 * output[:1],
    "the last row": lambda output: output + 1e-4 * output[-1:],
    "the rows before": lambda output: output + 1e-4 * output.cumsum(0),
    "the lowest of the batch": lambda output: output + 1e-4 * output.amin(0),
    "the size of the batch": lambda output: output * (1 + 1e-4 / len(output)),
    "one row alone": lambda output: output * (1 + 1e-4 * (len(output) == 1)),
    "a batch norm, faintly": lambda output: (
        output
        + 1e-4
        * nn.functional.batch_norm(torch.cat([output, output]), None, None, training=True)[
            : len(output)
        ]
    ),
    "beside a column a million times as large": lambda output: torch.cat(
        [1e6 * output[:, :1], output[:, 1:] + 1e-3 * output[:1, 1:]], 1
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mixing", MIXING.values(), ids=MIXING)
def test_a_decoder_that_mixes_rows_a_little_is_refused(mixing, dtype):
    with pytest.raises(ValueError, match=r"does not depend on the other rows|one row alone"):
        cc.VAE(Function(after=mixing).to(dtype), 2, Gaussian())


def test_rounding_does_not_count_as_mixing():
    """Small differences of large numbers are rounded otherwise in a batch of another size."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 300), Sine(), nn.Linear(300, 300), Scaled(3e3))
    cc.VAE(nn.Sequential(decoder, nn.Linear(300, 5)), 2, Gaussian())


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return (self.factor * z + 1e4).sin()


def test_sines_of_large_numbers_do_not_count_as_mixing():
    """Vectorised kernels may round one number by how large its neighbours are."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 37), Sine(), nn.Linear(37, 37), Sine(), nn.Linear(37, 5))
    cc.VAE(decoder, 2, Gaussian())
    cc.VAE(decoder.double(), 2, Gaussian())


class Sine(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (30 * z).sin()


def test_the_message_on_a_decoder_that_squeezes_says_so():
    squeezing = Function(after=lambda output: output[:, None].squeeze())
    with pytest.raises(
        ValueError,
        match=r"shape \(1, 5\) for one row, as \(5, 5\) for 5, got \(5,\); a squeeze\(\)",
    ) as caught:
        cc.VAE(squeezing, 2, Gaussian())
    assert "batch norm" not in str(caught.value)


SQUEEZED: dict[str, tuple] = {
    "one number": (Gaussian(), lambda output: output[:, :1].squeeze(), r"\(5, 1\)"),
    "mean and scale": (
        Gaussian(None),
        lambda output: output[:, None, :2].exp().squeeze(),
        r"\(5, 1, 2\)",
    ),
    "classes": (Categorical(5), lambda output: output[:, None].squeeze(), r"\(5, 1, 5\)"),
    "a table": (Mixed([Gaussian()]), lambda output: output[:, :1].squeeze(), r"\(5, 1\)"),
}


@pytest.mark.parametrize("case", SQUEEZED)
def test_the_message_on_a_decoder_of_one_element_that_squeezes_says_so(case):
    likelihood, after, wanted = SQUEEZED[case]
    words = rf"dimension of the elements is missing, as after squeeze\(\).*output shape {wanted}"
    with pytest.raises(ValueError, match=words):
        cc.VAE(Function(after=after), 2, likelihood)


def test_a_decoder_for_one_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"any number of rows, got one that takes 5 but fails on"):
        cc.VAE(Function(after=lambda output: output.view(5, 5)), 2, Gaussian())


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_a_network_quantised_by_the_range_of_a_batch_is_refused():
    quantised = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)), {nn.Linear}
    )
    with pytest.raises(ValueError, match="quantised by the range of the batch"):
        cc.VAE(quantised, 2, Gaussian())
