"""Networks as plain data: every known layer there and back, everything else declined."""

import json

import pytest
import torch
from problems import seeded
from torch import nn

import crosscoding as cc
from crosscoding.architecture import build, describe, load_weights

LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d(4, eps=0.1), (3, 4)),
    "BatchNorm2d": (nn.BatchNorm2d(4, eps=0.1), (3, 4, 5, 5)),
    "Conv2d": (nn.Conv2d(2, 3, (3, 2), stride=2, padding=(1, 0)), (3, 2, 6, 6)),
    "Conv2d same": (nn.Conv2d(2, 3, 3, padding="same", bias=False), (3, 2, 6, 6)),
    "ConvTranspose2d": (
        nn.ConvTranspose2d(2, 3, 5, stride=2, padding=2, output_padding=1),
        (3, 2, 6, 6),
    ),
    "ELU": (nn.ELU(alpha=0.5), (3, 4)),
    "Flatten": (nn.Flatten(start_dim=2), (3, 2, 4, 5)),
    "GELU": (nn.GELU(approximate="tanh"), (3, 4)),
    "LeakyReLU": (nn.LeakyReLU(0.3), (3, 4)),
    "Linear": (nn.Linear(4, 5), (3, 4)),
    "Linear without bias": (nn.Linear(4, 5, bias=False), (3, 4)),
    "ReLU": (nn.ReLU(), (3, 4)),
    "SiLU": (nn.SiLU(), (3, 4)),
    "Sigmoid": (nn.Sigmoid(), (3, 4)),
    "Softplus": (nn.Softplus(beta=2.0, threshold=3.0), (3, 4)),
    "Tanh": (nn.Tanh(), (3, 4)),
    "Unflatten": (nn.Unflatten(1, (2, 2)), (3, 4)),
    "Upsample": (nn.Upsample(scale_factor=2, mode="nearest"), (3, 2, 4, 4)),
    "Upsample by two factors": (nn.Upsample(scale_factor=(2.0, 3.0)), (3, 2, 4, 4)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_every_layer_is_rebuilt_from_its_description(layer, shape):
    network = nn.Sequential(layer)
    inputs = torch.randn(shape, generator=seeded(0))
    network(inputs)  # moves the running statistics of batch norm off their start
    network.eval()
    description = json.loads(json.dumps(describe(network)))  # plain data only
    again = build(description)
    load_weights(again, network.state_dict())
    assert torch.equal(again.eval()(inputs), network(inputs))


def test_every_known_layer_is_tested_here():
    from crosscoding.architecture import _ARGUMENTS

    assert {type(layer).__name__ for layer, _ in LAYERS.values()} == set(_ARGUMENTS)


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


OTHERS = {
    "subclass of a layer": Residual(2, 2),
    "subclass of a stack": OwnStack(nn.Linear(2, 2)),
    "unknown layer": nn.Dropout(0.5),
    "dilation": nn.Conv2d(1, 1, 3, dilation=2),
    "groups": nn.Conv2d(2, 2, 3, groups=2),
    "padding mode": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
    "batch norm without weights": nn.BatchNorm2d(2, affine=False),
    "batch norm without statistics": nn.BatchNorm1d(2, track_running_stats=False),
    "upsampling to a size": nn.Upsample(size=8),
    "aligned corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "recomputed factor": nn.Upsample(scale_factor=1.3, recompute_scale_factor=True),
    "forward hook": hooked(),
    "parametrised weight": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "spectral norm by hook": nn.utils.spectral_norm(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("module", OTHERS.values(), ids=OTHERS)
def test_a_module_that_would_lose_something_has_no_description(module):
    assert describe(module) is None
    assert describe(nn.Sequential(nn.Linear(2, 2), module)) is None


# ---- descriptions from elsewhere -------------------------------------------------------------


@pytest.mark.parametrize("description", [None, 3, {"Linear": {}}], ids=str)
def test_a_description_that_is_no_list_is_refused(description):
    with pytest.raises(cc.ModelFormatError, match="expected a list of layers, got"):
        build(description)


@pytest.mark.parametrize(
    "entry", ["Linear", ["Linear"], ["Linear", [2, 3]], {"Linear": {}}, None, ["Tanh", {}, {}]]
)
def test_an_entry_that_is_no_pair_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match=r"expected \[layer name, arguments\], got"):
        build([entry])


@pytest.mark.parametrize(
    "entry",
    [
        ["Lambda", {}],
        ["Module", {}],
        ["modules.Linear", {}],
        ["Linear", {"in_features": 2, "out_features": 2, "device": "cuda"}],
        ["Tanh", {"__class__": 1}],
        [["Linear"], {}],
        [None, {}],
    ],
    ids=str,
)
def test_a_layer_or_argument_that_is_not_known_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match=r"one of BatchNorm1d, .* and its arguments, got"):
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
        ["Tanh", {"bias": True}],
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_built_is_refused(entry):
    with pytest.raises(cc.ModelFormatError, match="cannot build layer"):
        build([entry])


# ---- weights ---------------------------------------------------------------------------------


def test_weights_bring_their_dtype():
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
