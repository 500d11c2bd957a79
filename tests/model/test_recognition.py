"""The one rule by which a saved network is recognised."""

import math

import pytest
import torch

from crosscoding.model.recognition import TOLERANCE, same_output

SAVED = torch.tensor([[1.0, -2.0, math.nan], [4.0, math.inf, 0.0]])


def test_equal_outputs_are_recognised_with_nan_and_infinity():
    assert same_output(SAVED.clone(), SAVED)
    assert same_output(SAVED[:0], SAVED[:0])


@pytest.mark.parametrize(("share", "same"), [(0.9, True), (1.1, False)])
def test_a_number_may_differ_by_a_fraction_of_the_largest_in_its_column(share, same):
    here = SAVED.clone()
    here[0, 0] += share * TOLERANCE * 4.0
    assert same_output(here, SAVED) is same


def test_a_large_column_does_not_hide_differences_in_others():
    saved = torch.tensor([[1e6, 0.3, 0.2], [2e6, -0.4, 0.1]])
    here = saved.clone()
    here[1, 1] = 0.4
    assert not same_output(here, saved)


def test_the_tolerance_can_be_chosen():
    assert same_output(SAVED * 1.005, SAVED, 1e-2)
    assert not same_output(SAVED * 1.005, SAVED, 1e-3)


CHANGES = {
    "shape": SAVED[:1],
    "dtype": SAVED.double(),
    "NaN elsewhere": torch.where(SAVED == 1, math.nan, SAVED),
    "NaN filled": SAVED.nan_to_num(0.0, math.inf),
    "the other infinity": torch.where(math.inf == SAVED, -math.inf, SAVED),
}


@pytest.mark.parametrize("here", CHANGES.values(), ids=CHANGES)
def test_other_outputs_are_not_recognised(here):
    assert not same_output(here, SAVED)
