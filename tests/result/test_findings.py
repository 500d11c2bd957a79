"""Findings: blocks of queries joined into one."""

from dataclasses import replace

import pytest
import torch

from crosscoding.result.findings import Findings
from crosscoding.result.joining import joined


def block() -> Findings:
    """Two queries with four draws each."""
    figure = torch.zeros(2)
    return Findings(torch.zeros(4, 2, 3), figure, figure, figure, figure, figure)


@pytest.mark.parametrize("first", [True, False], ids=["in the first", "in the second"])
def test_losses_in_a_single_block_are_kept(first):
    lossy = replace(block(), lost=torch.tensor([0.0, 1.0]), lost_element=torch.tensor([0.0, 7.0]))
    together = joined([lossy, block()] if first else [block(), lossy])
    assert together.lost is not None
    assert together.lost_element is not None
    assert together.lost.tolist() == ([0, 1, 0, 0] if first else [0, 0, 0, 1])
    assert together.lost_element.tolist() == ([0, 7, 0, 0] if first else [0, 0, 0, 7])


@pytest.mark.parametrize("first", [True, False], ids=["in the first", "in the second"])
def test_where_twins_vouch_in_a_single_block_is_kept(first):
    vouched = replace(block(), vouched=torch.tensor([False, True]))
    together = joined([vouched, block()] if first else [block(), vouched])
    assert together.vouched is not None
    assert together.vouched.tolist() == (
        [False, True, False, False] if first else [False, False, False, True]
    )


def test_blocks_with_fewer_unweighted_draws_are_not_padded_with_other_draws():
    figure = torch.zeros(1)
    few, many = (
        Findings(torch.full((num, 1, 2), float(num)), figure, figure, figure, figure, figure)
        for num in (3, 5)
    )
    drawn = joined([few, many]).sample(200, generator=torch.Generator().manual_seed(0))
    assert (drawn[:, 0] == 3).all()
    assert (drawn[:, 1] == 5).all()
