"""Networks as plain data: every known layer survives a round trip, others are declined."""

import json
import math

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.model.cost import check_growth
from crosscoding.persistence.layers import (
    _ARGUMENTS,
    build,
    describe,
    load_weights,
    weights,
)

VECTOR, SIGNAL, PICTURE = (3, 4), (3, 2, 6), (3, 2, 6, 6)
# Each layer with a setting that is not its default, and what it takes.
LAYERS = {
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((2, 3)), PICTURE),
    "AvgPool1d": (nn.AvgPool1d(3, stride=2, padding=1), SIGNAL),
    "AvgPool2d": (nn.AvgPool2d((3, 2), stride=2, ceil_mode=True), PICTURE),
    "BatchNorm1d": (nn.BatchNorm1d(4, eps=0.1), VECTOR),
    "BatchNorm2d": (nn.BatchNorm2d(2, eps=0.1), PICTURE),
    "BatchNorm2d without weights": (nn.BatchNorm2d(2, affine=False), PICTURE),
    "Conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), SIGNAL),
    "Conv2d": (nn.Conv2d(2, 3, (3, 2), stride=2, padding=(1, 0)), PICTURE),
    "Conv2d dilated, of groups": (nn.Conv2d(2, 4, 3, dilation=2, groups=2), PICTURE),
    "Conv2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), PICTURE),
    "Conv2d same": (nn.Conv2d(2, 3, 3, padding="same", bias=False), PICTURE),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1), SIGNAL),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 5, 2, 2, output_padding=1), PICTURE),
    "Dropout": (nn.Dropout(0.7), VECTOR),
    "Dropout2d": (nn.Dropout2d(0.7), PICTURE),
    "ELU": (nn.ELU(alpha=0.5), VECTOR),
    "Flatten": (nn.Flatten(start_dim=2), PICTURE),
    "GELU": (nn.GELU(approximate="tanh"), VECTOR),
    "GroupNorm": (nn.GroupNorm(2, 4, eps=0.1), VECTOR),
    "GroupNorm without weights": (nn.GroupNorm(1, 4, affine=False), VECTOR),
    "Hardsigmoid": (nn.Hardsigmoid(), VECTOR),
    "Hardswish": (nn.Hardswish(), VECTOR),
    "Hardtanh": (nn.Hardtanh(-0.5, 0.2), VECTOR),
    "Identity": (nn.Identity(), VECTOR),
    "LayerNorm": (nn.LayerNorm((6, 6), eps=0.1), PICTURE),
    "LayerNorm without bias": (nn.LayerNorm(4, bias=False), VECTOR),
    "LayerNorm without weights": (nn.LayerNorm(4, elementwise_affine=False), VECTOR),
    "LeakyReLU": (nn.LeakyReLU(0.3), VECTOR),
    "Linear": (nn.Linear(4, 5), VECTOR),
    "Linear without bias": (nn.Linear(4, 5, bias=False), VECTOR),
    "LogSigmoid": (nn.LogSigmoid(), VECTOR),
    "LogSoftmax": (nn.LogSoftmax(dim=1), PICTURE),
    "MaxPool1d": (nn.MaxPool1d(2, stride=1, dilation=2), SIGNAL),
    "MaxPool2d": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), PICTURE),
    "Mish": (nn.Mish(), VECTOR),
    "PReLU": (nn.PReLU(4, init=0.1), VECTOR),
    "PixelShuffle": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)), PICTURE),
    "ReLU": (nn.ReLU(inplace=True), VECTOR),
    "ReLU6": (nn.ReLU6(), VECTOR),
    "ReflectionPad2d": (nn.ReflectionPad2d((1, 2, 0, 3)), PICTURE),
    "ReplicationPad2d": (nn.ReplicationPad2d(2), PICTURE),
    "SELU": (nn.SELU(), VECTOR),
    "SiLU": (nn.SiLU(), VECTOR),
    "Sigmoid": (nn.Sigmoid(), VECTOR),
    "Softmax": (nn.Softmax(dim=-1), VECTOR),
    "Softplus": (nn.Softplus(beta=2.0, threshold=3.0), VECTOR),
    "Tanh": (nn.Tanh(), VECTOR),
    "Unflatten": (nn.Unflatten(1, (2, 2)), VECTOR),
    "Upsample": (nn.Upsample(scale_factor=2, mode="nearest"), PICTURE),
    "Upsample by two factors": (nn.Upsample(scale_factor=(2.0, 3.0)), PICTURE),
    "Upsample to a size": (nn.Upsample(size=8), PICTURE),
    "Upsample from corner to corner": (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        PICTURE,
    ),
    "ZeroPad2d": (nn.ZeroPad2d((1, 2, 0, 3)), PICTURE),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_layer_is_rebuilt_from_its_description(layer, shape):
    network = nn.Sequential(layer)
    inputs = torch.randn(shape, generator=seeded(0))
    network(inputs.clone())  # moves the running statistics of batch norm off their start
    network.eval()
    description = json.loads(json.dumps(describe(network)))  # plain data only
    again = build(description)
    load_weights(again, {name: tensor.clone() for name, tensor in weights(network).items()})
    check_growth(again, shape[1:])
    assert torch.equal(again(inputs.clone()), network(inputs.clone()))
    assert describe(again) == describe(network)


def test_every_known_layer_is_tested_here():
    assert {name.split()[0] for name in LAYERS} == set(_ARGUMENTS)


def test_nested_stacks_are_described_in_order():
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Sigmoid())
    assert [name for name, _ in describe(nested)] == ["Linear", "ReLU", "Sigmoid"]


def test_a_bare_layer_is_a_stack_of_one():
    assert describe(nn.Tanh()) == [["Tanh", {}]]


class Residual(nn.Linear):
    def forward(self, z):
        return z + super().forward(z)


class OwnStack(nn.Sequential):
    def forward(self, z):
        return -super().forward(z)


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def with_its_own_forward() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda inputs: 2 * inputs
    return layer


OTHERS = {
    "subclass of a layer": Residual(2, 2),
    "subclass of a stack": OwnStack(nn.Linear(2, 2)),
    "unknown layer": nn.RReLU(),
    "batch norm without statistics": nn.BatchNorm1d(2, track_running_stats=False),
    "recomputed factor": nn.Upsample(scale_factor=1.3, recompute_scale_factor=True),
    "indices, too": nn.MaxPool2d(2, return_indices=True),
    "forward hook": hooked(),
    "forward of its own": with_its_own_forward(),
    "parametrised weight": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "spectral norm by hook": nn.utils.spectral_norm(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("module", OTHERS.values(), ids=OTHERS)
def test_a_module_that_would_lose_something_has_no_description(module):
    assert describe(module) is None
    stack = nn.Sequential(nn.Linear(2, 2), nn.Sequential(module))
    assert describe(stack) is None


def test_a_stack_with_a_hook_has_no_description():
    stack = nn.Sequential(nn.Linear(2, 2))
    stack.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert describe(nn.Sequential(stack)) is None


# ---- descriptions from elsewhere -------------------------------------------------------------


@pytest.mark.parametrize("description", [None, 3, {"Linear": {}}], ids=str)
def test_a_description_that_is_not_a_list_is_refused(description):
    with pytest.raises(cc.ModelFormatError, match="expected a list of layers, got"):
        build(description)


@pytest.mark.parametrize(
    "entry", ["Linear", ["Linear"], ["Linear", [2, 3]], {"Linear": {}}, None, ["Tanh", {}, {}]]
)
def test_an_entry_that_is_not_a_pair_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match=r"expected \[layer name, arguments\], got"):
        build([entry])


@pytest.mark.parametrize(
    "entry",
    [
        ["Lambda", {}],
        ["Module", {}],
        ["modules.Linear", {}],
        [["Linear"], {}],
        [None, {}],
    ],
    ids=str,
)
def test_an_unknown_layer_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match=r"expected a known layer, such as Linear, got"):
        build([entry])


@pytest.mark.parametrize(
    "entry",
    [
        ["Linear", {"in_features": 2, "out_features": 2, "device": "cuda"}],
        ["Tanh", {"__class__": 1}],
        ["Tanh", {"bias": True}],
        ["Dropout", {"p": 0.5, "inplace": True}],
    ],
    ids=str,
)
def test_an_unknown_argument_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match=r"expected .* for layer (Linear|Tanh|Dropout), "):
        build([entry])


@pytest.mark.parametrize(
    "entry",
    [
        ["Linear", {}],
        ["Linear", {"in_features": "2", "out_features": 2}],
        ["Linear", {"in_features": -2, "out_features": 2}],
        ["Linear", {"in_features": 10**30, "out_features": 2}],
        ["Conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": None}],
        ["Unflatten", {"dim": 1, "unflattened_size": 5}],
        ["Linear", {"in_features": True, "out_features": 2.5}],
        ["GroupNorm", {"num_groups": 0, "num_channels": 4}],
        ["Conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "groups": 0}],
        ["LeakyReLU", {"negative_slope": math.nan}],
        ["Hardtanh", {"min_val": -math.inf}],
        ["Hardtanh", {"min_val": 1, "max_val": 0}],
        ["Softmax", {"dim": {"a": 1}}],
        ["LayerNorm", {"normalized_shape": [[[[]]]]}],
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_built_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match="cannot build layer"):
        build([entry])


def test_a_message_is_short_whatever_is_wrong():
    for wrong in (["Linear", {"x" * 10**6: 1}], ["Y" * 10**6, {}], [[0] * 10**6], "z" * 10**6):
        with pytest.raises(cc.ModelFormatError) as caught:
            build([wrong])
        assert len(str(caught.value)) < 500


def test_a_million_layers_are_refused():
    with pytest.raises(cc.ModelFormatError, match="expected at most 1000 layers, got 1000000"):
        build([["Tanh", {}]] * 10**6)


# ---- what layers output ---------------------------------------------------------------------

BOMBS = {
    "upsampling": ([nn.Unflatten(1, (2, 1, 1)), nn.Upsample(scale_factor=10**5)], 1),
    "upsampling to a size": ([nn.Unflatten(1, (2, 1, 1)), nn.Upsample(size=10**5)], 1),
    "padding": ([nn.Unflatten(1, (2, 1, 1)), nn.ZeroPad2d(10**5)], 1),
    "padding within a layer": (
        [nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 1, 1, 30000, 15000, padding_mode="replicate")],
        1,
    ),
    "stride": (
        [nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 1, 1, 20000, output_padding=19999)],
        1,
    ),
    "little by little": ([nn.Unflatten(1, (2, 1, 1)), *[nn.Upsample(scale_factor=2)] * 50], 14),
    "pooling": ([nn.Unflatten(1, (2, 1, 1)), nn.AdaptiveAvgPool2d(10**5)], 1),
}


@pytest.mark.parametrize(("layers", "index"), BOMBS.values(), ids=BOMBS)
def test_layers_with_unreasonably_large_output_are_refused_before_they_run(layers, index):
    with pytest.raises(cc.ModelFormatError, match=rf"at most 268435456 numbers .* layer {index}, "):
        check_growth(nn.Sequential(*layers), (2,))


SLOW = {
    "a large window": ([nn.AvgPool2d(1500, stride=1)], 2),
    "a large filter": ([nn.Conv2d(2, 2, 1500, padding=750)], 2),
    "transposed": ([nn.ConvTranspose2d(2, 2, 1500)], 2),
    "little by little": (
        [nn.Conv2d(2, 2, 191, padding=95), nn.MaxPool2d(191, 1, 95)] * 5,
        10,
    ),
}


@pytest.mark.parametrize(("layers", "index"), SLOW.values(), ids=SLOW)
def test_layers_that_take_unreasonably_long_are_refused_before_they_run(layers, index):
    network = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.Upsample(size=3000), *layers)
    said = rf"at most 8796093022208 multiply-adds for one row, .* layer {index}, "
    with pytest.raises(cc.ModelFormatError, match=said):
        check_growth(network, (2,))


def test_a_decoder_of_a_trillion_multiply_adds_is_accepted():
    """As that of Stable Diffusion, for 512 x 512 pixels."""
    with torch.device("meta"):
        layers = [nn.Conv2d(1024, 1024, 3, padding=1) for _ in range(8)]
    network = nn.Sequential(nn.Unflatten(1, (1024, 1, 1)), nn.Upsample(size=128), *layers)
    check_growth(network, (1024,))


def test_a_layer_that_does_not_accept_its_input_is_named():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 5))
    with pytest.raises(
        cc.ModelFormatError, match=r"layer 1 that takes shape \(3,\), got \['Linear"
    ):
        check_growth(network, (2,))


def test_the_output_of_other_networks_is_not_followed():
    check_growth(Residual(2, 2), (7,))


# ---- weights ---------------------------------------------------------------------------------


def test_if_several_weights_do_not_fit_that_of_the_first_layer_is_named():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    other = nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 4)).state_dict()
    with pytest.raises(cc.ModelFormatError, match=r"\(3, 2\) for weight '0\.weight', got \(9, 2\)"):
        load_weights(network, other)


def test_weights_of_integers_are_refused():
    network = build([["Linear", {"in_features": 2, "out_features": 3, "bias": False}]])
    with pytest.raises(cc.ModelFormatError, match="of a floating-point dtype"):
        load_weights(network, {"0.weight": torch.zeros(3, 2, dtype=torch.int32)})


def test_a_layer_of_a_billion_by_a_billion_takes_no_memory():
    billion = ["Linear", {"in_features": 10**9, "out_features": 10**9}]
    with pytest.raises(cc.ModelFormatError, match=r"\(1000000000, 1000000000\) for weight"):
        load_weights(build([billion]), {"0.weight": torch.zeros(3, 2)})


def test_weights_determine_the_dtype():
    weights = nn.Sequential(nn.Linear(2, 3)).double().state_dict()
    network = build([["Linear", {"in_features": 2, "out_features": 3}]])
    load_weights(network, weights)
    assert network[0].weight.dtype == torch.double
    assert torch.equal(network[0].weight, weights["0.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, r"expected \(3,\) for weight '0\.bias', got nothing"),
        ({"1.bias": torch.zeros(3)}, r"expected nothing for weight '1\.bias', got \(3,\)"),
        (
            {"0.weight": torch.zeros(2, 3)},
            r"expected \(3, 2\) for weight '0\.weight', got \(2, 3\)",
        ),
    ],
    ids=["missing", "left over", "of another shape"],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message):
    network = nn.Sequential(nn.Linear(2, 3))
    weights = {k: v for k, v in (network.state_dict() | change).items() if v is not None}
    with pytest.raises(cc.ModelFormatError, match=message):
        load_weights(network, weights)
