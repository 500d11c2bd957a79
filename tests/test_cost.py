"""What decoding takes: multiply-adds of products, numbers that go to memory, counted by one run."""

import torch
from torch import nn
from torch.nn import functional as F

from crosscoding.cost import Cost, cost_of


def test_a_layer_is_its_products_and_what_it_puts_out():
    layers = nn.Sequential(nn.Linear(3, 100), nn.Tanh(), nn.Linear(100, 7))
    assert cost_of(layers, torch.zeros(1, 3)) == Cost(3 * 100 + 100 * 7, 100 + 100 + 7)


def test_a_convolution_counts_for_every_pixel():
    layer = nn.Conv2d(2, 5, 3, padding=1)
    cost = cost_of(lambda z: layer(z.reshape(1, 2, 4, 4)), torch.zeros(1, 32))
    assert cost.operations == 5 * 2 * 9 * 16
    assert cost.values == 5 * 16


def test_functions_count_as_layers_do():
    weight = torch.ones(50, 3)
    cost = cost_of(lambda z: F.relu(z @ weight.mT), torch.zeros(1, 3))
    assert cost == Cost(150, 100)


def test_a_view_takes_nothing():
    assert cost_of(lambda z: z.reshape(3, 2).mT[None], torch.zeros(1, 6)) == Cost(0, 0)
