"""The rules that decide claims, on invented numbers for every outcome."""

import math

import numpy as np
import pytest

from crosscoding.experiments.claims.rules import AGREE, DIFFER, OPEN, alike, all_below, larger

SPREAD = np.array([-0.1, 0.0, 0.1] * 10)  # standard error 0.015


@pytest.mark.parametrize(("centre", "label"), [(0.2, AGREE), (-0.2, DIFFER), (0.01, OPEN)])
def test_larger_decides_by_two_standard_errors(centre, label):
    judgement = larger(SPREAD + centre, "nats")
    assert judgement.label == label
    assert "nats, n = 30" in judgement.measured
    assert larger(SPREAD + centre + 5, "nats", least=5).label == label


@pytest.mark.parametrize(("centre", "label"), [(0.05, AGREE), (-0.3, DIFFER), (0.1, OPEN)])
def test_alike_decides_by_a_margin(centre, label):
    assert alike(SPREAD + centre, "nats", within=0.1).label == label


@pytest.mark.parametrize(
    ("values", "label"),
    [([1.0, 2.0], AGREE), ([400.0, 500.0, 1.0], DIFFER), ([1.0, 2.0, 400.0], OPEN), ([], OPEN)],
)
def test_all_below_counts_values(values, label):
    assert all_below(values, "s", limit=300).label == label


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, 2.0]])
def test_too_few_repeats_decide_nothing(values):
    for judgement in (larger(values, "nats"), alike(values, "nats", within=1e9)):
        assert judgement.label == OPEN


def test_nan_is_left_out():
    assert larger([1.0, 1.0, 1.0, math.nan], "nats").measured.endswith("n = 3")
