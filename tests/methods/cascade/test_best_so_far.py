"""Answers: the better one is kept, and one that another contradicts is doubted."""

import math

import pytest
import torch
from problems import linear_gaussian_problem

from crosscoding.methods.cascade.best_so_far import Answer, Answers
from crosscoding.result.verdict import LABELS

TRUSTED, UNRELIABLE = LABELS.index("trusted"), LABELS.index("unreliable")
ROWS = torch.arange(1)


def answers() -> Answers:
    return Answers(linear_gaussian_problem(2, data_dim=4, batch=(1,)).target.flatten(), 10, seed=0)


def answer(log_evidence: float, *, c_elbo: float = math.nan, sound: bool = False) -> Answer:
    """One of 4,000 draws; if not sound, of weights that say nothing."""

    def one(value: float) -> torch.Tensor:
        return torch.full((1,), value)

    return Answer(
        draws=torch.zeros(10, 1, 2) + log_evidence,
        log_weights=torch.zeros(10, 1),
        log_evidence=one(log_evidence),
        error=one(0.01 if sound else 1.0),
        c_elbo=one(c_elbo),
        c_elbo_error=one(0.1),
        ess=one(2000.0 if sound else 1.0),
        pareto_k=one(0.3 if sound else math.inf),
        missed=one(0.0 if sound else math.nan),
        weighed=one(4000.0),
    )


@pytest.mark.parametrize("fit_first", [True, False])
def test_of_two_that_are_no_good_the_one_above_the_others_bound_is_kept(fit_first):
    kept = answers()
    fit, bank = answer(-50.0, c_elbo=-60.0), answer(-100.0)
    for each in (fit, bank) if fit_first else (bank, fit):
        kept.keep(ROWS, each)
    assert kept.grade.tolist() == [UNRELIABLE]
    assert kept.log_evidence.tolist() == [-50.0]
    assert (kept.draws_of(ROWS) == -50.0).all()


def test_an_answer_below_a_bound_that_another_found_is_not_trusted():
    kept = answers()
    kept.keep(ROWS, answer(-10.0, sound=True))
    kept.compare()
    assert kept.grade.tolist() == [TRUSTED]
    kept.keep(ROWS, answer(-4.0, c_elbo=-9.0))  # its weights say nothing, its bound does
    kept.compare()
    assert kept.grade.tolist() != [TRUSTED]
    assert kept.missed > 0.3
