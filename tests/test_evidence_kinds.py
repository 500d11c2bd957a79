"""Evidence that is not exact values: what can be said, combined and indexed; what is refused."""

import math

import numpy as np
import pytest
import torch
from partly_known import table_evidence, table_vae
from torch import nn

import crosscoding as cc
from crosscoding import likelihoods
from crosscoding.result.saved_evidence import evidence_from_parts, evidence_to_parts

INF, NAN = math.inf, math.nan
VALUES = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]])
ZERO, EACH = torch.zeros(3), torch.eye(2, dtype=torch.bool)
MASK = torch.tensor([[True, True, False], [True, False, True]])


def line(likelihood, size=3, params=1):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, size * params)

        def forward(self, z):
            output = self.linear(z)
            return output if params == 1 else output.unflatten(-1, (size, params))

    return cc.VAE(Decoder(), 2, likelihood)


# ---- what evidence says --------------------------------------------------------------------------


def test_values_with_noise_are_observed_but_not_exact():
    evidence = cc.Evidence(VALUES, MASK, noise=torch.tensor([0.0, 0.1, 0.1]))
    assert torch.equal(evidence.mask, MASK)
    assert torch.equal(evidence.exact, MASK & torch.tensor([True, False, False]))
    assert torch.equal(cc.Evidence(VALUES, MASK).exact, MASK)
    assert cc.Evidence(VALUES, MASK, noise=0).is_exact
    assert not cc.Evidence(VALUES, MASK, noise=np.float32(0.1)).is_exact
    assert cc.Evidence(VALUES, MASK, noise=np.full((3,), 0.1, "float32")).num_observed == 4


def test_missing_bounds_are_none():
    evidence = cc.Evidence.interval(torch.tensor([NAN, 1.0, -INF, NAN]), high=torch.tensor(2.0))
    assert evidence.mask.all()
    none = cc.Evidence.interval(torch.tensor([NAN, -INF]), torch.tensor([INF, NAN]))
    assert not none.mask.any()
    assert torch.equal(
        cc.Evidence.interval(high=torch.tensor([1.0, INF])).mask, torch.tensor([True, False])
    )


def test_a_set_of_all_classes_is_unobserved():
    allowed = torch.tensor([[True, True, True], [False, True, True]])
    assert torch.equal(cc.Evidence.one_of(allowed).mask, torch.tensor([False, True]))


def test_sums_say_nothing_of_single_elements():
    evidence = cc.Evidence.linear(torch.ones(2, 3), torch.ones(5, 2))
    assert evidence.values.shape == (5, 3)
    assert evidence.num_observed == 0
    assert "2 sums" in repr(evidence)


def test_parts_combine_in_any_order_and_are_indexed_together():
    interval = cc.Evidence.interval(torch.tensor([0.0, -INF, NAN]), torch.tensor([1.0, INF, 2.0]))
    values = cc.Evidence(VALUES, torch.tensor([False, True, False]))
    both = interval & values
    assert torch.equal(both.mask, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal((values & interval).exact, both.exact)
    sums = cc.Evidence.linear(torch.ones(1, 3), torch.tensor([4.0]))
    everything = cc.Evidence.all_of([interval, sums, values])
    assert everything[1].sums[0].values.shape == (1,)
    assert everything[torch.tensor([1, 1, 0])].values.shape == (3, 3)
    assert everything.flatten(1).sums[0].values.shape == (2, 1)


def test_values_settle_intervals_that_they_are_in():
    interval = cc.Evidence.interval(torch.zeros(2, 3), torch.full((2, 3), 5.0))
    both = interval & cc.Evidence(VALUES, MASK)
    assert torch.equal(both.uncertain.is_bounded, ~MASK)


def test_evidence_survives_being_taken_apart():
    evidence = table_evidence()
    again = evidence_from_parts(evidence_to_parts(evidence))
    vae = table_vae()
    z = torch.zeros(1, 2, 2)
    assert torch.equal(
        cc.VAETarget(vae, again).log_likelihood(z), cc.VAETarget(vae, evidence).log_likelihood(z)
    )


def test_sets_take_the_dtype_of_the_model():
    vae = cc.VAE(nn.Linear(2, 3).double(), 2, likelihoods.Bernoulli())
    allowed = torch.ones(3, 2, dtype=torch.bool)
    allowed[0, 0] = False
    posterior = cc.condition(vae, cc.Evidence.one_of(allowed), seed=0)
    assert posterior.predict(20, seed=0)[:, 0].min() == 1


def test_an_operator_that_could_be_read_in_two_ways_is_one_for_each_query():
    """(2, 2, 4): one for each of two queries over four elements, or one over pictures of 2 x 4."""
    operator, values = torch.ones(2, 2, 4), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    rows = cc.VAE(nn.Linear(2, 4), 2, likelihoods.Gaussian(0.5))
    pictures = cc.VAE(
        nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 4))), 2, likelihoods.Gaussian(0.5)
    )
    draws = cc.condition(rows, cc.Evidence.linear(operator, values), seed=0).predict(3, seed=0)
    torch.testing.assert_close(draws.sum(-1), values[:, 0].expand(3, 2), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expand it to one for each"):
        cc.condition(pictures, cc.Evidence.linear(operator, values), seed=0)
    evidence = cc.Evidence.linear(operator.expand(2, 2, 2, 4), values)
    draws = cc.condition(pictures, evidence, seed=0).predict(3, seed=0)
    torch.testing.assert_close(draws.sum((-1, -2)), values[:, 0].expand(3, 2), rtol=0, atol=1e-5)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cc.Evidence(VALUES, MASK, noise=-0.1), "expected noise >= 0"),
        (lambda: cc.Evidence(VALUES, MASK, noise=NAN), "expected noise >= 0"),
        (lambda: cc.Evidence(VALUES, MASK, noise=torch.ones(4)), "noise that broadcasts"),
        (lambda: cc.Evidence(VALUES, MASK, noise=torch.ones(3).double()), "noise of the values'"),
        (lambda: cc.Evidence(VALUES, MASK, noise="a"), "expected noise to be"),
        (lambda: cc.Evidence(VALUES, MASK, noise=True), "standard deviation, got True"),
        (lambda: cc.Evidence.interval(torch.tensor([2.0]), torch.tensor([1.0])), "2 to 1"),
        (lambda: cc.Evidence.interval(torch.tensor([INF])), "low <= high"),
        (lambda: cc.Evidence.interval(0.0, 1.0), "low or high as a tensor"),
        (lambda: cc.Evidence.interval(torch.tensor([1])), "floating-point"),
        (lambda: cc.Evidence.interval(torch.zeros(2), torch.ones(3)), "that broadcast"),
        (lambda: cc.Evidence.one_of(torch.zeros(3, 2, dtype=torch.bool)), "at least one class"),
        (lambda: cc.Evidence.one_of(torch.ones(3, 2)), "boolean tensor of allowed classes"),
        (lambda: cc.Evidence.one_of(torch.ones(3, dtype=torch.bool)), "K >= 2"),
        (lambda: cc.Evidence.linear(torch.ones(2, 3), torch.ones(3)), "operator of shape"),
        (lambda: cc.Evidence.linear(torch.ones(2, 3), torch.ones(2).double()), "one dtype"),
        (lambda: cc.Evidence.linear(torch.full((1, 3), NAN), torch.ones(1)), "finite coeff"),
        (lambda: cc.Evidence.linear(torch.ones(1, 3), torch.ones(1), -1.0), "expected noise >= 0"),
        (lambda: cc.Evidence.all_of([]), "expected evidence, got none"),
        (
            lambda: cc.Evidence(VALUES, MASK) & cc.Evidence(VALUES + 1, MASK),
            "at most one value for each element, got 1 and 2",
        ),
        (
            lambda: cc.Evidence(VALUES, MASK, noise=0.1) & cc.Evidence(VALUES, MASK, noise=0.1),
            "at most one value",
        ),
        (
            lambda: (
                cc.Evidence.interval(torch.zeros(2)) & cc.Evidence.interval(high=-torch.ones(2))
            ),
            "do not overlap",
        ),
        (
            lambda: (
                cc.Evidence.one_of(torch.eye(2).bool()) & cc.Evidence.one_of(~torch.eye(2).bool())
            ),
            "without a common class",
        ),
        (
            lambda: cc.Evidence.interval(high=torch.zeros(2, 3)) & cc.Evidence(VALUES, MASK),
            "a value outside the element's interval or set: 1",
        ),
        (
            lambda: cc.Evidence.interval(torch.zeros(4)) & cc.Evidence(VALUES, MASK),
            "evidence of the same shape",
        ),
        (
            lambda: cc.Evidence.interval(torch.zeros(3).double()) & cc.Evidence(VALUES, MASK),
            "evidence of one dtype",
        ),
    ],
)
def test_what_cannot_be_evidence(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


NO_CLASS_THREE = torch.tensor([True, True]).expand(3, 2)
ONE_CLASS = torch.tensor([True, False]).expand(3, 2)


@pytest.mark.parametrize(
    ("likelihood", "evidence", "message"),
    [
        (
            likelihoods.StudentT(),
            cc.Evidence(torch.zeros(3), torch.ones(3).bool(), noise=0.1),
            "expected exact values or intervals for StudentT, got values with noise for element 0",
        ),
        (likelihoods.Gaussian(), cc.Evidence.one_of(ONE_CLASS), "for Gaussian, got sets for"),
        (
            likelihoods.Gaussian(),
            cc.Evidence.interval(torch.ones(3), torch.ones(3)),
            "can agree with, got no value between 1 and 1 .* known exactly",
        ),
        (
            likelihoods.Poisson(),
            cc.Evidence.interval(torch.full((3,), 1.2), torch.full((3,), 1.7)),
            "that Poisson can agree with, got no value between 1.2 and 1.7",
        ),
        (
            likelihoods.ContinuousBernoulli(),
            cc.Evidence.interval(low=torch.full((3,), 1.5)),
            "that ContinuousBernoulli can agree with",
        ),
        (
            likelihoods.Bernoulli(),
            cc.Evidence.interval(low=torch.full((3,), 1.5)),
            "that Bernoulli can agree with",
        ),
        (
            likelihoods.Bernoulli(),
            cc.Evidence.linear(torch.ones(1, 3), torch.ones(1)),
            "sums of elements with a Gaussian likelihood",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.ones(1, 4), torch.ones(1)),
            r"evidence of shape \(\*batch, 3\), got \(4,\)",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.ones(2, 3), torch.tensor([1.0, 2.0])),
            "sums without noise that agree .* got 2 for row 1 of query 0, where the others imply 1",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.ones(1, 3), torch.ones(1))
            & cc.Evidence(torch.ones(3), torch.ones(3).bool()),
            "where the others imply -?",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.ones(1, 3), torch.ones(1))
            & cc.Evidence.interval(torch.zeros(3), torch.zeros(3)),
            "intervals with low < high for elements in sums, got low = high for",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.ones(1, 3), torch.full((1,), 9.0))
            & cc.Evidence.interval(torch.zeros(3), torch.ones(3)),
            "an interval for at most one of the elements in a query's sums, got 3",
        ),
        (
            likelihoods.Gaussian(),
            cc.Evidence.linear(torch.tensor([[1.0, 1, 0], [1, -1, 0]]), torch.tensor([1.0, 3]))
            & cc.Evidence.interval(torch.tensor([NAN, 0.0, NAN])),
            "got 0 to inf for an element of query 0 that the sums determine to be -1",
        ),
    ],
)
def test_what_a_model_has_no_use_for(likelihood, evidence, message):
    with pytest.raises(ValueError, match=message):
        cc.condition(line(likelihood), evidence, seed=0)


def test_sets_must_say_of_all_classes_whether_they_are_allowed():
    vae = line(likelihoods.Categorical(4), 3, 4)
    with pytest.raises(ValueError, match="whether each of 4 classes is allowed, got 2 classes"):
        cc.condition(vae, cc.Evidence.one_of(ONE_CLASS), seed=0)


def test_sets_without_a_class_of_the_element():
    vae = line(likelihoods.Bernoulli())
    allowed = torch.tensor([False, False, True]).expand(3, 3)
    with pytest.raises(ValueError, match="that Bernoulli can agree with"):
        cc.condition(vae, cc.Evidence.one_of(allowed), seed=0)


def test_a_contradiction_names_the_query():
    vae = line(likelihoods.Gaussian())
    values = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    with pytest.raises(ValueError, match="row 1 of query 1"):
        cc.condition(vae, cc.Evidence.linear(torch.ones(2, 3), values), seed=0)
