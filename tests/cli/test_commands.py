"""The commands beside `condition`: models, check, train, demo, reproduce, and their help."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from command_line import pixels, run
from PIL import Image

import crosscoding as cc
from crosscoding import methods as registry
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import HMC, Rejection, Variational
from crosscoding.persistence import folder
from crosscoding.zoo.training import recipe as recipes
from crosscoding.zoo.training.families.discrete import BinaryPairs
from crosscoding.zoo.training.families.recipes import FAMILIES, FamilyRecipe
from crosscoding.zoo.training.recipe import DigitRecipe, FaceRecipe


def test_models_lists_and_shows_cards():
    listed = json.loads(run("models", "--json").stdout)
    assert [card["name"] for card in listed] == cc.zoo.names()
    assert json.loads(run("models", "mnist-2d", "--json").stdout) == cc.zoo.card("mnist-2d")
    table = run("models").stdout
    assert all(name in table for name in cc.zoo.names())
    assert run("models", "mnist-3d").exit_code == 2


def test_check_reports_and_exits_by_what_it_found(tmp_path):
    np.save(tmp_path / "digits.npy", cc.zoo.digits()[0].numpy())
    words = ("check", "mnist-2d", "--data", tmp_path / "digits.npy")
    found = run(*words, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["ok"]
    names = [finding["name"] for finding in report["findings"]]
    assert {"output", "explanation", "encoder"} <= set(names)
    table = run(*words).stdout
    assert all(name in table for name in names)
    np.save(tmp_path / "wrong.npy", 3 * cc.zoo.digits()[0].numpy())
    wrong = run("check", "mnist-2d", "--data", tmp_path / "wrong.npy", "--json")
    assert wrong.exit_code == 1
    assert not json.loads(wrong.stdout)["ok"]


def test_check_takes_the_folder_of_a_model(tmp_path):
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8))
    vae = cc.VAE(decoder, 2, cc.likelihoods.Gaussian(0.3))
    folder.write_folder(tmp_path / "mine", "vae", vae.to_parts())
    found = run("check", tmp_path / "mine", "--json")
    assert found.exit_code == 1  # its batch norm was never estimated
    statuses = {row["name"]: row["status"] for row in json.loads(found.stdout)["findings"]}
    assert statuses["batch norm"] == "error"


def test_models_of_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(cc.zoo, "find_spec", lambda name: None)
    found = run("check", "anime-64d")
    assert found.exit_code == 2
    assert "not installed: pip install crosscoding-faces" in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            *("mnist-2", None),
            "expected a folder of a model, or a model among anime-64d, celeba-100d, mnist-20d, "
            "mnist-2d, mnist-dvae, mnist-iaf, mnist-iwae, mnist-ladder, mnist-planar, mnist-vqvae, "
            "got 'mnist-2'; did you mean 'mnist-2d'?",
        ),
        ("file.txt", None, "expected a model's name or a folder written by vae.save"),
        (".", None, "description.json"),
        ("mnist-2d", "none.npy", "expected data in none.npy, but there is no such file"),
        ("mnist-2d", "none.npz:images", "expected data in none.npz, but there is no such file"),
    ],
)
def test_check_says_what_is_wrong_with_its_arguments(tmp_path, monkeypatch, model, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    found = run("check", model, *([] if data is None else ["--data", data]))
    assert found.exit_code == 2
    assert message in found.stderr


def test_help_teaches_by_example():
    for words in ((), ("check",), ("condition",), ("demo",), ("models",), ("train",)):
        assert "crosscoding" in run(*words, "--help").stdout


def test_help_lists_every_registered_method():
    shown = " ".join(run("condition", "--help").stdout.split())
    assert f"One of {', '.join(registry.METHODS)}. Default: auto." in shown


def test_help_does_not_import_drawing_libraries():
    asked = "import sys, crosscoding.cli; print({'PIL', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "set()\n"


def test_train_names_the_missing_file_and_the_nearest_recipe(tmp_path):
    missing = run("train", "mnist-2d", "--data", tmp_path, "--out", tmp_path)
    assert missing.exit_code == 2
    assert "no such file" in missing.stderr
    assert "did you mean 'mnist-20d'" in run("train", "mnist-20", "--data", tmp_path).stderr


@pytest.mark.parametrize("faces", ["anime", "celeba"])
def test_train_names_the_missing_archive_of_faces(tmp_path, faces):
    name = {"anime": "anime-64d", "celeba": "celeba-100d"}[faces]
    missing = run("train", name, "--data", tmp_path, "--out", tmp_path)
    assert missing.exit_code == 2
    assert f"{faces}_64.zip, but there is no such file" in missing.stderr


def tiny_digits(folder):
    """A recipe that trains in a moment, and its data."""
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(folder / "mnist.npz", train_images=images, test_images=images)
    return DigitRecipe(latent_dim=2, hidden=(5,), epochs=1)


def tiny_faces(folder):
    """The same for faces of 8 x 8 pixels."""
    faces = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    with zipfile.ZipFile(folder / "anime_64.zip", "w") as archive:
        for i, face in enumerate(faces):
            Image.fromarray(face).save(folder / "face.png")
            archive.write(folder / "face.png", f"{i:02}.png")
    few = {"channels": (4,), "encoder_channels": (4,), "data_shape": (3, 8, 8), "held_out": 50}
    return FaceRecipe(latent_dim=2, epochs=1, faces="anime", **few)


@pytest.mark.parametrize("tiny", [tiny_digits, tiny_faces])
def test_train_writes_a_model_its_card_and_pictures(tmp_path, monkeypatch, tiny):
    recipe, out = tiny(tmp_path), tmp_path / "out"
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    words = ("train", "tiny", "--data", tmp_path, "--out", out)
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test_elbo_nats"] < 0
    assert cc.load_vae(out / "tiny").data_shape == recipe.data_shape
    side = 2 * (10 * (recipe.data_shape[-1] + 2) + 2)  # ten by ten, twofold, with gaps
    for name in ("prior", "reconstructions"):
        assert pixels(out / f"tiny-{name}.png").shape[:2] == (side, side)
    assert "wrote the model to" in run(*words).stdout


def test_train_trains_a_family(tmp_path, monkeypatch):
    monkeypatch.setattr("crosscoding.zoo.training.families.publishing._NUM_WEIGHTS", 100)
    tiny_digits(tmp_path)
    family = FamilyRecipe(
        about="tiny", make=lambda: BinaryPairs((2, 3), (4,), (4,), num_draws=2), epochs=1
    )
    monkeypatch.setitem(FAMILIES, "tiny", family)
    words = ("train", "tiny", "--data", tmp_path, "--out", tmp_path / "out")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "tiny-prior.png" in result.stdout
    assert pixels(tmp_path / "out" / "tiny-prior.png").shape[:2] == (604, 604)
    assert cc.load_vae(tmp_path / "out" / "tiny").prior.latent_dim == 5


@pytest.mark.slow
def test_demo_writes_its_pictures_and_table(tmp_path, monkeypatch):
    quick = {"gvi": Variational(Gaussian(), steps=50), "nf": Variational(steps=50)}
    quick |= {"fcn": quick["gvi"], "hmc": HMC(num_warmup=5, num_draws=70), "rejection": Rejection()}
    for name, method in quick.items():
        entry = registry.METHODS[name]
        changed = registry.Entry(method, entry.label, entry.summary)
        monkeypatch.setitem(registry.METHODS, name, changed)
    result = run("demo", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert [row["method"] for row in table["table"]] == [
        *("exact (grid)", "GVI", "NF", "FCN", "HMC", "RS")
    ]
    assert table["table"][0]["gap"] == 0
    assert abs(table["table"][-1]["mmd"]) < 0.01  # exact draws: noise of 1,000 against 1,000
    for name in ("completions", "posterior", "mixture"):
        assert pixels(tmp_path / f"{name}.png").std() > 10


def test_reproduce_lists_figures_and_draws_each_once(tmp_path):
    listed = json.loads(run("reproduce", "--list", "--json").stdout)
    assert [row["name"] for row in listed][:3] == ["fig1", "fig2", "fig3"]
    assert "fig13" in run("reproduce", "--list").stdout
    first = run("reproduce", "fig1", "--quick", "--out", tmp_path, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)[0]["state"] == "measured"
    second = run("reproduce", "fig1", "--quick", "--out", tmp_path, "--json")
    assert json.loads(second.stdout)[0]["state"] == "kept"
    assert (tmp_path / "fig1.svg").is_file()


def test_reproduce_says_what_is_wrong_with_a_name_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("CROSSCODING_DATA", raising=False)
    unknown = run("reproduce", "varience", "--out", tmp_path)
    assert unknown.exit_code == 2
    assert "did you mean 'variance'" in unknown.stderr
    assert "--list shows the names" in run("reproduce", "--out", tmp_path).stderr
    unset = run("reproduce", "fig5", "--set", "burn_in", "--out", tmp_path)
    assert "NAME=VALUE" in unset.stderr
    unknown = run("reproduce", "fig5", "--set", "burn=3", "--out", tmp_path)
    assert "it has step_sizes, num_leapfrog" in " ".join(unknown.stderr.split())
    elsewhere = run("reproduce", "fig1", "--device", "nowhere", "--out", tmp_path)
    assert "expected a device that torch can use, got 'nowhere'" in elsewhere.stderr
    nowhere = run("reproduce", "fig7", "--data", tmp_path / "nowhere", "--out", tmp_path)
    assert nowhere.exit_code == 2
    assert "expected a folder" in nowhere.stderr
    absent = run("reproduce", "fig7", "--out", tmp_path)
    assert absent.exit_code == 2
    assert "CROSSCODING_DATA" in absent.stderr
