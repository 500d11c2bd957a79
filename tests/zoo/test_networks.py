"""The networks of the zoo: their shapes, and invalid sizes."""

import pytest
import torch
from torch import nn

from crosscoding.persistence.layers import build, describe
from crosscoding.zoo.networks import (
    conv_decoder,
    conv_encoder,
    mlp,
    mlp_decoder,
    mlp_encoder,
    smallest_side,
)


def test_an_mlp_has_relu_between_its_layers_and_nothing_after_the_last():
    kinds = [type(layer) for layer in mlp((4, 3, 2))]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("encoder", "decoder", "shape"),
    [
        (mlp_encoder((3, 2), (5,), 4), mlp_decoder(4, (5,), (3, 2)), (3, 2)),
        (conv_encoder((3, 16, 16), (4, 6), 4, 5), conv_decoder(4, (6, 5), (3, 16, 16), 5),
         (3, 16, 16)),
        (conv_encoder((1, 8, 8), (4,), 4, 3), conv_decoder(4, (6,), (1, 8, 8), 3), (1, 8, 8)),
    ],
)  # fmt: skip
def test_encoder_and_decoder_fit_each_other_and_a_card(encoder, decoder, shape):
    data = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert encoder(data).shape == (2, 8)
    assert decoder(encoder(data)[:, :4]).shape == (2, *shape)
    for network in (encoder, decoder):
        description = describe(network)
        assert [type(layer) for layer in build(description)] == [type(layer) for layer in network]


def test_convolutions_have_a_bias_only_where_no_batch_norm_follows():
    network = conv_decoder(4, (6, 5), (3, 16, 16), 5)
    biases = [m.bias is not None for m in network if isinstance(m, nn.ConvTranspose2d)]
    assert biases == [False, True]


@pytest.mark.parametrize("shape", [(3, 64, 32), (3, 20, 20), (3, 4, 4)])
def test_images_that_cannot_be_halved_that_often_are_refused(shape):
    height, width = shape[-2:]
    with pytest.raises(
        ValueError, match=rf"square images .* halved 3 times, got {height} x {width}"
    ):
        smallest_side(shape, 3)
