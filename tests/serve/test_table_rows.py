"""Rows in JSON are the evidence that `Table.query` makes, each row with its own cells."""

import pandas as pd
import pytest
import torch
from running_server import table

from crosscoding.columns import Table
from crosscoding.serve.table_rows import evidence_of_rows

TABLE = table().vae.table


def evidence(*rows):
    return evidence_of_rows(TABLE, rows, torch.float32)[0]


def same(found, wanted):
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.exact, wanted.exact)
    if wanted.uncertain is None:
        assert found.uncertain is None
        return
    for name in ("low", "high", "allowed"):
        one, other = getattr(found.uncertain, name), getattr(wanted.uncertain, name)
        assert (one is None and other is None) or torch.equal(one, other), name


def test_values_of_all_kinds():
    row = {"age": 40, "city": "Ulm", "children": 2, "grade": "mid", "owner": True}
    row["since"] = "2020-05-05"
    frame = pd.DataFrame([row | {"since": pd.Timestamp("2020-05-05")}])
    same(evidence(row), TABLE.evidence(frame))


@pytest.mark.parametrize(
    ("cell", "condition"),
    [
        ({"age": {"low": 30, "high": 40}}, {"age": (30, 40)}),
        ({"age": {"low": 30}}, {"age": (30, None)}),
        ({"children": {"low": 1, "high": None}}, {"children": (1, None)}),
        ({"grade": {"low": "mid"}}, {"grade": ("mid", None)}),
        ({"since": {"low": "2020-01-01"}}, {"since": ("2020-01-01", None)}),
        ({"city": {"one_of": ["Bonn", "Ulm"]}}, {"city": {"Bonn", "Ulm"}}),
        ({"owner": {"one_of": [True]}}, {"owner": {True}}),
        ({"children": {"one_of": [0, 2]}}, {"children": {0, 2}}),
    ],
)
def test_intervals_and_sets(cell, condition):
    same(evidence(cell), TABLE.query(condition))


def test_each_row_has_its_own_cells():
    rows = (
        {"age": {"low": 30}, "city": {"one_of": ["Bonn"]}},
        {"age": 50, "city": "Ulm"},
        {},
        {"children": {"one_of": [1, 4]}, "city": {"one_of": ["Kiel", "Ulm"]}},
    )
    together = evidence(*rows)
    for place, row in enumerate(rows):
        own = evidence(row)
        one = together[place : place + 1]
        assert torch.equal(one.mask, own.mask)
        assert torch.equal(one.values, own.values)
        if own.uncertain is not None:
            assert torch.equal(one.uncertain.low, own.uncertain.low)
            assert torch.equal(one.uncertain.has_set, own.uncertain.has_set)
            if own.uncertain.allowed is not None:
                num = own.uncertain.allowed.shape[-1]
                known = own.uncertain.has_set
                assert torch.equal(
                    one.uncertain.allowed[..., :num][known], own.uncertain.allowed[known]
                )
                assert not one.uncertain.allowed[..., num:][known].any()


def test_sets_of_large_counts_in_many_rows_are_refused():
    rows = [{"children": {"one_of": [9999]}}] * 1000
    with pytest.raises(ValueError, match="expected smaller counts in sets, or fewer rows"):
        evidence(*rows)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"agee": 1}, "expected a column among .*did you mean 'age'"),
        ({"age": "forty"}, "column 'age': expected a number, got 'forty'"),
        ({"age": True}, "column 'age': expected a number, got True"),
        ({"age": {"low": 40, "high": 30}}, "column 'age': expected an interval"),
        ({"age": {"lowest": 40}}, "column 'age': expected a value, null"),
        ({"age": [1]}, "column 'age': expected a value, null"),
        ({"age": {"one_of": [1.0]}}, "column 'age': expected a value or an interval.*got a set$"),
        ({"since": {"one_of": ["2020-01-01"]}}, "column 'since': expected a value or an interval"),
        ({"city": "Rome"}, "column 'city': expected a category among"),
        ({"city": {"one_of": ["Rome"]}}, "column 'city': expected a category among"),
        ({"city": {"one_of": []}}, "column 'city': .*at least one member"),
        ({"city": {"low": "Bonn"}}, "column 'city': expected a category or a set"),
        ({"children": 1.5}, "column 'children': expected counts"),
        ({"since": 3}, "column 'since': expected a date"),
        ({"since": "soon"}, "column 'since': expected a date such as 2020-12-31, got 'soon'$"),
        ({"since": {"low": "2020-13-01"}}, "expected a date such as 2020-12-31, got '2020-13-01'$"),
    ],
)
def test_errors_name_the_column(row, words):
    with pytest.raises(ValueError, match=words):
        evidence(row)


def test_errors_of_durations_and_of_dates_with_and_without_a_zone():
    rows = pd.DataFrame(
        {"wait": pd.to_timedelta([3, 9], "s"), "since": ["2020-01-01", "2021-02-02"]}
    )
    frame = rows.assign(since=pd.to_datetime(rows["since"]))
    own = Table(frame)
    ask = lambda *rows: evidence_of_rows(own, rows, torch.float32)[0]  # noqa: E731
    same(ask({"wait": 3}, {"wait": "9s"}), own.evidence(frame[["wait"]]))
    for rows, words in (
        (({"wait": "soon"},), "column 'wait': expected a duration in seconds, got 'soon'$"),
        (({"wait": 3}, {"wait": True}), "column 'wait': expected a duration in seconds, got True$"),
        (
            ({"since": "2020-01-01"}, {"since": "2020-01-01T00:00Z"}),
            "'since'.*Mixed timezones detected$",
        ),
        (({"since": "2020-01-01"}, {"since": ""}), "expected a date such as 2020-12-31, got ''$"),
    ):
        with pytest.raises(ValueError, match=words):
            ask(*rows)
