"""`crosscoding amortise`."""

import json

import pytest
import torch
from command_line import run
from torch import nn

import crosscoding as cc


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
    cc.VAE(decoder, 4, cc.likelihoods.Gaussian(0.3)).save(tmp_path / "small")
    return tmp_path / "small"


def test_it_writes_a_model_that_answers(folder, tmp_path):
    out = tmp_path / "new" / "faster"
    done = run("amortise", folder, "--out", out, "--seconds", 1, "--masks", "shares:0.2-0.9")
    assert done.exit_code == 0, done.output
    assert "ESS per draw" in done.output
    assert sorted(path.name for path in out.parent.iterdir()) == ["faster"]
    vae = cc.load_vae(out)
    assert vae.amortised.record.masks == repr(cc.masks.shares(0.2, 0.9))
    evidence = cc.Evidence(vae.sample_prior(2, seed=0), torch.arange(6) < 3)
    assert "amortised" in [stage.name for stage in cc.condition(vae, evidence, seed=0).trace]
    other = run("amortise", folder, "--out", out, "--seconds", 1)
    assert other.exit_code == 2
    assert "has a model already" in " ".join(other.output.split())
    again = run("amortise", out, "--out", out, "--seconds", 1, "--json")
    assert json.loads(again.stdout)["masks"] == "Mixed()"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--masks", "quarters"), "expected --masks mixed, halves, rectangles or"),
        (("--masks", "shares:0.5"), "expected --masks shares:LEAST-MOST"),
        (("--masks", "shares:0.5-0.1"), "0 <= least < most <= 1"),
        (("--masks", "halves"), "expected the shape of a picture"),
    ],
)
def test_masks_that_do_not_fit_are_refused(folder, tmp_path, options, words):
    done = run("amortise", folder, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_a_folder_of_something_else_is_not_overwritten(folder, tmp_path):
    done = run("amortise", folder, "--out", tmp_path)
    assert done.exit_code == 2
    assert "something else" in " ".join(done.output.split())
