"""Shards of which every row is rejected, of each format and each kind of source."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import rejected, rows, run, table_model, write_csv
from torch import nn

import crosscoding as cc

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
BAD = np.array([[0.1, 0.2, 0.3]] * 2 + [[np.inf, 0.0, 0.0]] * 2 + [[0.1, 0.2, np.nan]])


def numbers_model():
    torch.manual_seed(0)
    return cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.5))


def picture_model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 2, 2)))
    return cc.VAE(network, 2, cc.likelihoods.Gaussian(0.5))


def source_of(path, kind):
    """Five rows, of which rows 2 and 3 cannot be answered."""
    if kind == "pictures":
        (path / "pictures").mkdir()
        for row in range(5):
            pixels = np.zeros((2, 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / "pictures" / f"{row}.png")
        for row in (2, 3):
            (path / "pictures" / f"{row}.png").write_text("none")
        return path / "pictures"
    if kind == "npy":
        np.save(path / "rows.npy", BAD)
    elif kind == "npz":
        np.savez(path / "rows.npz", BAD)
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        zarr.save_array(path / "rows.zarr", BAD)
    elif kind == "csv":
        text = pd.DataFrame(BAD, columns=list("xyz")).astype(object).replace({np.inf: "much"})
        text.to_csv(path / "rows.csv", index=False)
    else:
        pd.DataFrame(BAD, columns=list("xyz")).to_parquet(path / "rows.parquet")
    return path / f"rows.{kind}"


@pytest.mark.parametrize("format", ["parquet", "zarr"])
@pytest.mark.parametrize("kind", ["npy", "npz", "zarr", "csv", "parquet", "pictures"])
def test_a_shard_of_bad_rows_only_is_empty(tmp_path, kind, format):
    vae = picture_model() if kind == "pictures" else numbers_model()
    source = source_of(tmp_path, kind)
    result = run(vae, source, tmp_path / "out", shard_rows=2, format=format)
    assert (result.complete, result.answered, result.rejected) == (True, 3, 2)
    assert sorted(rejected(tmp_path / "out")) == [2, 3]
    if format == "parquet":
        assert pd.read_parquet(tmp_path / "out" / "shards")["row"].tolist() == [0, 1, 4]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_so_is_one_of_a_table_which_has_the_columns_of_the_others(tmp_path, kind):
    import pyarrow.parquet as pq

    cells = [["k", *row] for row in rows(5)]
    cells[2][2] = cells[3][2] = "Rome"
    path = write_csv(tmp_path / "rows.csv", cells, ("key", *table_model().table.names))
    if kind == "parquet":
        frame = pd.read_csv(path, dtype={"city": str})
        frame["sold"] = pd.to_datetime(frame["sold"])
        path = tmp_path / "rows.parquet"
        frame.to_parquet(path)
    result = run(table_model(), path, tmp_path / "out", shard_rows=2, keep=["key"])
    assert (result.answered, result.rejected) == (3, 2)
    schemas = [pq.read_schema(shard) for shard in sorted((tmp_path / "out" / "shards").iterdir())]
    assert schemas[0].equals(schemas[1])
    assert schemas[0].equals(schemas[2])
