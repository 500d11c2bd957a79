"""Values of columns as text, and what is shown of tables and of evidence on them."""

import math
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

import crosscoding as cc
from crosscoding.columns import Column
from crosscoding.columns.words import in_words, zone_of

DAY = 86400.0
NOON = pd.Timestamp("2021-03-04 12:00").timestamp()
BERLIN = "datetime64[us, Europe/Berlin]"


@pytest.mark.parametrize(
    ("column", "value", "given", "text"),
    [
        (Column("n", "number", scale=2.0), 1.23456, False, "1.235"),
        (Column("n", "number"), 0.7000001, True, "0.7"),
        (Column("n", "number", step=0.5), 2.4999, True, "2.5"),
        (Column("n", "positive"), 374000.4, False, "374,000"),
        (Column("n", "count"), 1985.0, False, "1985"),
        (Column("n", "class", ("a", "b")), 1.0, False, "b"),
        (Column("n", "boolean"), 0.0, True, "False"),
        (Column("n", "number"), math.nan, False, "—"),
        (Column("n", "number", dtype="timedelta64[ns]"), 5400.0, False, "1.50 h"),
        (Column("n", "number", dtype="timedelta64[ns]"), -30.0, False, "−30 s"),
        (Column("n", "date", scale=DAY), NOON, False, "2021-03-04 12:00"),
        (Column("n", "date", scale=1000 * DAY), NOON + 60, False, "2021-03-05"),
        (Column("n", "date", scale=1000 * DAY), NOON - 60, False, "2021-03-04"),
        (
            Column("n", "date", scale=1000 * DAY, shift=NOON),
            NOON / 1e9 + NOON,
            True,
            "2021-03-04 12:00",
        ),
        (Column("n", "date", scale=1000 * DAY, shift=NOON), NOON + DAY / 2 - 9, True, "2021-03-05"),
        (Column("n", "date", dtype=BERLIN, scale=DAY), NOON, False, "2021-03-04 13:00"),
        (Column("n", "date"), 1e15, False, "1e+15 s"),
    ],
)
def test_a_value_has_the_users_units(column, value, given, text):
    assert in_words(column, value, given=given) == text


def test_an_unknown_time_zone_counts_as_utc():
    assert str(zone_of(Column("n", "date", dtype="datetime64[us, Nowhere/At]"))) == "UTC"
    assert str(zone_of(Column("n", "date", dtype=BERLIN))) == "Europe/Berlin"


def table() -> cc.tables.Table:
    columns = [Column("age", "number"), Column("city", "class", ("Bonn", "Ulm", "Rome"))]
    return cc.tables.Table.of([*columns, Column("n", "count")])


def printed(shown) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(shown)
    return console.file.getvalue()


def test_a_table_is_shown_column_by_column():
    for shown in (printed(table()), table()._repr_html_()):
        for word in ("Table of 3 columns", "age", "class", "Bonn, Ulm, Rome", "int64"):
            assert word in shown
    many = cc.tables.Table.of([Column(n, "number") for n in range(60)])
    assert "10 more" in printed(many)


def test_evidence_on_a_table_shows_what_is_known_of_each_cell():
    rows = pd.DataFrame({"age": [30.5, None], "city": ["Bonn", None]})
    evidence = table().query(rows=rows, n={2, 3})
    for shown in (printed(evidence), evidence._repr_html_()):
        for word in ("30.5", "Bonn", "—", "one of 2, 3", "in a set", "2 of 6 elements (33.3%)"):
            assert word in shown
    assert repr(evidence) == "Evidence(shape=(2, 3), 66.7% observed, 2 sets)"
    wide = table().query(age=(30, None), city={"Bonn"}, num=9)
    assert "≥ 30" in printed(wide)
    assert "4 more rows" in printed(wide)
    assert "20 to 30" in printed(table().query(age=(20, 30)))
    assert "≤ 30" in printed(table().query(age=(None, 30)))
    assert printed(table().query(num=0))
