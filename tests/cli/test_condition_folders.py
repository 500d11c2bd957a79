"""`crosscoding condition` on rows of data, for a model in a folder."""

import importlib
import json
import sys

import numpy as np
import torch
from command_line import arrays, pixels, run
from PIL import Image

import crosscoding as cc
from crosscoding.cli import answer_files
from crosscoding.cli.tables import read_table


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
