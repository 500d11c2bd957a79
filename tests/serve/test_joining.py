"""Evidence of several requests in a batch says of each what it said alone."""

import torch
from running_server import table

import crosscoding as cc
from crosscoding.serve.joining import joined
from crosscoding.serve.table_rows import evidence_of_rows

NAN = torch.nan


def same(one, other):
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.exact, other.exact)


def test_values_and_bounds():
    exact = cc.Evidence.from_nan(torch.tensor([[1.0, NAN], [NAN, 2.0]]))
    noisy = cc.Evidence.from_nan(torch.tensor([[3.0, NAN]]), noise=0.5)
    bounded = cc.Evidence.interval(low=torch.tensor([[NAN, 2.0]]))
    both = joined([exact, noisy, bounded])
    for own, part in ((exact, both[:2]), (noisy, both[2:3]), (bounded, both[3:])):
        same(part, own)
    assert both.uncertain.noise.tolist() == [[0, 0], [0, 0], [0.5, 0], [0, 0]]
    assert both.uncertain.low[3, 1] == 2


def test_sets_of_different_sizes():
    own = table().vae.table
    parts = [
        evidence_of_rows(own, rows, torch.float32)[0]
        for rows in (
            [{"city": {"one_of": ["Bonn"]}}],
            [{"children": {"one_of": [5]}}],
            [{"age": 40}],
        )
    ]
    both = joined(parts)
    for place, part in enumerate(parts):
        same(both[place : place + 1], part)
    assert both.uncertain.has_set.sum(1).tolist() == [1, 1, 0]
    city, children = own.names.index("city"), own.names.index("children")
    assert both.uncertain.allowed[0, city].tolist() == [True] + [False] * 5
    assert both.uncertain.allowed[1, children].tolist() == [False] * 5 + [True]


def test_covariates_are_joined_row_by_row():
    parts = [
        cc.Evidence.from_nan(torch.tensor([[float(n), NAN]]), given=torch.tensor([[float(n)]]))
        for n in range(3)
    ]
    assert joined(parts).given.tolist() == [[0], [1], [2]]
