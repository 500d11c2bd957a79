"""Results hold kept columns and observed cells as they are in the source, under distinct names."""

import datetime
import decimal

import numpy as np
import pytest
import torch
from small_runs import TABLE, rows, run, table_model, write_csv
from torch import nn

import crosscoding as cc
from crosscoding.batch import SourceChangedError
from crosscoding.tables import Column, Table

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
BIG = 2**53 + 1  # the least integer that float64 does not hold


def numbers_model():
    torch.manual_seed(0)
    return cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))


def results(out):
    return pa.concat_tables(pq.read_table(path) for path in sorted((out / "shards").iterdir()))


@pytest.mark.parametrize("files", [1, 2])
def test_kept_columns_are_those_of_the_source(tmp_path, files):
    kept = {
        "key": pa.array([BIG, None, BIG + 2, None], pa.int64()),
        "text": pa.array([None, None, "NA", "007"]),
        "none": pa.nulls(4),
        "day": pa.array([datetime.date(2017, 3, 1), None, None, None]),
        "time": pa.array([1, None, 3, 4], pa.timestamp("ns", tz="Europe/Berlin")),
        "sum": pa.array([decimal.Decimal("0.10"), None, None, None]),
        "list": pa.array([[1], [], None, [2, 3]]),
        "class": pa.array(["a", None, "b", "b"]).dictionary_encode(),
        "share": pa.array([0.1, None, float("nan"), 0.3], pa.float32()),
    }
    table = pa.table({**kept, "x": [0.1, None, 0.2, 0.3], "y": [0.1] * 4, "z": [0.1] * 4})
    (tmp_path / "in").mkdir()
    for part in range(files):
        rows_of = table.slice(part * 4 // files, 4 // files)
        pq.write_table(rows_of, tmp_path / "in" / f"{part}.parquet")
    run(numbers_model(), tmp_path / "in", tmp_path / "out", keep=list(kept), shard_rows=1)
    found = results(tmp_path / "out").select(list(kept))
    assert found.schema.equals(table.select(list(kept)).schema)
    assert repr(found.to_pydict()) == repr(table.select(list(kept)).to_pydict())


def test_kept_integers_of_two_widths_become_the_wider(tmp_path):
    (tmp_path / "in").mkdir()
    for name, kind in (("a", pa.int32()), ("b", pa.int64()), ("c", pa.null())):
        key = pa.array([None] if name == "c" else [7], kind)
        pq.write_table(
            pa.table({"key": key, "x": [0.1], "y": [0.1], "z": [0.1]}),
            tmp_path / "in" / f"{name}.parquet",
        )
    run(numbers_model(), tmp_path / "in", tmp_path / "out", keep=["key"], shard_rows=1)
    found = results(tmp_path / "out")["key"]
    assert (found.type, found.to_pylist()) == (pa.int64(), [7, 7, None])
    pq.write_table(
        pa.table({"key": ["7"], "x": [0.1], "y": [0.1], "z": [0.1]}), tmp_path / "in" / "d.parquet"
    )
    with pytest.raises(ValueError, match="expected kept columns of one type in all files"):
        run(numbers_model(), tmp_path / "in", tmp_path / "other", keep=["key"])


def table_of_integers():
    columns = [
        Column("id", "number", shift=9e15, scale=1e12, step=1.0, dtype="int64"),
        Column("v", "number"),
    ]
    table = Table.of(columns)
    torch.manual_seed(0)
    return cc.VAE(nn.Linear(2, table.num_params), 2, table.likelihood(), table=table)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_observed_integers_that_no_float_holds_come_back(tmp_path, dtype, statistics):
    ids = pa.array([BIG, None, BIG + 2], getattr(pa, dtype)())
    table = pa.table({"id": ids, "v": [None, 0.1, 0.1]})
    pq.write_table(table, tmp_path / "rows.parquet", write_statistics=statistics)
    run(table_of_integers(), tmp_path / "rows.parquet", tmp_path / "out", draws=1, shard_rows=2)
    found = results(tmp_path / "out")
    for part in ("mean", "low", "high", "draw_0"):
        cells = found[f"id_{part}"].to_pylist()
        assert cells[::2] == [BIG, BIG + 2]
        assert abs(cells[1] - 9e15) < 1e14
    other = table.rename_columns(["x", "y"]).append_column("z", pa.array([0.1] * 3))
    pq.write_table(other, tmp_path / "b.parquet", write_statistics=statistics)
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(1e16))
    run(vae, tmp_path / "b.parquet", tmp_path / "b", shard_rows=2)
    assert results(tmp_path / "b")["x_low"].to_pylist()[::2] == [BIG, BIG + 2]


def test_other_integers_have_means_with_fractions(tmp_path):
    pq.write_table(pa.table({"x": [1, None], "y": [1, 2], "z": [1, 2]}), tmp_path / "rows.parquet")
    run(numbers_model(), tmp_path / "rows.parquet", tmp_path / "out")
    found = results(tmp_path / "out")["x_mean"].to_pylist()
    assert found[0] == 1
    assert found[1] % 1 != 0


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "npz", "zarr"])
@pytest.mark.parametrize("format", ["parquet", "zarr"])
def test_observed_numbers_are_not_rounded_to_the_dtype_of_the_model(tmp_path, kind, format):
    data = np.array([[0.1, 1e8 + 0.01, np.nan], [0.3, 16777217.0, 0.7]])
    path = tmp_path / f"rows.{kind}"
    if kind == "npy":
        np.save(path, data)
    elif kind == "npz":
        np.savez(path, data)
    elif kind == "zarr":
        pytest.importorskip("zarr").save_array(path, data)
    else:
        frame = pd.DataFrame(data, columns=list("xyz"))
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    run(numbers_model(), path, tmp_path / "out", format=format)
    if format == "zarr":
        group = pytest.importorskip("zarr").open_group(tmp_path / "out/shards/shard-00000000.zarr")
        found = group["low"][:]
    elif kind in ("csv", "parquet"):
        found = np.stack([results(tmp_path / "out")[f"{name}_low"] for name in "xyz"], 1)
    else:
        found = np.stack(results(tmp_path / "out")["low"].to_pylist())
    np.testing.assert_array_equal(np.where(np.isnan(data), np.nan, found), data)
    assert np.isfinite(found).all()


def test_a_cell_that_changed_by_less_than_the_model_sees_is_another_row(tmp_path):
    cells = ["30", "Bonn", "1", "2017-03-01", "100000000.01"]
    path, vae = write_csv(tmp_path / "rows.csv", [cells]), table_model()
    run(vae, path, tmp_path / "out")
    write_csv(path, [[*cells[:4], "100000000.02"]])
    with pytest.raises(SourceChangedError, match="rows 0 to 0, which are already answered"):
        run(vae, path, tmp_path / "out")


@pytest.mark.parametrize("name", ["row", "ess", "price_mean", "city_probability", "mean_verdict"])
def test_a_kept_column_with_the_name_of_a_result_is_refused(tmp_path, name):
    path = write_csv(tmp_path / "rows.csv", [["7", *r] for r in rows(3)], (name, *TABLE.names))
    with pytest.raises(ValueError, match=f"got 2 called '{name}'; rename the column to keep"):
        run(table_model(), path, tmp_path / "out", keep=[name])
    assert not (tmp_path / "out").exists()


def test_so_are_columns_whose_names_meet_in_the_results(tmp_path):
    pq.write_table(pa.table({"x_q0.1": [0.1], "x": [0.1], "low": [0.1]}), tmp_path / "rows.parquet")
    run(numbers_model(), tmp_path / "rows.parquet", tmp_path / "out", quantiles=[0.1])
    pq.write_table(
        pa.table({"row": [0.1], "log_evidence": [0.1], "ess": [0.1]}), tmp_path / "other.parquet"
    )
    run(numbers_model(), tmp_path / "other.parquet", tmp_path / "other")
    table = Table.of([Column(1, "number"), Column("1", "number")])
    vae = cc.VAE(nn.Linear(2, table.num_params), 2, table.likelihood(), table=table)
    (tmp_path / "rows.csv").write_text("1,2\n")
    style = cc.batch.TableStyle(header=False)
    with pytest.raises(ValueError, match="got 2 called '1_mean'; rename a column of the source"):
        run(vae, tmp_path / "rows.csv", tmp_path / "third", style=style)


def test_quantiles_have_all_digits_in_their_names(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((1, 3)))
    quantiles = [0.1234567, 0.1234568]
    run(numbers_model(), tmp_path / "rows.npy", tmp_path / "out", quantiles=quantiles)
    assert {"q0.1234567", "q0.1234568"} <= set(results(tmp_path / "out").column_names)
