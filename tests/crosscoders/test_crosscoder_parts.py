"""Cross-coders and fits as plain data, and the settings and parts that are refused."""

import copy
import json

import pytest
import torch
from crosscoder_families import FAMILIES, B, every_family, fitted
from problems import seeded

import crosscoding as cc
from crosscoding.crosscoders import (
    FCN,
    Fitted,
    Gaussian,
    InverseAutoregressive,
    Mixture,
    Planar,
    Spline,
)
from crosscoding.crosscoders.base import pack, unpack

# ---- as plain data -----------------------------------------------------------------------------


@every_family
def test_parts_describe_the_fit(family):
    q = fitted(family)
    tensors, description = q.to_parts()
    again = Fitted.from_parts((tensors, json.loads(json.dumps(description))))
    assert again.crosscoder == family
    assert again.dim == 2
    expected = q.rsample_and_log_prob(5, generator=seeded(3))
    torch.testing.assert_close(
        again.rsample_and_log_prob(5, generator=seeded(3)), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Spline7"},
        {"name": ["Gaussian"]},
        {"settings": {"layers": 3}},
        {"settings": None},
        {"settings": [1]},
        {"dim": None},
        {"dim": "two"},
        {"dim": -1},
        {"dim": 10**15},
        {"dim": 10**30},
    ],
    ids=str,
)
def test_parts_of_an_unknown_cross_coder_are_refused(change):
    tensors, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder, got"):
        Fitted.from_parts((tensors, description | change))


@pytest.mark.parametrize("missing", ["name", "settings", "dim"])
def test_parts_that_lack_an_entry_are_refused(missing):
    tensors, description = fitted(Gaussian()).to_parts()
    del description[missing]
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder"):
        Fitted.from_parts((tensors, description))


def test_parts_without_parameters_are_refused():
    _, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match="expected a known cross-coder"):
        Fitted.from_parts(({}, description))


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_parameters_of_another_dimension_are_refused(dim):
    tensors, description = fitted(Gaussian()).to_parts()
    with pytest.raises(cc.ModelFormatError, match=r"parameters of Gaussian\(.*got others"):
        Fitted.from_parts((tensors, {**description, "dim": dim}))


def test_parameters_of_another_family_are_refused():
    tensors, _ = fitted(Gaussian()).to_parts()
    _, description = fitted(FAMILIES["Planar"]).to_parts()
    with pytest.raises(cc.ModelFormatError, match=r"parameters of Planar\(layers=4.*got others"):
        Fitted.from_parts((tensors, description))


@every_family
def test_parameters_are_packed_into_one_tensor_and_taken_apart(family):
    params = fitted(family).params
    packed, layout = pack(params)
    assert packed.shape[0] == B
    again = unpack(packed, layout)
    assert list(again) == list(params)
    assert all(torch.equal(again[name], params[name]) for name in params)
    part = unpack(packed[1:2], layout)
    assert all(torch.equal(part[name], params[name][1:2]) for name in params)


@every_family
def test_a_family_is_frozen_and_comparable(family):
    assert family == copy.deepcopy(family)
    assert hash(family) == hash(copy.deepcopy(family))
    with pytest.raises(AttributeError):
        family.layers = 7


# ---- settings ----------------------------------------------------------------------------------


def test_rank_and_diagonal_together_are_refused():
    with pytest.raises(ValueError, match="expected rank or diagonal, not both, got rank=2"):
        Gaussian(rank=2, diagonal=True)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match=f"expected rank >= 1 or None, got {rank}"):
        Gaussian(rank=rank)


@pytest.mark.parametrize("layers", [0, -1])
def test_a_planar_flow_of_no_layers_is_refused(layers):
    with pytest.raises(ValueError, match=f"layers >= 1, got {layers}"):
        Planar(layers)


@pytest.mark.parametrize("hidden", [(), (0,), (8, -1)])
def test_an_fcn_of_no_width_is_refused(hidden):
    with pytest.raises(ValueError, match="at least one hidden width >= 1"):
        FCN(hidden)


@pytest.mark.parametrize("components", [0, -1])
def test_a_mixture_without_components_is_refused(components):
    with pytest.raises(ValueError, match=f"components >= 1, got {components}"):
        Mixture(components)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"bins": 1}, {"hidden": 0}], ids=str)
def test_a_spline_flow_without_a_part_is_refused(wrong):
    with pytest.raises(ValueError, match="layers >= 1, bins >= 2 and hidden >= 1, got"):
        Spline(**wrong)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"hidden": 0}], ids=str)
def test_an_autoregressive_flow_without_a_part_is_refused(wrong):
    with pytest.raises(ValueError, match="hidden >= 1 and layers >= 1, got"):
        InverseAutoregressive(**wrong)
