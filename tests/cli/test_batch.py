"""`crosscoding batch`: options, output and exit codes."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from command_line import run
from torch import nn

import crosscoding as cc
from crosscoding.batch import StoppedError
from crosscoding.cli import batch

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5)).save("model")
    text = "id;x;y;z\na;1,5;;\nb;;2;\nc;old;1;1\nd;0;0;\n"
    (tmp_path / "rows.csv").write_text(text)
    return tmp_path


WORDS = ("batch", "model", "rows.csv", "--keep", "id", "--delimiter", ";", "--decimal", ",")


def test_a_file_of_ones_own(folder):
    import pandas as pd

    result = run(*WORDS, "--out", "out", "--quantile", 0.25, "--draws", 1, "--shard-rows", 2)
    assert result.exit_code == 0, result.output
    assert "3 of 4 rows" in result.output
    assert "rejected.jsonl says why" in " ".join(result.output.split())
    found = pd.read_parquet("out/shards")
    assert found["id"].tolist() == ["a", "b", "d"]
    assert found["x_mean"].iloc[0] == 1.5
    assert {"y_q0.25", "z_draw_0", "interval_verdict"} <= set(found.columns)
    (line,) = (folder / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 2


def test_masks_and_covariates_of_each_row(folder):
    import pandas as pd

    np.save("masks.npy", np.eye(4, 3, dtype=bool))
    np.save("rows.npy", np.ones((4, 3), dtype=np.float32))
    words = ("batch", "model", "rows.npy", "--observe", "mask:masks.npy", "--out", "out")
    result = run(*words)
    assert result.exit_code == 0, result.output
    found = pd.read_parquet("out/shards")
    assert [mean[row] for row, mean in enumerate(found["mean"][:3])] == [1, 1, 1]
    assert (found["mean"][3] != 1).all()
    result = run(*words, "--given", "id")
    assert result.exit_code == 2
    assert "expected given only for a model whose decoder takes covariates" in result.stderr


def test_lines_of_json(folder):
    result = run(*WORDS, "--out", "out", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["rows"] for line in lines] == [0, 4, 4]
    assert lines[-1]["complete"]
    assert lines[-1]["verdicts"]["interval"] == {"trusted": 3}


def test_a_dry_run_writes_nothing(folder):
    result = run(*WORDS, "--out", "out", "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert (found["rows"], found["shards"], found["rejected"]) == (4, 1, 1)
    assert "about" in run(*WORDS, "--out", "out", "--dry-run").output
    assert not (folder / "out").exists()


def test_an_estimate_for_a_range_of_workers_counts_the_most(folder, capsys):
    engine = {"workers": (1, 4)}
    request = batch.Request("m", "s", folder, None, None, None, False, {}, engine)
    batch._show_estimate(cc.batch.Estimate(10, 1, 1, 0, 8.0, 100), request, as_json=False)
    assert "about 2 s with 4 workers" in " ".join(capsys.readouterr().out.split())


def test_exit_codes(folder, monkeypatch):
    result = run("batch", "model", "rows.csv", "--out", "out")
    assert result.exit_code == 2
    assert run(*WORDS, "--out", "out").exit_code == 0
    other = run(*WORDS, "--out", "out", "--seed", 1)
    assert other.exit_code == 2
    assert "expected seed as in the run" in " ".join(other.output.split())

    original = batch.run_batch

    def stopped(number, **options):
        def stop(progress):
            os.kill(os.getpid(), number)

        return lambda *args, **more: original(*args, **{**more, **options, "on_progress": stop})

    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        monkeypatch.setattr(batch, "run_batch", stopped(number))
        result = run(*WORDS, "--out", f"out-{code}", "--shard-rows", 1)
        assert result.exit_code == code, result.output
        assert "run the same command again" in " ".join(result.output.split())

    def full(*args, **options):
        raise StoppedError("no space for the next shard")

    monkeypatch.setattr(batch, "run_batch", full)
    result = run(*WORDS, "--out", "full")
    assert result.exit_code == 75
    assert "stopped: no space for the next shard" in result.output


def test_observed_parts_of_pictures(folder):
    np.save("digits.npy", (cc.zoo.digits()[0][:2] * 255).numpy().astype(np.uint8))
    words = ("--observe", "rows:0-13", "--format", "zarr", "--method", "laplace", "--out", "out")
    result = run("batch", "mnist-2d", "digits.npy", *words)
    assert result.exit_code == 0, result.output
    zarr = pytest.importorskip("zarr")
    mean = zarr.open_group("out/shards/shard-00000000.zarr")["mean"][:]
    np.testing.assert_array_equal(mean[:, :14], cc.zoo.digits()[0][:2, :14])
