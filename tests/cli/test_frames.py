"""Files of rows for models with a table: cells in the user's units, in and out."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from command_line import arrays, run
from torch import nn

import crosscoding as cc
from crosscoding.cli.frames import read_frame
from crosscoding.formats.table_style import TableStyle
from crosscoding.tables import Column, Table

pd = pytest.importorskip("pandas")

TABLE = Table.of(
    [
        Column("age", "number", shift=40.0, scale=10.0, step=1.0, dtype="int64"),
        Column("plz", "class", ("01067", "None", "80331"), dtype="str"),
        Column("rooms", "ordinal", (1, 2, 3)),
        Column("garden", "boolean"),
        Column("sold", "date", shift=1.5e9, scale=86400.0 * 300, step=86400.0),
        Column("price", "positive", scale=2e5),
    ]
)
CSV = """sold,age,plz,rooms,garden,price
2020-03-01,45,01067,,True,
,,None,2,NA,150000.5
2021-12-24,30,,3.0,false,
"""


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, TABLE.num_params))
    cc.VAE(decoder, 2, TABLE.likelihood(), table=TABLE).save(tmp_path / "model")
    return tmp_path / "model"


def rows() -> "pd.DataFrame":
    return pd.DataFrame(
        {
            "sold": pd.to_datetime(["2020-03-01", None, "2021-12-24"]),
            "age": [45, None, 30],
            "plz": ["01067", "None", None],
            "rooms": [None, 2, 3],
            "garden": [True, None, False],
            "price": [None, 150000.5, None],
        }
    )


def condition(model, path, out, *words):
    result = run("condition", model, "--data", path, "--out", out, "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_text_is_read_by_the_table_and_answers_are_in_units(model, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    summary = condition(model, path, tmp_path / "out")
    assert len(summary["queries"]) == 3
    values, mask = TABLE.to_tensors(rows())
    saved = arrays(tmp_path / "out")
    np.testing.assert_array_equal(saved["mask"], mask.numpy())
    assert (saved["completions"][0][mask] == values[mask].numpy()).all()
    mean = pd.read_csv(tmp_path / "out" / "mean.csv", dtype={"plz": str}, keep_default_na=False)
    assert mean.columns.tolist() == rows().columns.tolist()
    assert mean["plz"].iloc[:2].tolist() == ["01067", "None"]
    assert mean["plz"].iloc[2] in TABLE["plz"].categories
    assert mean["price"].iloc[1] == 150000.5
    assert mean["sold"].iloc[0] == "2020-03-01"
    low, high = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("low", "high"))
    assert (low["price"] <= high["price"]).all()
    assert low["price"].iloc[1] == high["price"].iloc[1] == 150000.5


def test_parquet_and_the_same_text_give_the_same_answers(model, tmp_path):
    pytest.importorskip("pyarrow")
    rows().to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(CSV)
    outs = {}
    for suffix in ("parquet", "csv"):
        condition(model, tmp_path / f"rows.{suffix}", tmp_path / suffix)
        outs[suffix] = arrays(tmp_path / suffix)["completions"]
    np.testing.assert_array_equal(outs["parquet"], outs["csv"])
    mean = pd.read_parquet(tmp_path / "parquet" / "mean.parquet")
    high = pd.read_parquet(tmp_path / "parquet" / "high.parquet")
    assert (mean.columns.tolist(), mean["sold"].dtype) == (list(rows()), rows()["sold"].dtype)
    pd.testing.assert_series_equal(mean["sold"].iloc[[0]], rows()["sold"].iloc[[0]])
    assert mean["price"].iloc[1] == high["price"].iloc[1] == 150000.5
    assert not (tmp_path / "parquet" / "mean.csv").exists()
    condition(model, tmp_path / "rows.csv", tmp_path / "parquet")
    assert not (tmp_path / "parquet" / "mean.parquet").exists()


def test_parquet_needs_pyarrow(model, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = ("pyarrow", "fastparquet")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name not in missing and find(name, *rest)
    )
    (tmp_path / "rows.parquet").write_bytes(b"")
    result = run("condition", model, "--data", tmp_path / "rows.parquet", "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert "expected pyarrow to read" in result.output.replace("\n", " ")


def test_other_delimiters_decimal_commas_and_hidden_columns(model, tmp_path):
    text = "age;price\n45,5;1000,25\n30;\n"
    (tmp_path / "rows.csv").write_text(text)
    words = ("--delimiter", ";", "--decimal", ",", "--observe", "random:0.99")
    condition(model, tmp_path / "rows.csv", tmp_path / "out", *words)
    mean = (tmp_path / "out" / "mean.csv").read_text().splitlines()
    assert mean[0].split(";")[:2] == ["age", "price"]
    assert mean[1].startswith("45,5;1000,25;")


def test_check_reads_complete_rows_and_names_gaps(model, tmp_path):
    torch.manual_seed(0)
    vae = cc.load_vae(model)
    TABLE.from_tensors(vae.sample_prior(50, seed=0)).to_csv(tmp_path / "all.csv", index=False)
    result = run("check", model, "--data", tmp_path / "all.csv")
    assert "no problems found" in result.output, result.output
    (tmp_path / "rows.csv").write_text(CSV)
    result = run("check", model, "--data", tmp_path / "rows.csv")
    assert result.exit_code != 0
    assert "expected complete data, got a missing value in row" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,Plz\n4,01067\n", "did you mean 'plz'"),
        ("age\nold\n", "column 'age': expected a number in row 1"),
        ("plz\n1067\n", "column 'plz': expected a category among '01067'"),
        ("sold\nyesterday\n", "column 'sold': expected dates such as 2020-12-31"),
        ("price\n-3\n", "column 'price': expected numbers > 0"),
        ("age\n", "expected rows in"),
        ("", "got an empty file"),
        ("age,plz\n1,2,3,4\n1,2\n1,2,3,4,5,6\n", "cannot read the table"),
    ],
)
def test_cells_that_do_not_suit(model, tmp_path, text, words):
    (tmp_path / "rows.csv").write_text(text)
    result = run("condition", model, "--data", tmp_path / "rows.csv", "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert words in " ".join(result.output.split()), result.output


def test_text_without_a_time_zone_is_in_the_columns(tmp_path):
    dates = pd.Series(pd.date_range("2021-06-01", periods=5, tz="Europe/Berlin"), name="sold")
    table = Table(dates.to_frame())
    path = tmp_path / "rows.csv"
    path.write_text(
        "sold\n2021-06-01 12:00\n2021-06-01T12:00Z\n2021-06-01 12:00:00+05:00\n2021-06-01\nNA\n"
    )
    read = read_frame(path, table, TableStyle())["sold"]
    hours = ["12:00+02:00", "14:00+02:00", "09:00+02:00", "00:00+02:00"]
    assert read.iloc[:4].tolist() == [pd.Timestamp(f"2021-06-01T{hour}") for hour in hours]
    assert read.isna().tolist() == [False] * 4 + [True]
    assert read.dtype.tz == dates.dtype.tz
    path.write_text("sold\n2021-03-28 02:30\n")
    with pytest.raises(ValueError, match=r"column 'sold': expected dates .* nonexistent time"):
        read_frame(path, table, TableStyle())
