import importlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import crosscoding as cc
from crosscoding import methods as registry
from crosscoding.cli import answer_files, condition
from crosscoding.cli.app import app
from crosscoding.cli.tables import read_table
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import HMC, Importance, Rejection, Variational
from crosscoding.persistence import folder
from crosscoding.result.advice import IN_PYTHON
from crosscoding.zoo.training import recipe as recipes
from crosscoding.zoo.training.recipe import DigitRecipe, FaceRecipe

runner = CliRunner()


def run(*words):
    return runner.invoke(app, [str(word) for word in words])


def arrays(folder):
    with np.load(folder / "samples.npz") as saved:
        return dict(saved)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_condition_writes_samples_pictures_and_summary(tmp_path):
    result = run(
        *("condition", "mnist-2d", "--digit", 7, "--observe", "rows:0-13"),
        *("--samples", 20, "--out", tmp_path, "--json"),
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["num_observed"] == 14 * 28
    assert summary["method"] == "Auto"
    assert summary["verdict"] == summary["purposes"]["interval"] == "trusted"
    assert summary["reasons"]
    saved = arrays(tmp_path)
    assert saved["completions"].shape == (20, 28, 28)
    assert saved["latent"].shape == (20, 2)
    digit = cc.zoo.digits()[0][7].numpy()
    assert (saved["completions"][:, :14] == digit[:14]).all()
    for name in ("evidence", "mean", "uncertainty"):
        assert pixels(tmp_path / f"{name}.png").shape[:2] == (28 * 6, 28 * 6)
    assert pixels(tmp_path / "samples.png").shape[1] == (8 * 30 + 2) * 6


def test_saved_completions_are_those_of_the_saved_latents(tmp_path):
    run("condition", "mnist-2d", "--digit", 3, "--observe", "random:0.3", "--out", tmp_path)
    saved = arrays(tmp_path)
    vae = cc.zoo.load("mnist-2d")
    means = vae.decode(torch.from_numpy(saved["latent"])).sigmoid().numpy()
    hidden = ~saved["mask"]
    # Draws of a pixel given its own z agree with p(y|z) far better than with another draw's z.
    own = np.where(saved["completions"] > 0.5, means, 1 - means)[:, hidden]
    other = np.where(saved["completions"] > 0.5, np.roll(means, 1, 0), 1 - np.roll(means, 1, 0))
    assert np.log(own + 1e-6).mean() > np.log(other[:, hidden] + 1e-6).mean()


def test_condition_reads_a_picture_and_a_mask_picture(tmp_path):
    digit = cc.zoo.digits()[0][12].numpy()
    Image.fromarray((digit * 255).astype(np.uint8)).save(tmp_path / "digit.png")
    seen = np.zeros((28, 28), dtype=np.uint8)
    seen[:, 14:] = 255
    Image.fromarray(seen).save(tmp_path / "seen.png")
    out = tmp_path / "answer"
    result = run(
        *("condition", "mnist-2d", "--image", tmp_path / "digit.png"),
        *("--observe", f"mask:{tmp_path / 'seen.png'}", "--out", out),
    )
    assert result.exit_code == 0, result.output
    completions = arrays(out)["completions"]
    assert (completions[:, :, 14:] == digit[:, 14:]).all()


@pytest.mark.parametrize("name", ["anime-64d", "celeba-100d"])
@pytest.mark.slow
def test_condition_completes_a_colour_picture_of_a_face(tmp_path, monkeypatch, name):
    quick = registry.Entry(Importance(rounds=0), "quick", "points of the prior by weight")
    monkeypatch.setitem(registry.METHODS, "importance", quick)
    face = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(face).save(tmp_path / "face.png")
    result = run(
        *("condition", name, "--image", tmp_path / "face.png", "--method", "importance"),
        *("--observe", "rectangle:25-39,16-49", "--samples", 4, "--out", tmp_path, "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_observed"] == 3 * 15 * 34
    completions = arrays(tmp_path)["completions"]
    assert completions.shape == (4, 3, 64, 64)
    # Values are scaled to [-1, 1] as the models were trained, and the evidence is given back.
    scaled = (face / 127.5 - 1).transpose(2, 0, 1)[:, 25:40, 16:50]
    np.testing.assert_allclose(completions[0, :, 25:40, 16:50], scaled, atol=1e-6)
    shown = pixels(tmp_path / "evidence.png")[::2, ::2]
    assert shown.shape == (64, 64, 3)
    assert (shown[25:40, 16:50] == face[25:40, 16:50]).all()  # in its own colours
    assert (shown[:25] == 128).all()


@pytest.mark.parametrize("name", ["anime-64d", "celeba-100d"])
def test_a_model_of_faces_refuses_a_digit(tmp_path, name):
    result = run("condition", name, "--digit", 1, "--observe", "rows:0-3", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"expected --image FILE for {name}, a picture of 64 x 64 pixels" in result.stderr
    assert f"{name} is not a model of digits" in result.stderr


def test_the_same_seed_gives_the_same_files(tmp_path):
    words = ("condition", "mnist-2d", "--digit", 1, "--observe", "columns:0-9", "--seed", 5)
    for name in ("a", "b"):
        assert run(*words, "--out", tmp_path / name).exit_code == 0
    first, second = (arrays(tmp_path / name) for name in ("a", "b"))
    assert (first["completions"] == second["completions"]).all()


def test_method_picks_the_method(tmp_path):
    words = ("condition", "mnist-2d", "--digit", 1, "--observe", "rows:0-4", "--json")
    result = run(*words, "--method", "gvi", "--out", tmp_path)
    assert json.loads(result.stdout)["method"] == "GVI"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mnist-2", "--digit", 1, "--observe", "rows:0-3"), "did you mean 'mnist-2d'"),
        (("mnist-2d", "--digit", 1, "--observe", "rows:0-3", "--method", "gvy"), "mean 'gvi'"),
        (("mnist-2d", "--digit", 1, "--observe", "rows:0-99"), "expected rows within 0-27"),
        (("mnist-2d", "--digit", 1, "--observe", "rows:a-b"), "got 'rows:a-b'"),
        (("mnist-2d", "--digit", 1, "--observe", "some"), "got 'some'"),
        (("mnist-2d", "--digit", 1, "--observe", "random:2"), "between 0 and 1"),
        (("mnist-2d", "--digit", 1, "--observe", "random:x"), "got 'random:x'"),
        (("mnist-2d", "--digit", 1, "--observe", "mask:no.png"), "cannot be read"),
        (("mnist-2d", "--image", "no.png", "--observe", "rows:0-3"), "cannot be read"),
        (("mnist-2d", "--observe", "rows:0-3"), "expected exactly one of --image"),
    ],
)
def test_wrong_options_give_one_clear_line(tmp_path, words, message):
    result = run("condition", *words, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "summary.json").exists()


def test_every_suggestion_of_a_verdict_has_an_option():
    assert answer_files._OPTIONS.keys() == IN_PYTHON.keys()
    options = [option.split() for option in answer_files._OPTIONS.values()]
    assert {name for word, name in options if word == "--method"} <= registry.METHODS.keys()


def test_a_picture_of_another_size_is_refused(tmp_path):
    Image.new("L", (30, 28)).save(tmp_path / "wide.png")
    result = run("condition", "mnist-2d", "--image", tmp_path / "wide.png", "--observe", "rows:0-3")
    assert result.exit_code == 2
    assert "28 x 28 pixels, got 30 x 28" in result.stderr


def test_a_file_that_is_not_a_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    result = run("condition", "mnist-2d", "--image", tmp_path / "text.png", "--observe", "rows:0-3")
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(
        *("condition", "mnist-2d", "--digit", 1, "--observe", "rows:0-3"),
        *("--out", tmp_path / "file" / "below"),
    )
    assert result.exit_code == 2
    assert "expected a writable output folder" in result.stderr


def test_ctrl_c_ends_with_a_message_and_exit_code_130(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(condition, "condition", interrupted)
    result = run("condition", "mnist-2d", "--digit", 1, "--observe", "rows:0-3", "--out", tmp_path)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


# ---- rows of a table, and models in folders ------------------------------------------------------


def table_model(folder, likelihood=None, shape=(4,)):
    """Save a model of four columns with `VAE.save`; returns draws from it."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)]
    decoder = torch.nn.Sequential(*layers, torch.nn.Unflatten(1, shape))
    vae = cc.VAE(decoder, 2, likelihood or cc.likelihoods.Gaussian(0.1))
    vae.save(folder)
    return vae.sample_prior(3, seed=0)


def test_rows_with_gaps_are_answered_by_a_model_in_a_folder(tmp_path):
    rows = table_model(tmp_path / "mine")
    a, b, c = (f"{row[0]:.9g},,{row[2]:.9g},{row[3]:.9g}" for row in rows)
    (tmp_path / "gaps.csv").write_text(f"w,x,y,z\n{a}\n{b}\n{c}\n")
    out = tmp_path / "answer"
    words = ("condition", tmp_path / "mine", "--data", tmp_path / "gaps.csv", "--out", out)
    result = run(*words, "--samples", 200, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert [query["num_observed"] for query in summary["queries"]] == [3, 3, 3]
    assert {query["verdict"] for query in summary["queries"]} == {"trusted"}
    assert "query_log_prob" not in summary["queries"][0]  # the truth is unknown
    assert arrays(out)["completions"].shape == (200, 3, 4)
    low, mean, high = (read_table(out / f"{name}.csv") for name in ("low", "mean", "high"))
    assert mean.names == ["w", "x", "y", "z"]
    seen = [0, 2, 3]
    for bound in (low, mean, high):  # the evidence as it was given
        assert (bound.rows[:, seen].astype(np.float32) == rows.numpy()[:, seen]).all()
    assert (low.rows[:, 1] < mean.rows[:, 1]).all()
    assert (mean.rows[:, 1] < high.rows[:, 1]).all()
    assert not list(out.glob("*.png"))
    assert "3 trusted" in run(*words).stdout


def test_an_interrupted_write_leaves_no_summary(tmp_path, monkeypatch):
    table_model(tmp_path / "mine")
    (tmp_path / "gaps.csv").write_text("1,,3,4\n")
    words = ("condition", tmp_path / "mine", "--data", tmp_path / "gaps.csv", "--out", tmp_path)
    assert run(*words, "--method", "laplace").exit_code == 0
    assert (tmp_path / "summary.json").is_file()
    monkeypatch.setattr(answer_files, "write_table", lambda *_: 1 / 0)
    assert run(*words, "--method", "laplace").exit_code != 0
    assert not (tmp_path / "summary.json").exists()


def test_observe_selects_a_part_of_complete_rows(tmp_path):
    rows = table_model(tmp_path / "mine")
    np.save(tmp_path / "whole.npy", rows.numpy())
    words = ("condition", tmp_path / "mine", "--data", tmp_path / "whole.npy", "--json")
    result = run(*words, "--observe", "columns:0-1", "--out", tmp_path / "answer")
    assert result.exit_code == 0, result.output
    saved = arrays(tmp_path / "answer")
    assert saved["mask"].tolist() == 3 * [[True, True, False, False]]
    vae = cc.load_vae(tmp_path / "mine")
    posterior = cc.condition(vae, cc.Evidence(rows, torch.from_numpy(saved["mask"])), seed=0)
    told = [query["query_log_prob"] for query in json.loads(result.stdout)["queries"]]
    torch.testing.assert_close(torch.tensor(told), posterior.query_log_prob(rows))
    nothing = run(*words, "--out", tmp_path / "answer")
    assert nothing.exit_code == 2
    assert "expected data with something missing" in nothing.stderr


def test_a_picture_given_as_an_array_is_shown(tmp_path):
    picture = table_model(tmp_path / "mine", shape=(2, 2))[:1].numpy()
    picture[:, 0] = np.nan
    np.save(tmp_path / "gaps.npy", picture)
    out = tmp_path / "answer"
    words = ("condition", tmp_path / "mine", "--data", tmp_path / "gaps.npy", "--out", out)
    assert "effective sample size" in run(*words).stdout
    assert pixels(out / "mean.png").shape[:2] == (168, 168)
    assert not list(out.glob("*.csv"))


def test_a_picture_for_your_own_model_comes_with_a_note_on_its_scale(tmp_path):
    table_model(tmp_path / "mine", shape=(2, 2))
    Image.new("L", (2, 2)).save(tmp_path / "picture.png")
    words = ("condition", tmp_path / "mine", "--image", tmp_path / "picture.png")
    result = run(*words, "--observe", "rows:0", "--out", tmp_path / "answer")
    assert result.exit_code == 0, result.output
    assert "pixels are rescaled to -1 to 1" in " ".join(result.stderr.split())


def test_a_table_has_no_pictures(tmp_path):
    table_model(tmp_path / "mine")
    words = ("condition", tmp_path / "mine", "--out", tmp_path)
    result = run(*words, "--digit", 1, "--observe", "rows:0-3")
    assert result.exit_code == 2
    assert "whose data of shape (4,) are not pictures" in result.stderr
    both = run(*words, "--digit", 1, "--data", "a.csv")
    assert (
        "expected exactly one of --image FILE, --digit NUMBER (0 to 39) and --data" in both.stderr
    )


def test_your_own_class_is_imported_only_with_allow_code(tmp_path, monkeypatch):
    (tmp_path / "their_networks.py").write_text(
        "from torch import nn\n\nclass Decoder(nn.Linear):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    decoder = importlib.import_module("their_networks").Decoder(2, 4)
    vae = cc.VAE(decoder, 2, cc.likelihoods.Gaussian(0.1))
    vae.save("mine", decoder_arguments={"in_features": 2, "out_features": 4})
    monkeypatch.delitem(sys.modules, "their_networks")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    (tmp_path / "gaps.csv").write_text("1,,0,0\n")
    for words in (("check", "mine"), ("condition", "mine", "--data", "gaps.csv")):
        refused = run(*words)
        assert refused.exit_code == 2
        assert "the class their_networks:Decoder" in refused.stderr
        assert "on the command line, give --allow-code" in refused.stderr
        assert "their_networks" not in sys.modules
    for words in (("check", "mine"), ("condition", "mine", "--data", "gaps.csv")):
        allowed = run(*words, "--allow-code")
        assert allowed.exit_code == 0, allowed.output


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


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            *("mnist-2", None),
            "expected a folder of a model, or a model among anime-64d, celeba-100d, mnist-20d, "
            "mnist-2d, got 'mnist-2'; did you mean 'mnist-2d'?",
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
