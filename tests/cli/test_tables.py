"""Tables in CSV files: names, what is missing, what is refused."""

import numpy as np
import pytest

from crosscoding.cli.tables import read_table, write_table


def table(tmp_path, text: str, **options):
    (tmp_path / "a.csv").write_text(text, **options)
    return read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "NaN", "null", "?"])
def test_what_is_missing_is_nan(tmp_path, missing):
    rows, names = table(tmp_path, f"1,{missing},3\n-4e-1,5,6\n")
    np.testing.assert_array_equal(rows, [[1, np.nan, 3], [-0.4, 5, 6]])
    assert names is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_first_line_may_be_names(tmp_path, encoding):
    rows, names = table(tmp_path, 'age,"height, cm"\n\n1,2\n', encoding=encoding)
    assert names == ["age", "height, cm"]
    np.testing.assert_array_equal(rows, [[1, 2]])


def test_a_first_line_with_gaps_is_no_line_of_names(tmp_path):
    assert table(tmp_path, ",2\n")[1] is None
    assert table(tmp_path, ",\n1,2\n")[1] is None
    assert table(tmp_path, ",b\n1,2\n")[1] == ["", "b"]


def test_what_is_written_is_read_again(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    for names in (None, ["a", "b"]):
        write_table(tmp_path / "b.csv", rows, names)
        again, found = read_table(tmp_path / "b.csv")
        assert (again.astype(np.float32) == rows).all()
        assert found == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n1,2,3\n", "expected 2 columns in line 2 of .*a.csv, got 3; leave a cell empty"),
        ("1,1.O\n1,2\n", "line 1, column 2 of .*got '1.O'"),
        ("1_000,2\n", "line 1, column 1 of .*got '1_000'"),
        ("a,b\n1,2\n3,red\n", "line 3, column 2 of .*got 'red'; write classes as numbers from 0"),
    ],
)
def test_what_it_refuses(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="and it cannot be read"):
        read_table(tmp_path / "a.csv")
