"""What columns are taken to be, and DataFrames to tensors and back."""

import json
import re

import numpy as np
import pytest
import torch

import crosscoding as cc
from crosscoding.tables import Column, Table

pd = pytest.importorskip("pandas")

DATES = pd.to_datetime(["2020-01-01", "2021-06-05", None, "2023-02-01", "2019-12-31"])
DRAWS = np.random.default_rng(0)


def everything() -> "pd.DataFrame":
    """A column of each kind and dtype, with gaps."""
    return pd.DataFrame(
        {
            "float": [0.1, -2.5, np.nan, 1e6 + 1 / 3, 7.0],
            "float32": np.array([0.1, 2.5, np.nan, -1.0, 3.0], "float32"),
            "Float64": pd.array([0.1, -2.5, None, 1.5, 2.0], "Float64"),
            "int": [1000, 2000, 2**53 + 1, -4, 5],
            "Int64": pd.array([2**60 + 1, None, -3, 40, 50], "Int64"),
            "Int8": pd.array([100, None, -3, 40, 50], "Int8"),
            "count": [1, 2, 3, 0, 2],
            "bool": [True, False, True, True, False],
            "boolean": pd.array([True, None, False, True, None], "boolean"),
            "mixed bool": np.array([True, None, False, True, True], object),
            "text": ["b", None, "a", "a", "c"],
            "object": np.array(["b", None, "a", "a", "c"], object),
            "string": pd.array(["b", None, "a", "a", "c"], "string"),
            "category": pd.Categorical(["y", "x", None, "x", "y"], categories=["y", "x", "z"]),
            "ordered": pd.Categorical(["s", "l", None, "m", "m"], ["s", "m", "l"], ordered=True),
            "date": DATES,
            "aware": DATES.tz_localize("Europe/Berlin"),
            "duration": pd.to_timedelta([1, None, 3.5, 4, 5], unit="h"),
            3: np.array([1, None, 2.5, 3, 4], object),
        },
        index=[7, 7, "a", None, 3],
    )


KINDS = {
    **dict.fromkeys(["float", "float32", "Float64", "int", "Int64", "Int8"], "number"),
    **dict.fromkeys(["duration", 3], "number"),
    "count": "count",
    **dict.fromkeys(["bool", "boolean", "mixed bool"], "boolean"),
    **dict.fromkeys(["text", "object", "string", "category"], "class"),
    "ordered": "ordinal",
    "date": "date",
    "aware": "date",
}


def test_kinds_are_learned_from_dtypes_and_cells():
    table = Table(everything())
    assert table.kinds == KINDS
    assert table["ordered"].categories == ("s", "m", "l")
    assert table["category"].categories == ("y", "x", "z")  # with one that no cell has


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1, 0], "boolean"),
        ([0.0, 1.0, np.nan], "boolean"),
        ([0, 1, 2, 5], "count"),
        ([0, 1, 2, 5.5], "number"),
        ([-1, 1, 2, 5], "number"),
        ([1990, 1991, 2000], "number"),
        (np.exp(2 * DRAWS.normal(size=200)), "positive"),
        (np.exp(2 * DRAWS.normal(size=200)) - 0.5, "number"),
        (DRAWS.uniform(1, 2, 200), "number"),
        ([5.5, 5.5, 5.5], "number"),
    ],
)
def test_kinds_of_numbers(values, kind):
    assert Table(pd.DataFrame({"x": values}))["x"].kind == kind


def test_kinds_can_be_corrected():
    df = pd.DataFrame({"age": [1, 2, 3, 9], "code": [10, 20, 10, 30], "y": [0.5, 1.5, 2.0, 1.0]})
    table = Table(df, kinds={"age": "number", "code": "class", "y": "positive"})
    assert [column.kind for column in table.columns] == ["number", "class", "positive"]
    assert table["code"].categories == (10, 20, 30)
    assert Table(df, kinds={"age": "ordinal"})["age"].categories == (1, 2, 3, 9)


def test_the_table_says_what_it_understood():
    text = str(Table(everything()[["float", "text", "date"]].head(2)))
    assert text.splitlines()[1] == "text: class (b), str"
    assert "date: date (around 2020-09-17" in text


def test_a_frame_comes_back_bit_for_bit_where_it_was_observed():
    df = everything()
    table = Table(df)
    values, mask = table.to_tensors(df)
    np.testing.assert_array_equal(mask.numpy(), ~df.isna().to_numpy())
    filled = torch.where(mask, values, 0.7)
    done = table.from_tensors(filled, rows=df)
    assert not done.isna().any(axis=None)
    assert done.dtypes.to_dict() == df.dtypes.to_dict()
    assert done.columns.tolist() == df.columns.tolist()
    assert done.index.equals(df.index)
    for name in df.columns:
        observed = df[name].notna().to_numpy()
        assert done[name][observed].tolist() == df[name][observed].tolist(), name
    assert done["int"].iloc[2] == 2**53 + 1
    assert done["Int64"].iloc[0] == 2**60 + 1


def test_cells_made_anew_have_the_tables_dtypes_and_units():
    df = everything().dropna()
    assert len(df) == 2
    table = Table(everything())
    values, mask = table.to_tensors(df, dtype=torch.double)
    assert mask.all()
    done = table.from_tensors(values)
    assert done.dtypes.to_dict() == everything().dtypes.to_dict()
    for name in df.columns:
        if table[name].is_listed or name in ("date", "aware"):
            assert done[name].tolist() == df[name].tolist(), name
        elif name == "Int64":  # one unit of it is 5e17
            assert abs(done[name].iloc[0] - df[name].iloc[0]) < 1000
        elif name == "duration":
            assert abs(done[name].iloc[0] - df[name].iloc[0]) < pd.Timedelta("1ms")
        else:
            np.testing.assert_allclose(done[name].astype(float), df[name].astype(float), rtol=1e-9)


def test_numbers_are_standardised_and_positive_ones_divided_by_their_geometric_mean():
    values = np.exp(DRAWS.normal(3, 1.5, 500))
    df = pd.DataFrame({"n": DRAWS.normal(5, 3, 500), "p": values})
    tensor, _ = Table(df).to_tensors(df, dtype=torch.double)
    assert tensor[:, 0].mean().abs() < 1e-12
    torch.testing.assert_close(tensor[:, 0].var(correction=0), tensor.new_tensor(1.0))
    torch.testing.assert_close(tensor[:, 1].log().mean(), tensor.new_tensor(0.0))


def test_columns_are_found_by_name():
    df = pd.DataFrame({"a": [0.5, 1.5, 2.5], "b": ["x", "y", "x"]})
    table = Table(df)
    values, mask = table.to_tensors(df[["b", "a"]])
    torch.testing.assert_close(values, table.to_tensors(df)[0])
    values, mask = table.to_tensors(df[["b"]])
    assert mask.tolist() == [[False, True]] * 3
    done = table.from_tensors(torch.nan_to_num(values), rows=df[["b"]])
    assert done.columns.tolist() == ["b", "a"]


def test_a_column_of_which_nothing_is_observed_gets_the_tables_dtype():
    table = Table(pd.DataFrame({"a": [5, 100, 50], "b": ["x", "y", "x"]}))
    rows = pd.DataFrame({"a": [np.nan, np.nan], "b": [np.nan, np.nan]})
    done = table.from_tensors(torch.tensor([[0.0, 1.0], [0.1, 0.0]]), rows=rows)
    assert done["a"].dtype == "int64"
    assert done["b"].tolist() == ["y", "x"]


def test_whole_numbers_are_drawn_whole_but_means_are_not():
    df = pd.DataFrame({"a": [30.0, 40.0, np.nan, 51.0]})
    table, gap = Table(df), torch.full((4, 1), 0.123)
    assert table.from_tensors(gap, rows=df)["a"].iloc[2] == round(
        table["a"].shift + 0.123 * table["a"].scale
    )
    assert table.from_tensors(gap, rows=df, whole=False)["a"].iloc[2] % 1 > 0
    small = pd.DataFrame({"a": pd.array([100, None], "Int8")})
    assert table.from_tensors(torch.full((2, 1), 1e3), rows=small)["a"].tolist() == [100, 127]


def test_the_likelihood_has_the_parts_of_the_columns():
    table = Table(everything())
    likelihood = table.likelihood()
    assert likelihood.data_shape((table.num_params,)) == (len(table),)
    values, mask = table.to_tensors(everything())
    likelihood.check_values(torch.nan_to_num(values), mask)


def test_a_table_is_what_it_was_after_json():
    table = Table(everything())
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table
    with pytest.raises(cc.ModelFormatError, match="description of a column"):
        Table.from_json([{"name": "a"}])
    with pytest.raises(cc.ModelFormatError, match="list of columns"):
        Table.from_json({"a": 1})  # pyright: ignore


def test_a_table_of_described_columns():
    table = Table.of([Column("a", "number", shift=10, scale=2), Column("b", "boolean")])
    done = table.from_tensors(torch.tensor([[1.0, 1.0]]))
    assert done.iloc[0].tolist() == [12.0, True]
    assert done["b"].dtype == bool


def test_a_million_rows():
    num = 10**6
    df = pd.DataFrame({"n": DRAWS.normal(size=num), "c": DRAWS.choice(["a", "b", "c"], num)})
    df.loc[::3, "c"] = None
    table = Table(df)
    values, mask = table.to_tensors(df)
    done = table.from_tensors(torch.nan_to_num(values), rows=df)
    assert int(mask[:, 1].sum()) == int(df["c"].notna().sum())
    assert done["n"].equals(df["n"])


# ---- bad input -----------------------------------------------------------------------------------


def refuses(message: str, *words: str, error: type[Exception] = ValueError):
    return pytest.raises(error, match=".*".join(map(re.escape, (message, *words))))


@pytest.mark.parametrize(
    ("df", "words"),
    [
        (pd.DataFrame(), ["at least one row and column"]),
        (pd.DataFrame({"a": []}), ["at least one row and column"]),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["two called 'a'"]),
        (pd.DataFrame({"a": [None, np.nan]}), ["column 'a'", "got none"]),
        (pd.DataFrame({"a": [1.0, np.inf]}), ["column 'a'", "1 infinite"]),
        (pd.DataFrame({"a": [1j, 2.0]}), ["column 'a'", "complex"]),
        (
            pd.DataFrame({"a": pd.period_range("2020", periods=3, freq="D")}),
            ["column 'a'", "period"],
        ),
        (pd.DataFrame({"a": pd.cut([1, 2, 3], 2)}), ["column 'a'", ".astype(str)"]),
        (pd.DataFrame({"a": [[1], [2]]}), ["column 'a'", "unhashable"]),
        (
            pd.DataFrame({"a": [f"name {i}" for i in range(99)]}),
            ["column 'a'", "99 different texts"],
        ),
        (pd.DataFrame({("a", 1): [1, 2]}), ["column names that are text"]),
        (pd.DataFrame({"a": [pd.Timestamp("2020"), None]}, dtype=object), ["'a'", "to_datetime"]),
        (pd.DataFrame({"a": [pd.Timestamp("2020").date()]}), ["column 'a'", "pd.to_datetime"]),
        (pd.DataFrame({"a": [10**400, 1]}), ["column 'a'", "…: int too large"]),
    ],
)
def test_tables_that_cannot_be_learned(df, words):
    with refuses(*words):
        Table(df)


def test_what_is_no_data_frame():
    with refuses("pandas DataFrame, got ndarray", error=TypeError):
        Table(np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"b": "number"}, ["column in kinds among a, t", "'b'"]),
        ({"a": "numbr"}, ["column 'a'", "did you mean 'number'"]),
        ({"a": "count"}, ["column 'a'", "whole numbers from 0", "-1.5"]),
        ({"a": "positive"}, ["column 'a'", "numbers > 0"]),
        ({"a": "boolean"}, ["column 'a'", "0 and 1"]),
        ({"a": "date"}, ["column 'a'", "pd.to_datetime"]),
        ({"t": "ordinal"}, ["column 't'", "ordered"]),
        ({"t": "number"}, ["column 't'", "pd.to_numeric"]),
    ],
)
def test_kinds_that_do_not_suit(kinds, words):
    with refuses(*words):
        Table(pd.DataFrame({"a": [-1.5, 2.0], "t": ["x", "1"]}), kinds=kinds)


TABLE = Table(
    pd.DataFrame(
        {
            "n": [-1.5, 2.5, 3.0],
            "p": [1.0, 2.0, 3.0],
            "k": [0, 3, 2],
            "c": ["a", "b", "a"],
            "o": pd.Categorical(["s", "m", "s"], ["s", "m"], ordered=True),
            "b": [True, False, True],
            "d": pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"]),
            "z": pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"], utc=True),
        }
    ),
    kinds={"p": "positive"},
)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"nn": [1.0]}, ["column 'nn'", "drop or rename it", "did you mean 'n'"]),
        ({"n": ["1.5"]}, ["column 'n'", "got string", "pd.to_numeric"]),
        ({"n": [-np.inf]}, ["column 'n'", "infinite"]),
        ({"n": [1e300]}, ["column 'n'", "float32"]),
        ({"n": pd.to_datetime(["2020-01-01"])}, ["column 'n'", "datetime64"]),
        ({"p": [0.0]}, ["column 'p'", "numbers > 0"]),
        ({"k": [-1]}, ["column 'k'", "whole numbers from 0"]),
        ({"k": [1.5]}, ["column 'k'", "1.5"]),
        ({"c": ["d"]}, ["column 'c'", "'a', 'b'", "'d'", "never seen"]),
        ({"c": [1]}, ["column 'c'", "1"]),
        ({"c": ["x" * 9999]}, ["column 'c'", "xxx…, which"]),
        ({"c": pd.Categorical(["d"])}, ["column 'c'", "'d'"]),
        ({"c": [["a"]]}, ["column 'c'"]),
        ({"o": ["l"]}, ["column 'o'", "'l'"]),
        ({"b": [2]}, ["column 'b'", "2"]),
        ({"d": ["2020-01-01"]}, ["column 'd'", "pd.to_datetime"]),
        ({"d": pd.to_datetime(["2020-01-01"], utc=True)}, ["column 'd'", "without a time zone"]),
        ({"z": pd.to_datetime(["2020-01-01"])}, ["column 'z'", "with a time zone"]),
    ],
)
def test_cells_that_do_not_suit(cells, words):
    with refuses(*words):
        TABLE.to_tensors(pd.DataFrame(cells))


def test_other_dtypes_of_the_same_values():
    same = {
        "n": pd.array([2], "Int64"),
        "p": [True],
        "k": [3.0],
        "c": pd.Categorical(["b"], ["z", "b"]),
        "o": ["m"],
        "b": [1.0],
    }
    _, mask = TABLE.to_tensors(pd.DataFrame(same))
    assert mask.tolist() == [[True] * 6 + [False] * 2]
    values = TABLE.to_tensors(pd.DataFrame(same))[0][0, 2:6]
    assert values.tolist() == [3.0, 1.0, 1.0, 1.0]


def test_sparse_columns():
    df = pd.DataFrame({"a": pd.arrays.SparseArray([1.5, np.nan, 2.0]), "b": [1.0, 2.0, np.nan]})
    df["k"] = pd.arrays.SparseArray([0, 0, 7])
    table = Table(df)
    assert [column.dtype for column in table.columns] == ["float64", "float64", "int64"]
    values, mask = table.to_tensors(df)
    assert mask[:, 0].tolist() == [True, False, True]
    done = table.from_tensors(torch.where(mask, values, 0.0), rows=df)
    assert done.dtypes.to_dict() == df.dtypes.to_dict()
    assert done["a"].tolist() == [1.5, 1.75, 2.0]
    assert done["k"].tolist() == [0, 0, 7]
    assert table.from_tensors(torch.where(mask, values, 0.0))["k"].tolist() == [0, 0, 7]


@pytest.mark.parametrize(
    "cells",
    [[1e300] * 3, [1e308, -1e308, 1.5e308], [1e308, 1e-300, 1.0], [5e-324, 0.0, 1e-323]],
)
@pytest.mark.filterwarnings("error")
def test_sums_and_squares_of_the_largest_numbers_do_not_overflow(cells):
    table = Table(pd.DataFrame({"a": cells}), kinds={"a": "number"})
    assert Table(pd.DataFrame({"a": cells}))["a"].scale > 0
    values = table.to_tensors(pd.DataFrame({"a": cells}))[0]
    assert values.isfinite().all()
    assert values.abs().max() < 2


def test_the_largest_counts_are_refused_by_name():
    df = pd.DataFrame({"k": [1, 2, 1e300]})
    with refuses("column 'k'", "float32"):
        Table(df).to_tensors(df)


def test_cells_of_arrow():
    pytest.importorskip("pyarrow")
    dtypes = {"n": "double", "k": "int64", "c": "string", "b": "bool"}
    dtypes |= {"d": "timestamp[us]", "z": "timestamp[us, tz=UTC]"}
    df = everything()[["float", "count", "text", "boolean", "date", "aware"]].set_axis(
        list(dtypes), axis=1
    )
    df = df.astype({name: f"{dtype}[pyarrow]" for name, dtype in dtypes.items()})
    table = Table(df)
    assert [c.kind for c in table.columns] == [
        "number",
        "count",
        "class",
        "boolean",
        "date",
        "date",
    ]
    values, mask = table.to_tensors(df)
    done = table.from_tensors(torch.where(mask, values, 1.0), rows=df)
    assert done.dtypes.to_dict() == df.dtypes.to_dict()
    assert not done.isna().any(axis=None)
    for name in df.columns:
        seen = df[name].notna().to_numpy()
        assert done[name][seen].tolist() == df[name][seen].tolist(), name
    assert (
        table.from_tensors(torch.where(mask, values, 1.0)).dtypes.to_dict() == df.dtypes.to_dict()
    )


def test_a_single_category_is_the_only_one_that_is_filled_in():
    table = Table(pd.DataFrame({"c": ["a", None, "a"]}))
    assert table.from_tensors(torch.tensor([[0.0], [1.0]]))["c"].tolist() == ["a", "a"]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (lambda: Column("a", "class"), ["column 'a'", "expected categories"]),
        (lambda: Column("a", "class", ("x", "x")), ["column 'a'", "distinct"]),
        (lambda: Column("a", "boolean", (1,)), ["column 'a'", "two categories"]),
        (lambda: Column("a", "number", ("x",)), ["column 'a'", "no categories"]),
        (lambda: Column("a", "number", scale=0.0), ["column 'a'", "scale > 0"]),
        (lambda: Column("a", "count", shift=1.0), ["column 'a'", "no shift"]),
        (lambda: Column("a", "number", step=-1.0), ["column 'a'", "step > 0"]),
        (lambda: Column(1.5, "number"), ["column names"]),  # pyright: ignore
        (lambda: Table.of([]), ["at least one column"]),
        (lambda: Table.of([Column("a", "number")] * 2), ["two called 'a'"]),
    ],
)
def test_columns_that_cannot_be(column, words):
    with refuses(*words):
        column()


def test_numbers_are_no_durations():
    table = Table(
        pd.DataFrame({"wait": pd.to_timedelta([1, 2, 5], unit="h"), "n": [1.5, 2.5, 4.0]})
    )
    with pytest.raises(ValueError, match=r"column 'wait': expected durations, as in timedelta64"):
        table.to_tensors(pd.DataFrame({"wait": [3600.0]}))
    with pytest.raises(ValueError, match="column 'n': expected numbers, as in float64, got a dura"):
        table.to_tensors(pd.DataFrame({"n": pd.to_timedelta([1], unit="h")}))
