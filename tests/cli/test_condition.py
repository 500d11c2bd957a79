"""`crosscoding condition` on a picture for a model of the zoo."""

import json

import numpy as np
import pytest
import torch
from command_line import arrays, pixels, run
from PIL import Image

import crosscoding as cc
from crosscoding import methods as registry
from crosscoding.cli import answer_files, condition
from crosscoding.methods import Importance
from crosscoding.result.advice import IN_PYTHON


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
