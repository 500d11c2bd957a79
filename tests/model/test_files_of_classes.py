"""Saved models whose networks are of users' classes: what is imported, and what is not saved."""

import json
import sys

import pytest
import torch
from problems import seeded
from saved_models import mlp
from tampering import reseal
from torch import nn
from user_networks import Normed, Pair, Residual, Shifted

import crosscoding as cc
from crosscoding.likelihoods import Gaussian

# ---- loading -----------------------------------------------------------------------------------


def test_a_class_is_written_by_its_name_with_its_arguments(saved):
    _, folder = saved("both of one's own")
    description = json.loads((folder / "description.json").read_text())
    assert description["architecture"] == {
        "class": "user_networks:Residual",
        "arguments": {"hidden": 7, "sizes": [2, 6]},
    }
    assert description["encoder"] == {"class": "user_networks:Pair", "arguments": {}}


CODE = """
from pathlib import Path
from torch import nn
Path(__file__).with_suffix(".ran").write_text("")
class Decoder(nn.Linear):
    def __init__(self):
        super().__init__(2, 6)
"""


@pytest.fixture
def coded(saved, tmp_path, monkeypatch):
    """A folder whose decoder is a class in a module that leaves a trace where it is imported."""
    _, folder = saved("one layer")
    (tmp_path / "leaves_a_trace.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    reference = {"class": "leaves_a_trace:Decoder", "arguments": {}}

    def name_the_class(tensors, description):
        description["architecture"] = reference
        for name in ("weight", "bias"):
            tensors[f"decoder.{name}"] = tensors.pop(f"decoder.0.{name}")

    reseal(folder, name_the_class)
    yield folder
    sys.modules.pop("leaves_a_trace", None)


def test_no_code_is_imported_unless_that_is_allowed(coded, tmp_path):
    said = r"allow_code=True, as the network is of the class leaves_a_trace:Decoder.*decoder=\.\.\."
    with pytest.raises(ValueError, match=said):
        cc.load_vae(coded)
    assert "leaves_a_trace" not in sys.modules
    assert not (tmp_path / "leaves_a_trace.ran").exists()
    assert type(cc.load_vae(coded, allow_code=True).decoder).__name__ == "Decoder"
    assert (tmp_path / "leaves_a_trace.ran").exists()


def test_a_decoder_that_is_passed_gets_the_weights_and_no_code_is_imported(coded, tmp_path):
    given = nn.Linear(2, 6)
    before = given.weight.clone()
    vae = cc.load_vae(coded, decoder=given)
    assert not (tmp_path / "leaves_a_trace.ran").exists()
    assert not torch.equal(vae.decoder.weight, before)
    assert torch.equal(given.weight, before)  # a copy takes them
    assert torch.equal(vae.decoder.weight, cc.load_vae(coded, allow_code=True).decoder.weight)


def test_networks_that_are_passed_get_the_saved_dtype(saved):
    vae, folder = saved("both of one's own")
    again = cc.load_vae(folder, decoder=Residual(7), encoder=Pair())
    z = torch.ones(1, 2).double()
    assert torch.equal(again.decode(z), vae.decode(z))
    assert again.encoder.mean.weight.dtype == torch.double


def test_an_encoder_of_a_users_class_needs_its_own_permission(saved):
    _, folder = saved("encoder of one's own")
    with pytest.raises(
        ValueError, match="allow_code=True, as the network is of the class user_networks"
    ):
        cc.load_vae(folder)
    assert cc.load_vae(folder, encoder=Pair()).encoder is not None


def test_an_encoder_is_refused_if_none_was_saved(saved):
    _, folder = saved("layers")
    with pytest.raises(ValueError, match="expected no encoder, as none was saved, got Pair"):
        cc.load_vae(folder, encoder=Pair())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: Residual(8), r"\(8, 2\) for weight 'first\.weight', got \(7, 2\)"),
        (lambda: nn.Linear(2, 6), r"\(6, 2\) for weight 'weight', got nothing"),
        (lambda: Shifted(7), "a decoder that outputs what it did when it was saved"),
    ],
    ids=["sizes", "layers", "outputs"],
)
def test_a_decoder_other_than_the_saved_one_is_refused(saved, other, said):
    _, folder = saved("class of one's own")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.load_vae(folder, decoder=other())


def test_a_class_in_place_of_a_network_is_refused(tmp_path):
    cc.VAE(nn.Linear(2, 5), 2, cc.likelihoods.Gaussian(0.1)).save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"expected decoder to be a torch\.nn\.Module, got <class"):
        cc.load_vae(tmp_path / "model", decoder=nn.Linear)


def test_a_class_with_norms_is_imported_by_its_name_too(tmp_path):
    vae = cc.VAE(Normed(6), 2, Gaussian(0.5))
    vae.save(tmp_path / "model", decoder_arguments={"num_outputs": 6})
    z = torch.randn(5, 2, generator=seeded(0))
    for again in (
        cc.load_vae(tmp_path / "model", allow_code=True),
        cc.load_vae(tmp_path / "model", decoder=Normed(6)),
    ):
        assert torch.equal(again.decode(z), vae.decode(z))


# ---- saving ------------------------------------------------------------------------------------


def script_class() -> nn.Module:
    module = type("Decoder", (nn.Linear,), {"__module__": "__main__"})
    return module(2, 6)


def local_class() -> nn.Module:
    class Decoder(nn.Linear):
        pass

    return Decoder(2, 6)


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


LINEAR = {"in_features": 2, "out_features": 6}
UNSAVED = {
    "of a script": (script_class, LINEAR, "class that can be imported, got __main__:Decoder; move"),
    "of a function": (local_class, LINEAR, "class that can be imported, got .*<locals>"),
    "too few arguments": (lambda: Residual(7), {}, "cannot make .*:Residual with {}: .*hidden"),
    "other arguments": (lambda: Residual(7), {"hidden": 8}, r"expected \(8, 2\) for weight 'first"),
    "no such argument": (
        lambda: Residual(7),
        {"depth": 8},
        "cannot make .*Residual with {'depth': 8}",
    ),
    "a stack": (lambda: mlp(2, 6), {}, "expected nothing for|weight '0.weight', got"),
    "extra state": (lambda: Stateful(2, 6), LINEAR, "got dict for '_extra_state'"),
}


@pytest.mark.parametrize(("make", "arguments", "said"), UNSAVED.values(), ids=UNSAVED)
def test_a_model_that_could_not_be_loaded_is_not_saved(make, arguments, said, tmp_path):
    vae = cc.VAE(make(), 2, Gaussian())
    with pytest.raises(ValueError, match=said):
        vae.save(tmp_path / "model", decoder_arguments=arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_changed_after_construction_is_not_saved(tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian())
    vae.decoder.forward = lambda z: torch.ones(len(z), 6)
    with pytest.raises(cc.ModelFormatError, match="a decoder that outputs what it did"):
        vae.save(tmp_path / "model", decoder_arguments={"hidden": 7})


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": torch.ones(2)}, {"a": float("nan")}, 3])
def test_arguments_that_json_cannot_hold_are_refused(wrong, tmp_path):
    vae = cc.VAE(Residual(7), 2, Gaussian())
    with pytest.raises(TypeError, match=r"arguments of .*:Residual as a dict of numbers, strings"):
        vae.save(tmp_path / "model", decoder_arguments=wrong)


def test_arguments_for_a_missing_encoder_are_refused(tmp_path):
    vae = cc.VAE(nn.Linear(2, 6), 2, Gaussian())
    with pytest.raises(ValueError, match="no encoder_arguments for a model without encoder"):
        vae.save(tmp_path / "model", encoder_arguments={})
