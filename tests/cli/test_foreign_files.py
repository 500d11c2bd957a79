"""Files written by other programs, on the command line: answered correctly or clearly refused."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image

import crosscoding as cc
from crosscoding import methods as registry
from crosscoding.cli.data_doubts import doubts
from crosscoding.likelihoods import (
    Bernoulli,
    BetaBinomial,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Mixed,
    Ordinal,
    Poisson,
)
from crosscoding.methods import Importance

FLOATS = pd.DataFrame([[0.5, np.nan, 0.25], [np.nan, 0.5, 0.75]])


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    """Use a fast, inaccurate method, and a separate folder for the results of each test."""
    quick = registry.Entry(Importance(rounds=0), "quick", "points of the prior by weight")
    monkeypatch.setitem(registry.METHODS, "importance", quick)
    monkeypatch.chdir(tmp_path)


def model(folder: str, likelihood: cc.likelihoods.Likelihood, shape=(3,)) -> cc.VAE:
    torch.manual_seed(0)
    size = int(np.prod(shape))
    layers = [torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, size)]
    vae = cc.VAE(torch.nn.Sequential(*layers, torch.nn.Unflatten(1, shape)), 2, likelihood)
    vae.save(folder)
    return vae


def condition(text: str | bytes, *words, name: str = "rows.csv"):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ("condition", "mine", "--data", name, "--method", "importance", *words)
    return run(*words, "--out", "answer")


def completions() -> np.ndarray:
    with np.load("answer/samples.npz") as saved:
        return saved["completions"]


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_a_pandas_table_with_its_default_header_gets_one_answer_per_row(whole):
    model("mine", Poisson() if whole else Gaussian(0.1))
    rows = pd.DataFrame([[1, 2, pd.NA], [3, 4, 5]], dtype="Int64") if whole else FLOATS
    result = condition(rows.to_csv(index=False))
    assert result.exit_code == 0, result.output
    assert completions().shape[1] == 2
    assert "is taken as the column names that pandas writes" in result.stderr
    assert Path("answer/mean.csv").read_text().splitlines()[0] == "0,1,2"
    assert len(Path("answer/mean.csv").read_text().splitlines()) == 3


def test_a_pandas_table_with_its_index_is_refused_naming_the_extra_column():
    model("mine", Gaussian(0.1))
    result = condition(FLOATS.to_csv())
    assert result.exit_code == 2
    assert "an extra first column ''" in result.stderr
    assert "to_csv(..., index=False)" in result.stderr
    shifted = condition(FLOATS.set_index(pd.Index([7, 9])).to_csv())
    assert shifted.exit_code == 2
    assert "is the first, column 1 (''), a pandas index?" in shifted.stderr


def test_options_say_whether_the_first_line_is_a_row():
    model("mine", Bernoulli(), (2,))
    text = "0,1\n1,\n,0\n"
    assert "--no-header if they are a row" in condition(text).stderr
    for option, num in {"--header": 2, "--no-header": 3}.items():
        assert condition(text, option).exit_code == 0
        assert completions().shape[1] == num


def test_a_decimal_comma_is_read_and_written():
    model("mine", Gaussian(0.1))
    text = "a;b;c\n0,5;;0,25\n"
    assert "--delimiter ';' --decimal ','" in condition(text).stderr
    style = ("--delimiter", ";", "--decimal", ",")
    result = condition(text, *style)
    assert result.exit_code == 0, result.output
    written = Path("answer/mean.csv").read_bytes()
    names, row = written.decode().splitlines()
    assert names == "a;b;c"
    assert row.startswith("0,5;")
    assert row.endswith(";0,25")
    again = condition(written, *style, "--observe", "columns:0-1")
    assert again.exit_code == 0, again.output
    assert completions()[0, 0, 0] == 0.5


def intervals() -> dict[str, list[list[str]]]:
    """The cells of low.csv and high.csv."""
    return {
        name: [line.split(",") for line in Path(f"answer/{name}.csv").read_text().splitlines()]
        for name in ("low", "high")
    }


@pytest.mark.parametrize(
    "likelihood",
    [Poisson(), Bernoulli(), BetaBinomial(9, 4.0), DiscretizedLogistic(0.2), Ordinal([-0.5, 0.5])],
)
def test_the_ends_of_an_interval_are_values_that_were_drawn(likelihood):
    model("mine", likelihood)
    assert condition("1,,\n0,,\n", "--samples", "7").exit_code == 0  # 5 % of which lie between two
    draws = completions()
    for name, rows in intervals().items():
        end = draws.min(0) if name == "low" else draws.max(0)
        np.testing.assert_array_equal(np.array(rows, np.float32), end)


def test_the_interval_of_a_class_is_left_empty_but_for_what_was_observed():
    layers = torch.nn.Linear(2, 3), torch.nn.Unflatten(1, (1, 3))
    cc.VAE(torch.nn.Sequential(*layers), 2, Categorical(3)).save("mine")
    assert condition("2\nNaN\n", "--observe", "columns:0-0").exit_code == 0
    assert intervals() == {"low": [["2.0"], ['""']], "high": [["2.0"], ['""']]}
    mixed = Mixed([(Gaussian(0.1), 2), Categorical(3), Poisson()])
    cc.VAE(torch.nn.Linear(2, 6), 2, mixed).save("mine")
    assert condition("0.5,,,\n,,1,3\n").exit_code == 0
    for numbers, observed in intervals().values():
        assert numbers[0] == "0.5"
        assert numbers[2] == ""
        assert float(numbers[3]).is_integer()
        assert observed[2:] == ["1.0", "3.0"]


@pytest.mark.parametrize("name", ["ROWS.CSV", "rows.txt", "rows.Tsv"])
def test_tables_have_several_suffixes(name):
    model("mine", Gaussian(0.1))
    text = "0.5,,0.25\n".replace(",", "\t" if name == "rows.Tsv" else ",")
    assert condition(text, name=name).exit_code == 0
    assert completions()[0, 0].tolist()[::2] == [0.5, 0.25]


def test_a_table_is_read_from_standard_input():
    model("mine", Gaussian(0.1))
    words = ("condition", "mine", "--data", "-", "--method", "importance", "--out", "answer")
    result = run(*words, input="a,b,c\n0.5,,0.25\n")
    assert result.exit_code == 0, result.output
    assert completions()[0, 0].tolist()[::2] == [0.5, 0.25]
    assert Path("answer/mean.csv").read_text().startswith("a,b,c")
    assert "table in standard input, got an empty file" in run(*words, input="").stderr
    checked = run("check", "mine", "--data", "-", input="0.5,0.25,0\n" * 3)
    assert "3 data, values from 0 to 0.5" in " ".join(checked.stdout.split())


@pytest.mark.parametrize(
    ("likelihood", "shape", "text", "message"),
    [
        (Gaussian(0.1), (3,), "a,b,c\n", "got only column names"),
        (
            Gaussian(0.1),
            (3,),
            "1,,3,\n",
            "the last column is empty: remove the delimiter at the end",
        ),
        (Gaussian(0.1), (3,), "1,2\n", "expected 3 columns in rows.csv"),
        (Gaussian(0.1), (3,), "1,,1e39\n", "finite number in line 1, column 3 of rows.csv"),
        (Poisson(), (3,), "a,b,c\n1,,2\n1,1.5,\n", "in line 3, column 2 ('b') of rows.csv: expec"),
        (Bernoulli(), (3,), "0,,7\n", "in line 1, column 3 of rows.csv: expected values between"),
        (Categorical(3), (3, 3), "0,,3\n", "in line 1, column 3 of rows.csv: expected values wh"),
    ],
)
def test_errors_name_line_and_column(likelihood, shape, text, message):
    model("mine", likelihood, shape)
    result = condition(text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "from_nan" not in result.stderr
    assert "0 more" not in result.stderr


def test_errors_name_the_index_in_an_array():
    model("mine", Poisson(), (2, 2))
    rows = np.array([[[1, 2], [3, np.nan]], [[1, 2], [np.inf, 4]]])
    np.save("rows.npy", rows)
    words = ("condition", "mine", "--data", "rows.npy")
    assert "expected a finite number at index (1, 1, 0) of rows.npy" in run(*words).stderr
    np.save("rows.npy", np.nan_to_num(rows, posinf=-1.0))
    assert "at index (1, 1, 0) of rows.npy: expected values whole" in run(*words).stderr


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, None, "a"]], dtype=object), "they hold Python objects, not numbers"),
        (np.array([["1", "2", "3"]]), "got one (1, 3) of <U1"),
        (np.zeros((2, 3), dtype=complex), "got one (2, 3) of complex128"),
    ],
)
def test_arrays_without_numbers_are_refused_naming_their_dtype(array, message):
    model("mine", Gaussian(0.1))
    np.save("rows.npy", array, allow_pickle=True)
    result = run("condition", "mine", "--data", "rows.npy")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "allow_pickle" not in result.stderr


def test_errors_in_the_data_do_not_blame_the_method():
    model("mine", Categorical(3, one_hot=True))
    result = condition("1,0,\n")
    assert result.exit_code == 2
    assert "a mask that observes all classes of a one-hot variable or none" in result.stderr
    assert "--method" not in result.stderr


def test_unobserved_values_are_checked_before_any_work(monkeypatch):
    model("mine", Bernoulli())
    monkeypatch.setattr("crosscoding.cli.condition.condition", lambda *_, **__: 1 / 0)
    result = condition("0,1,7\n", "--observe", "columns:0")
    assert result.exit_code == 2
    assert "column 3 of rows.csv: expected values between 0 and 1 for Bernoulli, got 7;" in (
        result.stderr
    )


@pytest.mark.parametrize("words", [("--delimiter", ";"), ("--decimal", ","), ("--no-header",)])
def test_table_options_are_refused_without_a_table(words):
    model("mine", Gaussian(0.1))
    np.save("rows.npy", np.zeros((2, 3)))
    for source in (("--data", "rows.npy"), ("--digit", 1)):
        model_name = "mine" if "--data" in source else "mnist-2d"
        result = run("condition", model_name, *source, *words, "--observe", "rows:0")
        assert result.exit_code == 2
        assert "expected --delimiter, --decimal and --header only with" in result.stderr


@pytest.mark.parametrize("num", [3, 30])
def test_unreliable_answers_come_with_what_check_finds_in_the_data(num):
    vae = model("mine", Gaussian(0.1))
    rows = vae.sample_prior(num, seed=1).numpy()
    rows[:, 1] = np.nan
    result = condition(pd.DataFrame(1000 * rows + 300).to_csv(index=False), "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert {query["verdict"] for query in summary["queries"]} == {"unreliable"}
    assert summary["doubts"][0]["name"] == "units"
    assert "scale the data as in training" in summary["doubts"][0]["message"]
    assert "scale the data as in training" in " ".join(
        condition(pd.DataFrame(1000 * rows + 300).to_csv(index=False)).stdout.split()
    )


def test_models_with_discrete_latents_come_without_doubts():
    """The checks take continuous latents only, also where an answer is not trusted."""
    prior = cc.priors.Bernoulli(torch.zeros(2))
    decoder = torch.nn.Linear(2, 3)
    vae = cc.VAE(decoder, 2, Gaussian(0.1), prior=prior)
    unreliable = SimpleNamespace(on=lambda purpose: SimpleNamespace(label="unreliable"))
    posterior = SimpleNamespace(verdicts=[unreliable])
    values, mask = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    answers = SimpleNamespace(
        vae=vae, posterior=posterior, values=values, mask=mask, completions=values[None]
    )
    assert doubts(answers) == []


def test_trusted_answers_come_without_doubts():
    vae = model("mine", Gaussian(0.1))
    rows = vae.sample_prior(3, seed=1).numpy()
    rows[:, 1] = np.nan
    result = condition(pd.DataFrame(rows).to_csv(index=False), "--method", "grid", "--json")
    assert json.loads(result.stdout)["doubts"] == []


# ---- pictures ------------------------------------------------------------------------------------


def digit() -> np.ndarray:
    return (255 * cc.zoo.digits()[0][7].numpy()).astype(np.uint8)


def condition_on(path: str, observe: str = "rows:0-13"):
    words = ("condition", "mnist-2d", "--image", path, "--observe", observe, "--out", "answer")
    return run(*words, "--method", "grid", "--json")


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_in_the_alpha_channel_is_refused_wherever_pictures_are_read(ink):
    alpha = Image.merge("LA", [Image.new("L", (28, 28), ink), Image.fromarray(digit())])
    for image in (alpha, alpha.convert("RGBA")):
        image.save("alpha.png")
        for result in (
            condition_on("alpha.png"),
            run("condition", "mnist-2d", "--digit", 7, "--observe", "mask:alpha.png"),
        ):
            assert result.exit_code == 2
            assert "without transparent pixels" in result.stderr
            assert "alpha.png; flatten it onto the background" in result.stderr
    model("mine", Gaussian(0.1), (3, 28, 28))
    with zipfile.ZipFile("alpha.zip", "w") as archive:
        archive.write("alpha.png")
    result = run("check", "mine", "--data", "alpha.zip")
    assert result.exit_code == 2
    assert "without transparent pixels" in result.stderr
    assert "got alpha.png in alpha.zip" in result.stderr


def test_a_16_bit_picture_is_read_like_an_8_bit_one():
    Image.fromarray(digit() // 2 + 20).save("eight.png")
    Image.fromarray((digit() // 2 + 20).astype(np.uint16) * 257).save("sixteen.png")
    log_evidence = [
        json.loads(condition_on(path).stdout)["log_evidence"]
        for path in ("eight.png", "sixteen.png")
    ]
    assert log_evidence[0] == log_evidence[1]


@pytest.mark.parametrize("change", [lambda pixels: pixels // 255, lambda pixels: pixels // 3 + 130])
def test_a_black_and_white_picture_needs_dark_and_bright_pixels(change):
    Image.fromarray(change(digit())).save("flat.png")
    asked = run("condition", "mnist-2d", "--digit", 7, "--observe", "mask:flat.png")
    for result in (condition_on("flat.png"), asked):
        assert result.exit_code == 2
        assert "expected pixels on both sides of 127 in flat.png" in result.stderr


def test_a_black_picture_and_a_white_mask_are_accepted():
    Image.new("L", (28, 28)).save("black.png")
    Image.new("L", (28, 28), 255).save("white.png")
    assert condition_on("black.png").exit_code == 0
    result = condition_on("black.png", "mask:white.png")
    assert "expected data with something missing" in result.stderr


def test_a_grey_picture_of_zeros_and_ones_is_refused():
    model("mine", Gaussian(0.1), (28, 28))
    Image.fromarray(digit() // 255).save("ones.png")
    result = run("condition", "mine", "--image", "ones.png", "--observe", "rows:0-13")
    assert result.exit_code == 2
    assert "expected pixels from 0 to 255 in ones.png, got 0 to 1; rescale them" in result.stderr
