"""The better offer is kept, and an answer that another contradicts is doubted."""

import math

import pytest
import torch
from problems import linear_gaussian_problem

from crosscoding.methods.cascade.best_so_far import BestSoFar
from crosscoding.result.findings import Findings
from crosscoding.result.verdict import LABELS

TRUSTED, UNRELIABLE = LABELS.index("trusted"), LABELS.index("unreliable")
ROWS = torch.arange(1)


def nothing_yet() -> BestSoFar:
    target = linear_gaussian_problem(2, data_dim=4, batch=(1,)).target.flatten()
    return BestSoFar(target, 10, seed=0)


def offer(log_evidence: float, *, c_elbo: float = math.nan, sound: bool = False) -> Findings:
    """An offer from 4,000 draws; unless it is sound, its weights mean nothing."""

    def one(value: float) -> torch.Tensor:
        return torch.full((1,), value)

    return Findings(
        draws=torch.zeros(10, 1, 2) + log_evidence,
        log_weights=torch.zeros(10, 1),
        log_evidence=one(log_evidence),
        log_evidence_error=one(0.01 if sound else 1.0),
        c_elbo=one(c_elbo),
        c_elbo_error=one(0.1),
        ess=one(2000.0 if sound else 1.0),
        pareto_k=one(0.3 if sound else math.inf),
        missed=one(0.0 if sound else math.nan),
        num_weighed=one(4000.0),
    )


@pytest.mark.parametrize("fit_first", [True, False])
def test_of_two_poor_offers_the_one_above_the_bound_is_kept(fit_first):
    kept = nothing_yet()
    fit, bank = offer(-50.0, c_elbo=-60.0), offer(-100.0)
    for each in (fit, bank) if fit_first else (bank, fit):
        kept.keep(ROWS, each)
    assert kept.grade.tolist() == [UNRELIABLE]
    assert kept.log_evidence.tolist() == [-50.0]
    assert (kept.draws_of(ROWS) == -50.0).all()


def test_an_answer_below_a_bound_that_another_found_is_not_trusted():
    kept = nothing_yet()
    kept.keep(ROWS, offer(-10.0, sound=True))
    kept.compare()
    assert kept.grade.tolist() == [TRUSTED]
    kept.keep(ROWS, offer(-4.0, c_elbo=-9.0))  # its weights mean nothing, its bound does
    kept.compare()
    assert kept.grade.tolist() != [TRUSTED]
    assert kept.missed > 0.3
