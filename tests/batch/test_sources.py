"""Ranges of rows in files: each is what the whole file has there."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TABLE, rows, table_model, write_csv
from torch import nn

import crosscoding as cc
from crosscoding.batch import SourceChangedError, TableStyle
from crosscoding.batch.sources import csv_file
from crosscoding.batch.sources.opening import holds_pixels, open_source

pd = pytest.importorskip("pandas")


def numbers_model(num=3):
    torch.manual_seed(0)
    return cc.VAE(nn.Linear(2, num), 2, cc.likelihoods.Gaussian(0.5))


def picture_model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 2, 2)))
    return cc.VAE(network, 2, cc.likelihoods.Gaussian(0.5))


def opened(path, vae, *, every=4, keep=(), **style):
    return open_source(str(path), vae, TableStyle(**style), every, keep)


def all_cells(source, every=4):
    starts = range(0, source.num_rows, every)
    reads = [source.read(start, min(start + every, source.num_rows)) for start in starts]
    return np.concatenate([np.asarray(read.cells) for read in reads])


AWKWARD = [
    'a,"b\n""c",d',
    "",
    "1,2,3",
    "   ",
    '"x, y",,"\n\n"',
    ",,",
    '"",1,""""',
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("piece", [1, 7, 2**22])
@pytest.mark.parametrize("last", ["", "end"])
def test_rows_of_text_begin_where_a_csv_reader_finds_them(tmp_path, monkeypatch, end, piece, last):
    monkeypatch.setattr(csv_file, "_PIECE", piece)
    text = end.join(AWKWARD * 3) + (end if last else "")
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = cc.tables.Table.of([cc.tables.Column(n, "class", ("1",)) for n in "pqr"])
    vae = cc.VAE(nn.Linear(2, table.num_params), 2, table.likelihood(), table=table)
    source = opened(path, vae, every=2, header=False)
    lines = list(csv.reader(text.splitlines(keepends=True)))
    wanted = [cells for cells in lines if cells and cells != ["   "]]
    assert source.num_rows == len(wanted) == 15
    assert all_cells(source, 2).tolist() == wanted


def test_tabs_are_cells_where_they_separate_them(tmp_path):
    (tmp_path / "rows.tsv").write_text("x\ty\tz\n1\t2\t3\n\t\t\n\n4\t5\t6\n")
    source = opened(tmp_path / "rows.tsv", numbers_model())
    np.testing.assert_array_equal(all_cells(source), [[1, 2, 3], [np.nan] * 3, [4, 5, 6]])
    assert source.names == ("x", "y", "z")


def test_lines_that_are_no_rows_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"x,y,z\n1,2\n1,two,3\n1,\xe9,3\n1,2,3\n")
    read = opened(path, numbers_model()).read(0, 4)
    assert read.rows.tolist() == [3]
    assert read.bad == {
        0: "expected 3 cells, got 2",
        1: "column 'y': expected a number, or an empty cell, got 'two'",
        2: "expected text in UTF-8, got other bytes",
    }


@pytest.mark.parametrize(
    ("line", "other", "words"),
    [
        ('1,5" pipe,3', "1,2,3", "line 5: a quote is not closed, or is inside"),
        ('1,"5,3', "1,2,3", "line 5: a quote is not closed, or is inside"),
        ('1,5" pipe,3', '1,7" pipe,3', "line 5: a quote is not closed, or is inside"),
        ("1,2," + "x" * 140_000, "1,2,3", "line 5: field larger than field limit"),
    ],
)
@pytest.mark.parametrize("lines", [1, 2000])
def test_the_line_of_a_stray_quote_is_named(tmp_path, line, other, words, lines):
    text = 'x,y,z\n\n1,2,"\n3"\n' + f"{line}\n" + "1,2,3\n" * lines + f"{other}\n4,5,6\n"
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"cannot read .*rows.csv: {words}"):
        all_cells(opened(tmp_path / "rows.csv", numbers_model(), every=1), 1)


def test_lines_without_line_feeds_are_named(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"x,y,z\n1,2,3\r4,5,6\r")
    with pytest.raises(ValueError, match=r"rows\.csv: lines do not end in line feeds"):
        all_cells(opened(tmp_path / "rows.csv", numbers_model()))


DATA = np.arange(30, dtype=np.float32).reshape(10, 3)


def save(path, kind):
    if kind == "npy":
        np.save(path / "rows.npy", DATA)
        return path / "rows.npy"
    if kind in ("npz", "deflated"):
        write = np.savez if kind == "npz" else np.savez_compressed
        write(path / "rows.npz", other=np.zeros(3), rows=DATA)
        return path / "rows.npz"
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(path / "rows.zarr", mode="w")
        group.create_array("rows", data=DATA, chunks=(4, 3))
        return path / "rows.zarr"
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(DATA, columns=["x", "y", "z"])
    (path / "parts").mkdir()
    frame[:3].to_parquet(path / "parts" / "0.parquet")
    frame[3:].to_parquet(path / "parts" / "1.parquet", row_group_size=2)
    return path / "parts"


@pytest.mark.parametrize("kind", ["npy", "npz", "deflated", "zarr", "parquet"])
def test_ranges_of_arrays(tmp_path, kind):
    source = opened(save(tmp_path, kind), numbers_model())
    np.testing.assert_array_equal(all_cells(source), DATA)
    np.testing.assert_array_equal(source.read(8, 10).cells, DATA[8:10])
    np.testing.assert_array_equal(source.read(4, 8).cells, DATA[4:8])


def test_pictures_are_read_in_the_order_of_their_names(tmp_path):
    for name, shade in (("b", 255), ("a", 0)):
        Image.fromarray(np.full((2, 2, 3), shade, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("none either")
    source = opened(tmp_path, picture_model())
    read = source.read(0, 3)
    assert read.cells[:, 0, 0, 0].tolist() == [-1.0, 1.0]
    assert list(read.bad) == [2]
    assert "c.png, which cannot be read" in read.bad[2]


def test_bytes_are_pixels_if_any_is_above_one(tmp_path):
    pixels = np.zeros((9, 3, 2, 2), dtype=np.uint8)
    np.save(tmp_path / "binary.npy", pixels)
    pixels[8] = 200
    np.save(tmp_path / "pixels.npy", pixels)
    vae = picture_model()
    found = [holds_pixels(opened(tmp_path / f"{n}.npy", vae), vae, 4) for n in ("binary", "pixels")]
    assert found == [False, True]


@pytest.mark.parametrize("kind", ["npy", "zarr", "parquet"])
def test_a_file_that_changes_is_noticed(tmp_path, kind):
    path = save(tmp_path, kind)
    source = opened(path, numbers_model())
    file = path if path.is_file() else next(f for f in sorted(path.rglob("*")) if f.is_file())
    os.utime(file, ns=(1, 2**62))
    with pytest.raises(SourceChangedError, match="was when the run began, but it has changed"):
        all_cells(source)


def test_a_file_that_is_gone_is_noticed(tmp_path):
    path = write_csv(tmp_path / "rows.csv", rows(5))
    source = opened(path, table_model())
    path.unlink()
    with pytest.raises(SourceChangedError, match="but it is gone"):
        source.read(0, 4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, "there is no such file or folder"),
        ("rows.xls", b"x", "expected .csv, .tsv, .txt, .parquet"),
        ("empty.csv", b"", "got an empty file"),
        ("header.csv", b"x,y,z\n", "expected rows in"),
        ("wide.csv", b"x,y,z,id\n1,2,3,a\n", "expected 3 columns in"),
        ("twice.csv", b"x,x,z\n1,2,3\n", "got two called 'x'"),
        ("none.npy", b"", "cannot read the array"),
        ("none.npz", b"PK", "cannot read the arrays"),
        ("none.parquet", b"PAR1", "as Parquet"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, name, content, words):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / name, numbers_model())


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 2)), r"of shape \(N, 3\)"),
        (np.zeros((0, 3)), "expected rows"),
        (np.zeros((4, 3), dtype=complex), "expected an array of numbers"),
        (np.asfortranarray(np.zeros((4, 3))), "in Fortran order"),
    ],
)
def test_arrays_that_hold_no_rows_are_refused(tmp_path, array, words):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / "rows.npy", numbers_model())


def test_a_table_needs_its_columns(tmp_path):
    names = ("id", *TABLE.names)
    path = write_csv(tmp_path / "rows.csv", [["7", *cells] for cells in rows(3)], names)
    with pytest.raises(ValueError, match=r"got 'id' in .*keep it beside the answers"):
        opened(path, table_model())
    pytest.importorskip("pyarrow")
    read = opened(path, table_model(), keep=("id",)).read(0, 3)
    assert read.kept["id"].to_pylist() == ["7"] * 3
    with pytest.raises(ValueError, match="expected a column 'key' to keep"):
        opened(path, table_model(), keep=("key",))
    np.save(tmp_path / "rows.npy", np.zeros((4, 5)))
    with pytest.raises(ValueError, match="expected CSV or Parquet for a model with a table"):
        opened(tmp_path / "rows.npy", table_model())
