"""Tables as text: headers, missing values, delimiters and decimals, errors."""

import numpy as np
import pytest

from crosscoding.cli.tables import read_table, write_table
from crosscoding.formats.table_style import TableStyle

ROWS = "0.5,,1.5\n2.5,3.5,\n"  # floats with gaps, as pandas writes them


def table(tmp_path, text: str, style: TableStyle | None = None, *, name="a.csv", encoding="utf-8"):
    (tmp_path / name).write_text(text, encoding=encoding, newline="")
    return read_table(tmp_path / name, style)


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "NaN", "null", "?"])
def test_missing_values_are_nan(tmp_path, missing):
    read = table(tmp_path, f"1,{missing},3\n-4e-1,5,6\n")
    np.testing.assert_array_equal(read.rows, [[1, np.nan, 3], [-0.4, 5, 6]])
    assert read.names is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_first_line_may_be_names(tmp_path, encoding, end):
    text = 'age,"height, cm"\n\n1,2\n'.replace("\n", end)
    read = table(tmp_path, text, encoding=encoding)
    assert read.names == ["age", "height, cm"]
    assert not read.notes
    np.testing.assert_array_equal(read.rows, [[1, 2]])


def test_a_first_line_with_gaps_is_a_row_unless_it_has_words(tmp_path):
    assert table(tmp_path, ",2\n").names is None
    assert table(tmp_path, ",\n1,2\n").names is None
    assert table(tmp_path, ",b\n1,2\n3,2\n").names == ["", "b"]


@pytest.mark.parametrize(
    "style", [TableStyle(), TableStyle(";", ","), TableStyle("\t"), TableStyle(" ")]
)
def test_written_tables_can_be_read_again(tmp_path, style):
    rows = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    for names in (None, ["a", "b c"]):
        write_table(tmp_path / "b.csv", rows, names, style)
        again = read_table(tmp_path / "b.csv", style)
        assert (again.rows.astype(np.float32) == rows).all()
        assert again.names == names


# ---- is the first line a header? -----------------------------------------------------------------


@pytest.mark.parametrize("first", ["0,1,2", '"0","1","2"', " 0, 1, 2"])
@pytest.mark.parametrize("rows", [ROWS, "5,6,7\n8,9,\n"], ids=["floats", "whole"])
def test_the_default_header_of_pandas_is_not_a_row(tmp_path, first, rows):
    read = table(tmp_path, f"{first}\n{rows}")
    assert [name.strip() for name in read.names or []] == ["0", "1", "2"]
    assert len(read.rows) == 2
    assert len(read.notes) == 1
    assert "0, 1, 2, is taken as the column names" in read.notes[0]
    assert "--no-header" in read.notes[0]
    assert len(table(tmp_path, f"{first}\n{rows}", TableStyle(header=False)).rows) == 3


@pytest.mark.parametrize("first", ["0", "0,1"])
def test_a_short_pandas_header_is_recognised_by_the_decimals_below_it(tmp_path, first):
    below = {"0": "0.5\n1.0\n", "0,1": "0.5,1.0\n,1e-05\n"}[first]
    read = table(tmp_path, f"{first}\n{below}")
    assert read.names == first.split(",")
    assert len(read.rows) == 2
    assert read.notes


@pytest.mark.parametrize(
    "text",
    [
        "0,1\n1,1\n0,0\n",  # zeros and ones, or pandas' columns
        "0\n1\n1\n",
        "0.0,1.0,2.0\n0.5,0.5,0.5\n",
        "1,2,3,4\n5,6,7,8\n",
        "2019,2020,2021\n0.5,,0.25\n",
    ],
)
def test_a_first_line_that_may_be_either_needs_an_option(tmp_path, text):
    with pytest.raises(ValueError, match=r"may be either: .*--header if .*--no-header if"):
        table(tmp_path, text)
    lines = text.count("\n")
    assert len(table(tmp_path, text, TableStyle(header=True)).rows) == lines - 1
    assert len(table(tmp_path, text, TableStyle(header=False)).rows) == lines


@pytest.mark.parametrize("text", ["0,1\n", "3,1,2\n4,5,6\n", "0,0\n0.5,1.5\n", "0.0,1.0\n0.5,1\n"])
def test_other_numbers_are_a_row(tmp_path, text):
    read = table(tmp_path, text)
    assert len(read.rows) == text.count("\n")
    assert not read.notes


@pytest.mark.parametrize(
    "text",
    [
        ",0,1,2\n0,0.5,,1.5\n1,2.5,3.5,\n",
        ",a,b,c\n0,0.5,,1.5\n1,2.5,3.5,\n",
        ",0,1\n0,0.5,\n1,2.5,3.5\n",
        "Unnamed: 0,0,1,2\n0,0.5,,1.5\n",
        '"","a","b"\n"1",0.5,\n"2",2.5,3.5\n',  # as written by R
    ],
)
def test_a_pandas_index_is_refused_by_name(tmp_path, text):
    message = r"an extra first column '.*' that counts the rows.*index=False"
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


# ---- how tables are written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a;b;c\n1;;3\n", "--delimiter ';'"),
        ("a;b;c\n0,5;;2,5\n", "--delimiter ';' --decimal ','"),
        ("1;;3\n4;5;6\n", "--delimiter ';'"),
        ("1;;3\n", "--delimiter ';'"),
        ("a\tb\n1\t2\n", "--delimiter tab"),
        ("1|2\n3|4\n", "--delimiter '|'"),
        ("1.5 nan 3\n4 5 6\n", "--delimiter space"),
    ],
)
def test_a_wrong_delimiter_is_refused_naming_the_right_one(tmp_path, text, advice):
    with pytest.raises(ValueError, match="wrong delimiter") as caught:
        table(tmp_path, text)
    assert str(caught.value).endswith(f"Give {advice}")


@pytest.mark.parametrize(
    ("style", "name", "text"),
    [
        (TableStyle(";"), "a.csv", "1.5;;3\n4;5;6\n"),
        (TableStyle(";", ","), "a.csv", "1,5;;3\n4;5;6\n"),
        (TableStyle("\t"), "a.TXT", "1.5\t\t3\n4\t5\t6\n"),
        (TableStyle(), "a.tsv", "1.5\t\t3\n4\t5\t6\n"),
        (TableStyle(decimal=","), "a.tsv", "1,5\t\t3\n4\t5\t6\n"),
        (TableStyle(" "), "a.txt", "  1.5  nan 3 \n4 5   6\n"),
    ],
)
def test_delimiters_and_decimals_are_read_as_they_are_given(tmp_path, style, name, text):
    read = table(tmp_path, text, style, name=name)
    np.testing.assert_array_equal(read.rows, [[1.5, np.nan, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((";;", "."), "--delimiter as one character"),
        (("1", "."), "--delimiter as one character"),
        ((";", ";"), "--decimal '.' or --decimal ','"),
    ],
)
def test_invalid_styles_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TableStyle.parse(*options, None)


def test_a_decimal_comma_needs_another_delimiter(tmp_path):
    with pytest.raises(ValueError, match="give --delimiter ';'"):
        table(tmp_path, "1,5\n", TableStyle(decimal=","))


@pytest.mark.parametrize("name", ["tab", "\\t", "\t", "TAB"])
def test_a_tab_has_names(name):
    assert TableStyle.parse(name, ".", None).delimiter == "\t"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n1,2,3\n", "expected 2 columns in line 2 of .*a.csv, .*, got 3; leave the cells"),
        ("a,b\n1,2,3\n4,5,6\n", "got 3; is the first column, which has no name, an index"),
        ("1,1.O\n1,2\n", "line 1, column 2 of .*got '1.O'.*--header"),
        ("1_000,2\n", "line 1, column 1 of .*got '1_000'"),
        ("a,b\n1,2\n3,red\n", r"line 3, column 2 \('b'\) of .*got 'red'; write classes as numbers"),
        ('a,b\n"1,234",2\n', "got '1,234'; write it with a decimal point and no thousands"),
        (",a\nx,1\n", "a pandas index"),
        ("1,inf\n", "expected a finite number in line 1, column 2 of .*got 'inf'"),
        ("1,-1e999\n", "expected a finite number in line 1, column 2 of"),
        ("", "got an empty file"),
        ("\n \n", "got an empty file"),
        ("a,b\n", "got only column names, a, b"),
        ("0,1,2\n", "got only column names, 0, 1, 2; .*--no-header"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_thousands_separators_are_not_taken_for_decimal_points(tmp_path):
    with pytest.raises(ValueError, match=r"got '1\.234'; write it with a decimal comma"):
        table(tmp_path, "1.234;5\n", TableStyle(";", ","))


def test_rows_without_a_number_are_noted(tmp_path):
    read = table(tmp_path, "1,2\n,\n\n,\n")
    assert len(read.rows) == 3
    assert read.notes == (f"no values in 2 rows of {read.name}, the first on line 2",)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "Größe,b\n1,2\n".encode("latin-1")])
def test_a_file_that_is_not_text_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        read_table(tmp_path / "a.csv")
