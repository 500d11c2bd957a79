"""Options shared by commands: the version, paths with `~`, a decoder from a file."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run

import crosscoding as cc
from crosscoding.cli.decoder_files import load_decoder

NETWORKS = """
import beside
from torch import nn
print("said by the file")

class Decoder(nn.Sequential):
    def __init__(self, hidden=beside.WIDTH):
        super().__init__(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 3))

class Wide(Decoder):
    def __init__(self):
        super().__init__(9)

class Needs(nn.Module):
    def __init__(self, hidden):
        super().__init__()

class Plain:
    pass

network = Decoder()
"""


@pytest.fixture
def networks(tmp_path, monkeypatch) -> Path:
    """A file of networks in the current folder, and a model `mine` whose layers are not saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("code").mkdir()
    Path("code/networks.py").write_text(NETWORKS)
    Path("code/beside.py").write_text("WIDTH = 8\n")
    monkeypatch.setitem(sys.modules, "beside", None)
    del sys.modules["beside"]
    vae = cc.VAE(load_decoder("code/networks.py:Decoder"), 2, cc.likelihoods.Gaussian(0.1))
    vae.save("mine", decoder_arguments={})
    Path("rows.csv").write_text("0.1,,0.2\n")
    return tmp_path


def test_version_prints_the_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"crosscoding {importlib.metadata.version('crosscoding')}\n"


def test_a_decoder_is_created_from_the_users_file(networks):
    chosen = ("--decoder", "code/networks.py:Decoder")
    words = ("condition", "mine", "--data", "rows.csv", "--method", "laplace", "--json")
    refused = run(*words)
    assert refused.exit_code == 2
    assert "of the class crosscoding_decoder_networks:Decoder" in refused.stderr
    assert "--decoder FILE.py:Class" in refused.stderr
    assert "load_vae" not in refused.stderr
    assert "allow_code" not in refused.stderr
    result = run(*words, *chosen)
    assert result.exit_code == 0, result.output
    assert (
        json.loads(result.stdout)["queries"][0]["num_observed"] == 2
    )  # what the file prints goes to stderr
    assert run("check", "mine", *chosen).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("code/networks.py", "expected --decoder as FILE.py:Class, got 'code/networks.py'"),
        ("code.networks:Decoder", "expected --decoder as FILE.py:Class"),
        ("code/none.py:Decoder", "there is no file code/none.py"),
        ("code/networks.py:Decode", "did you mean 'Decoder'?"),
        ("code/networks.py:Plain", "to be a subclass of torch.nn.Module, got the class Plain"),
        ("code/networks.py:network", "to be a subclass of torch.nn.Module, got Decoder"),
        ("code/networks.py:Needs", "without arguments: Needs.__init__() missing 1 required"),
        ("code/networks.py:Wide", "cannot load the model in mine with code/networks.py:Wide: "),
        ("broken.py:Decoder", "cannot run broken.py: SyntaxError"),
        ("absent.py:Decoder", "cannot run absent.py: ModuleNotFoundError"),
        ("ended.py:Decoder", "cannot run ended.py: SystemExit"),
    ],
)
def test_errors_say_what_is_wrong_with_a_decoder(networks, words, message):
    Path("broken.py").write_text("def (")
    Path("absent.py").write_text("import nothing_of_that_name")
    Path("ended.py").write_text("raise SystemExit(0)")
    result = run("condition", "mine", "--data", "rows.csv", "--decoder", words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_decoder_is_only_for_the_folder_of_a_model(networks):
    result = run("check", "mnist-2d", "--decoder", "code/networks.py:Decoder")
    assert result.exit_code == 2
    assert "expected --decoder only with the folder of a model, got mnist-2d" in result.stderr


def test_a_tilde_stands_for_the_home_folder(networks, monkeypatch):
    monkeypatch.setenv("HOME", str(networks))
    monkeypatch.setenv("USERPROFILE", str(networks))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    chosen = ("--decoder", "~/code/networks.py:Decoder", "--method", "laplace")
    result = run("condition", "~/mine", "--data=~/rows.csv", "--out=~/answer", *chosen)
    assert result.exit_code == 0, result.output
    assert (networks / "answer" / "summary.json").is_file()
    assert not list(Path().iterdir())
    there = ("train", "mnist-2d", "--data=~/no"), ("reproduce", "fig7", "--models=~/no")
    asked = ("condition", "mnist-2d", "--observe=mask:~/no.png", "--digit=1")
    image = ("condition", "mnist-2d", "--observe=rows:0", "--image=~/no.png")
    for words in (*there, asked, image):
        assert str(networks / "no") in run(*words).stderr


def test_errors_of_a_method_name_the_option(tmp_path):
    words = ("condition", "mnist-20d", "--digit", 3, "--observe", "rows:0-13", "--method", "grid")
    result = run(*words, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--method grid cannot answer this: expected latent <= 3" in result.stderr
    assert "use Variational" not in result.stderr
    assert "try another --method" in result.stderr


@pytest.mark.slow
def test_piped_output_has_no_progress_bars(networks):
    command = [sys.executable, "-m", "crosscoding", "condition", "mnist-2d", "--digit=7"]
    done = subprocess.run(
        [*command, "--observe=rows:0-13", "--out=answer", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["verdict"] == "trusted"


def test_a_single_completion_is_reported_in_the_singular(networks):
    words = ("condition", "mine", "--data", "rows.csv", "--decoder", "code/networks.py:Decoder")
    result = run(*words, "--method", "laplace", "--samples", 1, "--out", "answer")
    assert "wrote 1 completion and a summary to answer" in " ".join(result.stdout.split())
