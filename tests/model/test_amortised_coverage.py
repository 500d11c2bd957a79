"""What twins say of queries: bounds, by share observed and by mask, and as JSON."""

import json

import pytest
import torch

from crosscoding.errors import ModelFormatError
from crosscoding.masks import halves, mixed, rectangles, shares
from crosscoding.masks.distributions import Given
from crosscoding.masks.files import from_json, to_json
from crosscoding.model.amortised_coverage import Coverage, CoveredShare
from crosscoding.model.amortised_record import Record


def coverage(masks=None) -> Coverage:
    parts = CoveredShare(0.0, 0.5, 300, 0, -9.0, -1.0), CoveredShare(0.75, 1.0, 200, 3, -20.0, -5.0)
    return Coverage(shares(0.0, 1.0) if masks is None else masks, parts)


def record(known: Coverage | None) -> Record:
    return Record("x", 1, 1.0, -1.0, 0.1, 0.0, (), known)


def test_the_bound_is_that_of_a_binomial_distribution():
    """At the bound, as few twins outside are seen in 5 % of cases."""
    assert CoveredShare(0, 1, 300, 0, 0, 0).lacking == pytest.approx(1 - 0.05 ** (1 / 300))
    bound = torch.tensor(CoveredShare(0, 1, 200, 3, 0, 0).lacking, dtype=torch.double)
    assert bound.item() == pytest.approx(0.0382, abs=2e-4)
    few = torch.arange(4).double()
    seen = torch.distributions.Binomial(200, bound).log_prob(few).exp().sum()
    assert seen.item() == pytest.approx(0.05, abs=1e-6)
    assert CoveredShare(0, 1, 4, 4, 0, 0).lacking == 1.0


def test_queries_get_what_is_said_of_their_share():
    known = coverage()
    mask = torch.arange(8) < torch.tensor([[1], [4], [6], [8]])
    said = known.of(mask)
    lacking = [known.shares[0].lacking, torch.nan, known.shares[1].lacking, known.shares[1].lacking]
    torch.testing.assert_close(said.lacking, torch.tensor(lacking).double(), equal_nan=True)
    like_twins = said.holds(torch.tensor([-9.0, -5.0, -21.0, -6.0]))
    assert like_twins.tolist() == [True, False, False, True]
    assert said.holds(torch.full((4,), torch.nan)).tolist() == [False] * 4


def test_nothing_is_said_of_masks_unlike_those_of_the_twins():
    known = coverage(Given(torch.arange(8)[None] < 4))
    mask = torch.stack([torch.arange(8) < 3, torch.arange(8) >= 5])
    assert known.of(mask).lacking.isnan().all()


OWN_MASKS = Given(torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.5)


@pytest.mark.parametrize("masks", [mixed(), shares(0.1, 0.3), rectangles(), halves(), OWN_MASKS])
def test_it_is_saved_as_json(masks):
    known = record(coverage(masks))
    again = Record.from_json(json.loads(json.dumps(known.to_json())))
    assert again.coverage.shares == known.coverage.shares
    assert repr(again.coverage.masks) == repr(masks)
    if masks is OWN_MASKS:
        assert torch.equal(again.coverage.masks.masks, masks.masks)


def test_parts_of_a_mixture_are_saved():
    masks = mixed()._of_shape((28, 28))
    assert from_json(json.loads(json.dumps(to_json(masks)))) == masks


def test_a_record_without_it_is_read():
    entry = record(None).to_json()
    del entry["coverage"]
    assert Record.from_json(entry).coverage is None


@pytest.mark.parametrize(
    "broken",
    [
        {"masks": {"kind": "Other"}},
        {"masks": {"kind": "Shares", "least": "a", "most": 1.0}},
        {"shares": [{"low": 0.0}]},
        {"shares": [{**vars(CoveredShare(0, 1, 2, 3, 0, 0))}]},
        {"shares": [{**vars(CoveredShare(0, 1, 2, 1, float("nan"), 0))}]},
    ],
)
def test_what_is_malformed_is_refused(broken):
    entry = record(coverage()).to_json()
    entry["coverage"] = {**entry["coverage"], **broken}
    with pytest.raises(ModelFormatError, match="expected a training record"):
        Record.from_json(entry)
