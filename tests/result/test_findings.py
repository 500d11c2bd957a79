"""Findings: blocks of queries joined into one."""

from dataclasses import replace

import pytest
import torch

from crosscoding.result.findings import Findings


def block() -> Findings:
    """Two queries with four draws each."""
    figure = torch.zeros(2)
    return Findings(torch.zeros(4, 2, 3), figure, figure, figure, figure, figure)


@pytest.mark.parametrize("first", [True, False], ids=["in the first", "in the second"])
def test_losses_in_one_block_alone_are_kept(first):
    lossy = replace(block(), lost=torch.tensor([0.0, 1.0]), lost_element=torch.tensor([0.0, 7.0]))
    joined = Findings.joined([lossy, block()] if first else [block(), lossy])
    assert joined.lost is not None
    assert joined.lost_element is not None
    assert joined.lost.tolist() == ([0, 1, 0, 0] if first else [0, 0, 0, 1])
    assert joined.lost_element.tolist() == ([0, 7, 0, 0] if first else [0, 0, 0, 7])
