"""The cost of decoding: multiply-adds and numbers written to memory, counted in one run."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crosscoding.errors import ModelFormatError
from crosscoding.model.cost import Cost, Limited, cost_of


def test_the_cost_of_a_layer_is_its_products_and_its_output():
    layers = nn.Sequential(nn.Linear(3, 100), nn.Tanh(), nn.Linear(100, 7))
    assert cost_of(layers, torch.zeros(1, 3)) == Cost(3 * 100 + 100 * 7, 100 + 100 + 7)


def test_a_convolution_is_counted_at_every_pixel():
    layer = nn.Conv2d(2, 5, 3, padding=1)
    cost = cost_of(lambda z: layer(z.reshape(1, 2, 4, 4)), torch.zeros(1, 32))
    assert cost.operations == 5 * 2 * 9 * 16
    assert cost.values == 5 * 16


def test_functions_are_counted_like_layers():
    weight = torch.ones(50, 3)
    cost = cost_of(lambda z: F.relu(z @ weight.mT), torch.zeros(1, 3))
    assert cost == Cost(150, 100)


def test_a_view_costs_nothing():
    assert cost_of(lambda z: z.reshape(3, 2).mT[None], torch.zeros(1, 6)) == Cost(0, 0)


@pytest.mark.parametrize(
    ("layer", "seen"),
    [
        (nn.AvgPool1d(3), 1 * 2 * 3),
        (nn.AvgPool2d(3), 2 * 2 * 9),
        (nn.AvgPool2d((3, 2), stride=1), 4 * 5 * 6),
        (nn.MaxPool2d((3,)), 2 * 2 * 9),
        (nn.MaxPool2d(2), 3 * 3 * 4),
        (nn.AvgPool3d(2), 3 * 3 * 3 * 8),
        (nn.MaxPool3d((1, 2, 3)), 6 * 3 * 2 * 6),
    ],
    ids=str,
)
def test_pooling_counts_every_number_in_its_windows(layer, seen):
    num_dims = int(type(layer).__name__[-2])
    assert cost_of(layer, torch.zeros(1, 1, *[6] * num_dims)).operations == seen


def test_attention_and_recurrent_layers_cost_their_products():
    points = torch.zeros(1, 2, 128, 16)
    attention = cost_of(lambda z: F.scaled_dot_product_attention(z, z, z), points)
    assert attention.operations == 2 * 2 * 128 * 128 * 16
    recurrent = cost_of(nn.LSTM(64, 256), torch.zeros(50, 3, 64))
    assert recurrent.operations == 50 * 3 * 4 * 256 * (64 + 256)


# ---- limits ------------------------------------------------------------------------------------

FORTY = Cost(1e9, 40)


def test_networks_within_the_limit_run_unchanged():
    layers, z = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 7)), torch.ones(1, 3)
    with Limited(Cost(1e9, 16 + 16 + 7)):
        output = layers(z)
    assert torch.equal(output, layers(z))


EXCESSIVE = {
    "output": lambda: torch.ones(41),
    "output, on a device that is named": lambda: torch.ones(41, device="cpu"),
    "outputs together": lambda: [torch.ones(20) for _ in range(3)],
    "a copy": lambda: torch.ones(1).expand(2**60).clone(),
    "what is read": lambda: torch.ones(1).expand(2**60).sum(),
    "products": lambda: torch.ones(1, 1).expand(2, 2**60) @ torch.ones(1, 1).expand(2**60, 2),
    "attention": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1).expand(1, 1, 2**40, 1)] * 3
    ),
    "a recurrent layer": lambda: nn.LSTM(1, 1)(torch.ones(1).expand(2**40, 1, 1)),
    "a choice": lambda: torch.ones(1).expand(2**60).nonzero(),
    "a choice by mask": lambda: torch.ones(1)[torch.ones(1, dtype=torch.bool).expand(2**60)],
    "as many as a number says": lambda: torch.repeat_interleave(torch.tensor([41])),
    "steps": lambda: [torch.ones(()).neg_() for _ in range(300)],
}


@pytest.mark.parametrize("run", EXCESSIVE.values(), ids=EXCESSIVE)
def test_networks_beyond_the_limit_are_refused(run):
    said = r"at most 1000000000 .* and at most 40 numbers .* more at aten"
    with pytest.raises(ModelFormatError, match=said), Limited(FORTY):
        run()


def test_values_are_the_same_with_and_without_a_limit():
    with Limited(FORTY):
        assert torch.arange(3).add(1).tolist() == [1, 2, 3]
        assert torch.ones(3)[torch.tensor([True, False, True])].shape == (2,)
