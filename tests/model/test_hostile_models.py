"""Damaged and malicious folders are refused with a message, and no code in them is run.

What of any folder is noticed is in test_damaged_folders.py, of layers in test_architecture.py.
"""

import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tampering import (
    add_tensor,
    edit_description,
    edit_parts,
    edit_tensor,
    reseal,
    without_description,
    without_tensor,
)
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Gaussian


@pytest.fixture
def saved(tmp_path):
    """A folder of a decoder 2-8-6 with an encoder."""
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
    vae = cc.VAE(decoder, 2, Gaussian(torch.full((6,), 0.5)), nn.Linear(6, 4))
    vae.save(tmp_path / "model")
    return tmp_path / "model"


def edit_layer(index, **arguments):
    return edit_parts(
        lambda _, description: description["architecture"][index][1].update(arguments)
    )


BILLION = {"in_features": 10**9, "out_features": 10**9, "bias": False}
ATTACKS = {
    # weights that are not the description's
    "weight of another shape": (
        edit_tensor("decoder.0.weight", lambda t: t[:7]),
        r"expected \(8, 2\) for weight '0\.weight', got \(7, 2\)",
    ),
    "weight missing": (
        without_tensor("decoder.2.bias"),
        r"\(6,\) for weight '2\.bias', got no",
    ),
    "weight left over": (add_tensor("decoder.1.weight", torch.ones(1)), r"nothing for weight '1\."),
    "encoder's weight": (
        edit_tensor("encoder.0.weight", lambda t: t.mT),
        r"expected \(4, 6\) for weight '0\.weight', got \(6, 4\)",
    ),
    "tensor of nobody": (
        add_tensor("momentum.0.weight", torch.ones(1)),
        "the unknown 'momentum.0.weight'",
    ),
    "path for a name": (
        add_tensor("../../.bashrc", torch.ones(1)),
        r"got the unknown '../../\.bashrc'",
    ),
    "encoder without description": (
        without_description("encoder"),
        "expected tensors of a model, got the unknown 'encoder.0.bias'",
    ),
    "weights of integers": (
        edit_tensor("decoder.0.weight", torch.Tensor.int),
        "floating-point dty",
    ),
    "weights of two dtypes": (edit_tensor("decoder.2.weight", torch.Tensor.double), "same dtype"),
    "weights in bfloat16": (
        edit_parts(lambda t, _: t.update({k: v.bfloat16() for k, v in t.items() if k[0] in "de"})),
        "float32 or float64, got torch.bfloat16",
    ),
    "other outputs": (edit_tensor("outputs", lambda t: t + 1), "outputs what it did when it was"),
    "outputs of NaN": (edit_tensor("outputs", lambda t: t * float("nan")), "outputs what it did"),
    "outputs of another shape": (edit_tensor("outputs", lambda t: t[:1]), "outputs what it did"),
    "scale of another shape": (
        edit_tensor("likelihood.scale", lambda t: t[:5]),
        "scale that broad",
    ),
    "setting of nobody": (add_tensor("likelihood.sigma", torch.ones(1)), "a known likelihood"),
    # descriptions
    "unknown field": (
        edit_description(run="rm -rf /"),
        "a model's description, got the unknown field 'run' in it",
    ),
    "latent_dim of a trillion": (
        edit_description(latent_dim=10**12),
        "latent_dim from 1 to 268435456, got",
    ),
    "latent_dim negative": (edit_description(latent_dim=-2), "latent_dim from 1 to"),
    "latent_dim NaN": (edit_description(latent_dim=float("nan")), "an int for latent_dim, got nan"),
    "latent_dim a bool": (edit_description(latent_dim=True), "an int for latent_dim, got True"),
    "latent_dim another": (
        edit_description(latent_dim=3),
        r"layer 0 that takes shape \(3,\), got \['Linear'",
    ),
    "likelihood nested": (
        edit_description(
            likelihood={"name": "Mixed", "settings": {"parts": [[{"name": "Mixed"}, 1]], "dim": 0}}
        ),
        "a known likelihood",
    ),
    "architecture a word": (
        edit_description(architecture="Linear"),
        "expected a list of layers, got str",
    ),
    "architecture a number": (
        edit_description(architecture=3),
        "expected a list of layers, got int",
    ),
    "architecture nothing": (
        edit_description(architecture=None),
        "expected tensors of a model, got the unknown 'decoder",
    ),
    "architecture empty": (edit_description(architecture=[]), "expected nothing for weight"),
    "layers without end": (
        edit_description(architecture=[["Tanh", {}]] * 100_000),
        "at most 1000 layers",
    ),
    "sizes of a billion": (edit_layer(0, **BILLION), r"\(1000000000, 1000000000\) for weight"),
    "sizes beyond integers": (edit_layer(0, in_features=10**30), "cannot build layer"),
    "sizes negative": (edit_layer(0, in_features=-2), "cannot build layer"),
    "sizes of words": (edit_layer(0, in_features="2"), "cannot build layer"),
    "sizes NaN": (edit_layer(0, in_features=float("nan")), "cannot build layer"),
    "argument of nobody": (edit_layer(1, device="cuda"), "nothing for layer Tanh, got {'device'"),
    "layer of nobody": (
        edit_description(architecture=[["Lambda", {"code": "print()"}]]),
        "a known layer, such as Linear",
    ),
    "layer by path": (
        edit_description(architecture=[["torch.nn.Linear", BILLION]]),
        "a known layer, such as Linear",
    ),
    # code
    "function for a class": (
        edit_description(architecture={"class": "os:system", "arguments": {}}),
        "allow_code",
    ),
    "class without arguments": (
        edit_description(architecture={"class": "os:system"}),
        "a class and its arg",
    ),
    "class with more": (
        edit_description(architecture={"class": "a:B", "arguments": {}, "path": "/tmp"}),
        "a class and its arguments, got",
    ),
    "class a list": (
        edit_description(architecture={"class": ["a:B"], "arguments": {}}),
        "a class and its arg",
    ),
    "class by path": (
        edit_description(architecture={"class": "../evil:Decoder", "arguments": {}}),
        "name of a class as module:Class, got",
    ),
    "class of a module": (
        edit_description(architecture={"class": "os", "arguments": {}}),
        "as module:Class",
    ),
    "class for an encoder": (
        edit_description(encoder={"class": "a:B", "arguments": {}}),
        "class a:B",
    ),
}


@pytest.mark.parametrize(("change", "said"), ATTACKS.values(), ids=ATTACKS)
@pytest.mark.slow
def test_an_attack_is_refused_with_a_short_message(saved, change, said):
    change(saved)
    with pytest.raises(ValueError, match=said) as caught:
        cc.load_vae(saved)
    assert len(str(caught.value)) < 1000
    assert isinstance(caught.value, cc.ModelFormatError) or "allow_code" in str(caught.value)


@pytest.mark.parametrize(("field", "index"), [("architecture", 2), ("encoder", 0)])
def test_layers_with_too_much_output_are_refused_before_they_run(tmp_path, field, index):
    """Small weights, and a picture of gigabytes: in the encoder, of what the decoder outputs."""
    same = nn.Upsample(scale_factor=1)
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)), same)
    encoder = nn.Sequential(same, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 4))
    cc.VAE(decoder, 2, Gaussian(), encoder).save(tmp_path / "model")

    def swell(_, description):
        description[field][index][1]["scale_factor"] = 30000

    reseal(tmp_path / "model", swell)
    with pytest.raises(cc.ModelFormatError, match="output at most 268435456 numbers for one row"):
        cc.load_vae(tmp_path / "model")


def test_a_name_of_something_other_than_a_network_class_is_refused(saved):
    """With leave to run code too, a function is not called."""
    for name in ("os:system", "os.path:join", "collections:OrderedDict"):
        edit_description(architecture={"class": name, "arguments": {}})(saved)
        with pytest.raises(cc.ModelFormatError, match=r"to be a class of torch\.nn\.Module"):
            cc.load_vae(saved, allow_code=True)


@pytest.mark.parametrize("name", ["nowhere_to_be_found:Decoder", "torch.nn:Nowhere", "torch.no:A"])
def test_a_missing_class_is_named(saved, name):
    edit_description(architecture={"class": name, "arguments": {}})(saved)
    with pytest.raises(
        cc.ModelFormatError, match=f"cannot import {name}: .* where Python can find it"
    ):
        cc.load_vae(saved, allow_code=True)


def test_tensors_of_another_model_are_refused_by_shape_or_by_checksum(saved, tmp_path):
    for sizes, said in (((2, 9, 6), r"\(8, 2\) for weight '0\.weight', got \(9, 2\)"),
                        ((2, 8, 6), "'decoder.0.bias' is damaged")):  # fmt: skip
        a, b, c = sizes
        decoder = nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c))
        other = cc.VAE(decoder, 2, Gaussian(torch.full((6,), 0.5)), nn.Linear(6, 4))
        other.save(tmp_path / f"other {b}")
        shutil.copy(tmp_path / f"other {b}" / "tensors.safetensors", saved / "tensors.safetensors")
        with pytest.raises(cc.ModelFormatError, match=said):
            cc.load_vae(saved)


SPARSE = {
    "decoder.0.weight": r"\(8, 2\) for weight '0\.weight', got \(8589934592,\)",
    "likelihood.scale": r"at most 268435456 numbers in 'likelihood\.scale'",
    "outputs": "at most 268435456 numbers in 'outputs'",
}


@pytest.mark.parametrize(("name", "said"), SPARSE.items(), ids=SPARSE)
def test_a_tensor_that_no_model_could_need_is_not_read(saved, name, said):
    """A file of 32 GB that takes no room on the disk, its header in order: it is not opened."""
    path, end, header = saved / "tensors.safetensors", 0, {}
    for key, tensor in load_file(path).items():
        shape = [2**33] if key == name else list(tensor.shape)
        size = 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.load_vae(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    edit_tensor("decoder.2.bias", lambda t: t * float("nan"))(saved)
    with pytest.raises(cc.NonFiniteError, match="finite output from the decoder"):
        cc.load_vae(saved)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_advice(tmp_path, name):
    torch.save(nn.Linear(2, 6).state_dict(), tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(cc.ModelFormatError, match=rf"{name} looks like a pickle.*weights_only"):
            cc.load_vae(path)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    for path, said in (
        (tmp_path / "nowhere", "it is missing"),
        (tmp_path, r"description\.json is m"),
    ):
        with pytest.raises(cc.ModelFormatError, match=said):
            cc.load_vae(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "description.json"])
@pytest.mark.slow
def test_a_changed_byte_is_refused_or_does_not_matter(saved, name):
    """What still loads, as with a blank more between two fields, is the same model."""
    whole, numbers = (saved / name).read_bytes(), random.Random(0)
    z = torch.ones(3, 2)
    wanted = cc.load_vae(saved).decode(z)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(numbers.choice([1, 1, 4])):
            place = numbers.randrange(len(content))
            content[place : place + numbers.choice([0, 1])] = numbers.choice(
                [b"", b"9", b"{", b",", b"-", b"\0", b"\xff", numbers.randbytes(1)]
            )
        (saved / name).write_bytes(content)
        with contextlib.suppress(cc.ModelFormatError):
            assert torch.equal(cc.load_vae(saved).decode(z), wanted)


# ---- writing -------------------------------------------------------------------------------------


def test_an_interrupted_save_leaves_the_old_one_intact(saved, monkeypatch):
    def full_disk(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosscoding.persistence.folder.save_file", full_disk)
    other = cc.VAE(nn.Linear(3, 4), 3, Gaussian())
    for folder in (saved, saved.parent / "new"):
        with pytest.raises(ValueError, match="No space left"):
            other.save(folder)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert cc.load_vae(saved).latent_dim == 2


def test_a_folder_of_something_else_is_not_overwritten(saved, tmp_path):
    vae = cc.load_vae(saved)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("all of it")
    with pytest.raises(ValueError, match="expected a new folder or a saved vae at"):
        vae.save(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits memory as POSIX does")
def test_no_attack_takes_much_memory(saved):
    """In a process of little memory: what would take gigabytes cannot hide."""
    script = (
        "import resource, sys, crosscoding as cc\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))\n"
        "try:\n    cc.load_vae(sys.argv[1])\n"
        "except cc.ModelFormatError as error:\n    print(error)\n"
    )
    for attack in ("sizes of a billion", "latent_dim of a trillion"):
        change, said = ATTACKS[attack]
        change(saved)
        done = subprocess.run(
            [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, timeout=120
        )
        assert "1000000000" in done.stdout, (said, done.stderr)
