"""Conditions on columns in the user's units, and DataFrames as evidence."""

import re
from datetime import date

import numpy as np
import pytest
import torch
from torch import nn

import crosscoding as cc
from crosscoding.tables import Column, Table

pd = pytest.importorskip("pandas")

TABLE = Table.of(
    [
        Column("n", "number", shift=40.0, scale=10.0, step=1.0),
        Column("p", "positive", scale=2.0),
        Column("k", "count"),
        Column("c", "class", ("a", "b", "c"), dtype="str"),
        Column("o", "ordinal", ("s", "m", "l")),
        Column("b", "boolean"),
        Column("d", "date", shift=0.0, scale=86400.0),
        Column("z", "date", scale=86400.0, dtype="datetime64[us, Europe/Berlin]"),
    ]
)
INF = float("inf")


def vae_of(table: Table, *, dtype: torch.dtype = torch.float32) -> cc.VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, table.num_params)).to(dtype)
    return cc.VAE(decoder, 2, table.likelihood(), table=table)


def bounds(name: str, condition: object) -> tuple[float, float]:
    known = TABLE.query({name: condition}).uncertain
    assert known is not None
    place = TABLE.names.index(name)
    others = torch.arange(len(TABLE)) != place
    assert (known.low[0, others] == -INF).all()
    assert (known.high[0, others] == INF).all()
    return float(known.low[0, place]), float(known.high[0, place])


@pytest.mark.parametrize(
    ("name", "condition", "expected"),
    [
        ("n", (30, 50), (-1.0, 1.0)),
        ("n", (None, 50), (-INF, 1.0)),
        ("n", (np.nan, np.inf), (-INF, INF)),
        ("p", (0, 4.0), (0.0, 2.0)),
        ("k", (2, None), (2.0, INF)),
        ("k", (1.5, 3.2), (1.5, 3.2)),
        ("o", ("m", "l"), (1.0, 2.0)),
        ("o", (None, "m"), (-INF, 1.0)),
        ("d", ("1970-01-02", "1970-01-04"), (1.0, 3.0)),
        ("d", (pd.Timestamp("1970-01-02"), None), (1.0, INF)),
        ("z", ("1970-01-02 01:00", None), (1.0, INF)),
    ],
)
def test_intervals_are_in_the_columns_units(name, condition, expected):
    if expected == (-INF, INF):
        assert not TABLE.query({name: condition}).mask.any()
        return
    assert bounds(name, condition) == pytest.approx(expected)


def test_sets_are_of_categories():
    evidence = TABLE.query(c={"a", "c"}, k={0, 3}, num=2)
    assert evidence.uncertain is not None
    allowed = evidence.uncertain.allowed
    assert allowed is not None
    assert allowed[:, 3].tolist() == [[True, False, True, False]] * 2
    assert allowed[:, 2].tolist() == [[True, False, False, True]] * 2
    assert evidence.mask.sum(1).tolist() == [2, 2]


def test_values_are_exact():
    evidence = TABLE.query(n=45, c="b", b=True, d="1970-01-03")
    assert evidence.exact.nonzero()[:, 1].tolist() == [0, 3, 5, 6]
    assert evidence.values[0, [0, 3, 5, 6]].tolist() == [0.5, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "bound", "value"),
    [("n", 45, 0.5), ("p", 4.0, 2.0), ("d", "1970-01-03", 2.0), ("d", date(1970, 1, 3), 2.0)],
)
def test_an_interval_of_one_number_is_that_value(name, bound, value):
    for query in (TABLE.query({name: (bound, bound)}), TABLE.query({name: bound})):
        place = TABLE.names.index(name)
        assert query.exact.nonzero().tolist() == [[0, place]]
        assert query.values[0, place] == value
    counts = TABLE.query(k=(2, 2), o=("m", "m"))
    assert counts.mask.sum() == 2
    assert not counts.exact.any()
    assert TABLE.query(n=(45, 45 + 1e-9)).exact.any()  # the same number in single precision


def test_some_rows_may_have_intervals_of_one_number():
    posterior = cc.condition(
        vae_of(TABLE),
        TABLE.query(n=(np.array([45.0, 30.0]), np.array([45.0, 50.0])), num=2),
        seed=0,
    )
    drawn = posterior.frame("draw", seed=0)
    assert drawn["n"].dtype == "float64"
    assert drawn["n"][0] == 45
    assert 30 <= drawn["n"][1] <= 50


def test_values_take_the_dtypes_of_their_columns():
    conditions = {"n": np.int32(45), "k": 2.0, "c": "b", "b": 1, "d": date(1970, 1, 3)}
    found = TABLE.query(conditions).frame
    assert {name: str(found[name].dtype) for name in conditions} == {
        name: TABLE[name].dtype for name in conditions
    }
    assert found["b"].tolist() == [True]
    inexact = Table.of([Column("i", "number", dtype="int64")]).query(i=2.5)
    assert inexact.frame["i"].tolist() == [2.5]


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, pd.NaT, (None, None)])
def test_a_missing_value_is_no_condition(nothing):
    vae = vae_of(Table.of([Column("i", "number", dtype="int64"), Column("c", "class", ("a", "b"))]))
    assert not vae.table.query(i=nothing).mask.any()
    free, drawn = vae.sample(3, seed=0), vae.sample(3, {"i": nothing}, seed=0)
    pd.testing.assert_frame_equal(free, drawn)


def test_messages_about_elements_name_the_column():
    low = torch.full((1, len(TABLE)), -INF)
    low[0, 1] = 1.0
    same = cc.Evidence.interval(low, torch.where(low == 1, low, INF))
    with pytest.raises(ValueError, match="no value between 1 and 1 for column 'p' of query 0"):
        cc.condition(vae_of(TABLE), same, seed=0)


def test_each_row_may_have_its_own_bounds_and_values():
    evidence = TABLE.query(n=(np.array([30.0, np.nan]), 50), c=pd.Series(["a", "b"]), num=2)
    assert evidence.uncertain is not None
    assert evidence.uncertain.low[:, 0].tolist() == [-1.0, -INF]
    assert evidence.values[:, 3].tolist() == [0.0, 1.0]


def test_conditions_join_the_cells_of_rows():
    rows = pd.DataFrame({"k": [1.0, None], "n": [45, 46]}, index=[5, 6])
    evidence = TABLE.query(rows=rows, k=1, c={"a"})
    assert evidence.frame.index.tolist() == [5, 6]
    assert evidence.frame["k"].tolist() == [1, 1]
    assert evidence.mask.sum(1).tolist() == [3, 3]
    assert rows["k"].isna().sum() == 1  # the caller's rows stay as they were


def test_the_answers_are_within_the_conditions_and_in_units():
    vae = vae_of(TABLE)
    query = TABLE.query(n=(30, 33), p=(3, 4), c={"b", "c"}, o=("m", "l"), k=(2, 3), num=50)
    posterior = cc.condition(vae, query, seed=0)
    rows = posterior.frame("draw", seed=0)
    assert rows["n"].between(30, 33).all()
    assert rows["n"].nunique() == 4
    assert rows["p"].between(3, 4).all()
    assert set(rows["c"]) == {"b", "c"}
    assert set(rows["o"]) == {"m", "l"}
    assert set(rows["k"]) == {2, 3}


def test_a_frame_is_evidence_in_the_models_dtype():
    rows = pd.DataFrame({"n": [45.0, None], "c": [None, "b"]})
    for dtype in (torch.float32, torch.double):
        vae = vae_of(TABLE, dtype=dtype)
        by_frame = cc.condition(vae, rows, seed=0)
        by_query = cc.condition(vae, TABLE.query(rows=rows), seed=0)
        own = cc.condition(vae, cc.Evidence(*TABLE.to_tensors(rows, dtype=dtype)), seed=0)
        for other in (by_query, own):
            assert torch.equal(by_frame.draws, other.draws)
    wide = TABLE.query(n=(30.1, 41)).to(torch.double, torch.device("cpu"))
    assert wide.uncertain is not None
    assert wide.uncertain.low[0, 0] == (30.1 - 40) / 10  # not rounded to single precision before


@pytest.mark.slow
def test_check_calibrate_and_query_log_prob_take_frames():
    table = Table.of([Column("a", "number", shift=3.0, scale=2.0), Column("b", "number")])
    likelihood = cc.likelihoods.Gaussian(0.5)
    vae = cc.VAE(nn.Linear(1, 2), 1, likelihood, table=table)
    data = vae.sample_prior(60, seed=0)
    df = table.from_tensors(data)
    again = table.complete_tensor(df)
    assert vae.check(df)["data"].message == vae.check(again)["data"].message
    assert cc.calibrate_scale(vae, df) == cc.calibrate_scale(vae, again)
    posterior = cc.condition(vae, df[["a"]].head(3), seed=0)
    torch.testing.assert_close(
        cc.query_log_prob(posterior, df.head(3), seed=0).log_prob,
        cc.query_log_prob(posterior, again[:3], seed=0).log_prob,
    )


def test_truth_with_gaps_is_refused_by_the_name_of_the_column():
    vae = vae_of(TABLE)
    rows = TABLE.from_tensors(vae.sample_prior(2, seed=0))
    posterior = cc.condition(vae, rows[["n", "c"]], seed=0)
    alone = posterior.query_log_prob(rows)
    torch.testing.assert_close(alone, posterior.query_log_prob(TABLE.complete_tensor(rows)))
    rows["p"] = rows["p"].where([True, False])
    for call in (
        lambda: cc.query_log_prob(posterior, rows, seed=0),
        lambda: posterior.query_log_prob(rows),
        lambda: posterior.query_ess(rows),
    ):
        with pytest.raises(
            cc.NonFiniteError, match="got NaN or infinity for column 'p' of query 1; leave out"
        ):
            call()


@pytest.mark.parametrize(
    ("what", "setting"),
    [
        ("mean", {"level": 0.5}),
        ("mode", {"num": 10}),
        ("draw", {"q": 0.5}),
        ("quantile", {"level": 0.5}),
        ("interval", {"q": 0.5}),
        ("probabilities", {"num": 10}),
    ],
)
def test_a_frame_refuses_settings_that_it_would_ignore(what, setting):
    posterior = cc.condition(vae_of(TABLE), pd.DataFrame({"n": [45.0]}), seed=0)
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"expected {name} only with .*, got {name}={value} with"):
        posterior.frame(what, **setting)
    with pytest.raises(ValueError, match=r"expected a frame among .* did you mean 'mean'"):
        posterior.frame("means")


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"x": 1}, ["column among", "'x'"]),
        ({"n": (50, 30)}, ["column 'n'", "low <= high", "50 to 30"]),
        ({"n": (1, 2, 3)}, ["column 'n'", "(low, high)"]),
        ({"n": {1, 2}}, ["column 'n'", "tuple (low, high)"]),
        ({"n": ("a", "b")}, ["column 'n'", "numbers"]),
        ({"n": [30, 50]}, ["column 'n'", "got a list"]),
        ({"n": np.array([1.0, 2.0, 3.0])}, ["column 'n'", "each of 1 rows"]),
        ({"p": (-3, 0)}, ["column 'p'", "possible value"]),
        ({"k": (-5, -1)}, ["column 'k'", "possible value"]),
        ({"k": (1.2, 1.8)}, ["column 'k'", "possible value"]),
        ({"k": {-1}}, ["column 'k'", "whole numbers"]),
        ({"c": ("a", "b")}, ["column 'c'", "no order"]),
        ({"b": (False, True)}, ["column 'b'", "no order"]),
        ({"c": {"d"}}, ["column 'c'", "'d'", "never seen"]),
        ({"c": set()}, ["column 'c'", "at least one category"]),
        ({"o": ("m", "xl")}, ["column 'o'", "'xl'"]),
        ({"c": "d"}, ["column 'c'", "'d'"]),
        ({"z": (pd.Timestamp("2020-01-01"), None)}, ["column 'z'", "time zone"]),
        ({"n": (INF, None)}, ["column 'n'", "possible value", "inf to None"]),
        ({"n": (None, -INF)}, ["column 'n'", "possible value", "None to -inf"]),
        ({"n": pd.Timestamp("2020-01-01")}, ["column 'n'", "numbers", "kind 'date'"]),
        ({"n": pd.Timedelta("1h")}, ["column 'n'", "as in float64", "a duration"]),
        ({"d": "soon"}, ["column 'd'", "a date", "'soon'"]),
        ({"z": "2020-03-29 02:30"}, ["column 'z'", "a date", "nonexistent"]),
        ({"z": ("2020-10-25 02:30", None)}, ["column 'z'", "a date", "dst time"]),
        ({"d": ("soon", None)}, ["column 'd'", "a date", "'soon'"]),
        ({"c": {None, "a"}}, ["column 'c'", "without missing values"]),
        ({"k": {10**9}}, ["column 'k'", "up to 10,000", "interval"]),
    ],
)
def test_conditions_that_cannot_be(condition, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        TABLE.query(condition)


def test_conditions_that_contradict_cells():
    rows = pd.DataFrame({"n": [45.0], "c": ["a"], "o": ["s"], "d": [pd.Timestamp("1970-01-02")]})
    for condition, cell in (
        ({"n": 46}, "45.0"),
        ({"n": (50, 60)}, "45.0"),
        ({"n": (46, 46)}, "45.0"),
        ({"c": {"b"}}, "'a'"),
        ({"c": "b"}, "'a'"),
        ({"o": ("m", None)}, "'s'"),
        ({"d": ("1970-01-03", None)}, "1970-01-02"),
    ):
        ((name, says),) = condition.items()
        words = f"column '{name}'.*agree.*got {cell}.* in row 0 where it says {says!r}"
        with pytest.raises(ValueError, match=words.translate({40: r"\(", 41: r"\)"})):
            TABLE.query(condition, rows=rows)
    with pytest.raises(ValueError, match="num to be left out with 1 rows, got 2"):
        TABLE.query(rows=rows, num=2)


def test_messages_show_the_bounds_of_the_row_and_not_all():
    low, high = pd.Series([1.0, 50.0, 2.0]), np.array([3, 40, 4])
    days = pd.to_datetime(pd.Series(["2020-01-01", "2021-05-06", "2020-01-01"]))
    rows = pd.DataFrame({"n": [2.0, 7.0, 3.0]})
    for condition, rest, words in (
        ({"n": (low, high)}, {"num": 3}, "got 50.0 to 40 in row 1"),
        ({"n": (low, 40)}, {"num": 3}, "got 50.0 to 40 in row 1"),
        ({"d": (days, "2020-02-02")}, {"num": 3}, "got 2021-05-06 to '2020-02-02' in row 1"),
        ({"n": (None, pd.Series([9, 6, 9]))}, {"rows": rows}, r"says \(None, 6\)$"),
        ({"n": np.array([2.0, 8.0, 3.0])}, {"rows": rows}, r"got 7.0 in row 1 where it says 8.0$"),
        ({"c": (pd.Series(["a"] * 3), None)}, {"num": 3}, r"got an interval \(low, high\)$"),
        ({"n": (low, high, low)}, {"num": 3}, "got one of length 3$"),
    ):
        with pytest.raises(ValueError, match=words):
            TABLE.query(condition, **rest)


def test_models_without_a_table_refuse_frames():
    vae = cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.1))
    rows = pd.DataFrame({"n": [1.0]})
    for call in (lambda: cc.condition(vae, rows), lambda: vae.check(rows)):
        with pytest.raises(TypeError, match=r"without a table, got a DataFrame .*table="):
            call()
    with pytest.raises(ValueError, match="model with a table"):
        cc.condition(vae, cc.Evidence.from_nan(torch.full((3,), torch.nan)), seed=0).frame()
    with pytest.raises(ValueError, match=r"one column for each element .*\(3,\), got 8 columns"):
        cc.VAE(nn.Linear(2, 3), 2, cc.likelihoods.Gaussian(0.1), table=TABLE)
    with pytest.raises(TypeError, match="expected a crosscoding"):
        cc.VAE(nn.Linear(2, 1), 2, cc.likelihoods.Gaussian(0.1), table=rows)  # pyright: ignore


def test_missing_cells_are_refused_where_data_must_be_complete():
    vae = vae_of(TABLE)
    with pytest.raises(ValueError, match=r"column 'p'.*missing value in row 0.*dropna"):
        vae.check(pd.DataFrame({"n": [1.0]}))


def test_no_rows_are_no_queries():
    posterior = cc.condition(vae_of(TABLE), pd.DataFrame({"n": np.zeros(0)}), seed=0)
    for what in ("mean", "mode", "draw", "quantile"):
        assert posterior.frame(what, seed=0).shape == (0, len(TABLE))
    assert posterior.frame("interval", seed=0).shape == (0, 2 * len(TABLE))
    assert posterior.frame("probabilities").shape == (0, 3 + 3 + 2)


def test_a_frame_has_one_quantile():
    posterior = cc.condition(vae_of(TABLE), pd.DataFrame({"n": [45.0]}), seed=0)
    with pytest.raises(ValueError, match=r"one number q .* got \[0.1, 0.9\]"):
        posterior.frame("quantile", q=[0.1, 0.9])  # pyright: ignore


def test_the_table_is_saved_with_the_model(tmp_path):
    vae = vae_of(TABLE)
    vae.save(tmp_path / "model")
    assert cc.load_vae(tmp_path / "model").table == TABLE
    posterior = cc.condition(vae, pd.DataFrame({"n": [45.5, 1 / 3]}), seed=0)
    posterior.save(tmp_path / "posterior")
    loaded = cc.Posterior.load(tmp_path / "posterior")
    rows = pd.DataFrame({"n": [45.5, 1 / 3]}, index=["x", "y"])
    assert loaded.frame("mean", rows=rows).index.tolist() == ["x", "y"]
    assert loaded.frame("mean", rows=rows)["n"].tolist() == [45.5, 1 / 3]
    with pytest.raises(ValueError, match="rows with other cells"):
        loaded.frame("mean", rows=rows + 1)


def test_the_table_is_saved_with_a_posterior_whose_decoder_is_not(tmp_path):
    class Own(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, z):
            return self.layers(z)

    decoder = Own(vae_of(TABLE).decoder)
    vae = cc.VAE(decoder, 2, TABLE.likelihood(), table=TABLE)
    posterior = cc.condition(vae, pd.DataFrame({"n": [45.0]}), seed=0)
    with pytest.warns(UserWarning, match="pass the model when loading"):
        posterior.save(tmp_path / "posterior")
    bare = cc.VAE(decoder, 2, TABLE.likelihood())
    loaded = cc.Posterior.load(tmp_path / "posterior", vae=bare)
    pd.testing.assert_frame_equal(loaded.frame("mean"), posterior.frame("mean"), check_exact=False)
    assert bare.table is None
