"""Sums that follow from others, and operators of single queries."""

import pytest
import torch
from partly_known import (
    DOUBLE,
    sums_problem,
)
from torch import nn

import crosscoding as cc
from crosscoding import likelihoods
from crosscoding.target.independent_sums import independent_sums


def test_sums_that_follow_from_others_change_nothing():
    problem = sums_problem()
    operator = torch.tensor([[0, 0, 2.0, 2, 2, 0], [1, 0, 1, 1, 1, 0]], dtype=DOUBLE)
    more = cc.Evidence.linear(operator, torch.tensor([[2.0, 2.0], [0.4, 0.7]], dtype=DOUBLE))
    found = cc.condition(problem.vae, problem.evidence & more, seed=0)
    torch.testing.assert_close(found.log_evidence, problem.log_evidence(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("change", "num_rows"), [(1e-2, 3), (1e-6, 3), (1e-12, 2), (0.0, 2)])
@pytest.mark.parametrize("num", [1, 2])
def test_sums_that_nearly_follow_from_others(change, num_rows, num):
    """What one row has beside the others is compared with its length, however it is found."""
    rows = torch.tensor([[1, 1, 0, 0.0], [0, 1, 1, 0], [1, 2, 1, change]], dtype=DOUBLE)
    values = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
    of_one = cc.Evidence.linear(rows.expand(num, 3, 4), values.expand(num, 3))
    found = independent_sums(of_one.flatten(1))
    assert (found.num_rows == num_rows).all()
    noisy = cc.Evidence.linear(rows, values, torch.tensor([0.0, 0.0, 0.1], dtype=DOUBLE))
    assert independent_sums(noisy.flatten(1)).num_rows.tolist() == [3]


def test_one_operator_per_query():
    problem = sums_problem()
    part = problem.evidence.sums[0]
    own = part.operator.expand(2, -1, -1).clone()
    own[1, 1] = 7.0  # of a row that the second query lacks
    given = problem.evidence
    other = cc.Evidence(given.values, given.mask, noise=given.uncertain.noise)
    other = other & cc.Evidence.linear(own, part.values, part.noise)
    found = cc.condition(problem.vae, other, seed=0).log_evidence
    torch.testing.assert_close(found, problem.log_evidence(), rtol=1e-9, atol=1e-9)


def test_sums_of_elements_that_are_all_known_change_nothing_or_only_by_their_noise():
    vae = cc.VAE(nn.Linear(2, 3), 2, likelihoods.Gaussian(0.5))
    values = cc.Evidence(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([True, True, False]))
    operator = torch.tensor([[1.0, 1.0, 0.0]])
    alone = cc.condition(vae, values, seed=0).log_evidence
    exact = values & cc.Evidence.linear(operator, torch.tensor([3.0]))
    assert torch.equal(cc.condition(vae, exact, seed=0).log_evidence, alone)
    noisy = values & cc.Evidence.linear(operator, torch.tensor([3.5]), 0.4)
    wanted = alone + torch.distributions.Normal(3.0, 0.4).log_prob(torch.tensor(3.5))
    torch.testing.assert_close(cc.condition(vae, noisy, seed=0).log_evidence, wanted)
