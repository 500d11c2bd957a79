"""Auto cut short by a budget, the clock or the user: an answer that says so."""

import time

import pytest
import torch
from auto_answers import labels, several_stages, spent
from problems import blocks, linear_gaussian_problem

import crosscoding as cc
from crosscoding.methods import Auto
from crosscoding.methods.cascade import climb_stages, stages

pytestmark = pytest.mark.usefixtures("without_closed_form")


# ---- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_decodes", [1, 500])
def test_a_budget_too_small_for_any_stage_leaves_the_banks_answer(max_decodes):
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.3, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_decodes=max_decodes), seed=0)
    assert spent(posterior).tolist() == [0, 0, 0]
    assert posterior.stats["finished"].tolist() == [0, 0, 0]
    assert not posterior.trusted.any()
    assert all("it was stopped before it was finished" in v.reasons for v in posterior.verdicts)
    assert posterior.log_evidence.isfinite().all()
    assert posterior.mean().isfinite().all()


@pytest.mark.parametrize("max_decodes", [1000, 9000, 20_000, 200_000])
@pytest.mark.slow
def test_decodes_stay_within_the_budget(max_decodes):
    posterior = cc.infer(blocks(16), Auto(max_decodes=max_decodes), seed=0)
    assert spent(posterior) <= max_decodes


def test_an_answer_cut_short_by_the_budget_is_not_trusted():
    for max_decodes in (1500, 9000):
        posterior = cc.infer(blocks(16), Auto(max_decodes=max_decodes), seed=0)
        assert posterior.stats["finished"] == 0
        assert not posterior.trusted
        assert posterior.log_evidence.isfinite()


# ---- time --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_stage_starts_after_the_time_is_up(monkeypatch):
    """A clock that stands still but in the first stage, which takes too long."""
    now, bank = [0.0], stages.Stages.bank

    def slow_bank(*arguments):
        result = bank(*arguments)
        now[0] += 5.0
        return result

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages.Stages, "bank", slow_bank)
    posterior = cc.infer(blocks(16), Auto(max_seconds=4.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank"]
    assert posterior.stats["finished"] == 0
    assert labels(posterior)[0] != "trusted"
    assert posterior.log_evidence.isfinite()


def test_without_any_time_there_is_an_answer_that_says_so():
    problem = linear_gaussian_problem(8, data_dim=20, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=1e-9), seed=0)
    assert labels(posterior) == ["unreliable"] * 3
    assert posterior.stats["finished"].tolist() == [0, 0, 0]
    assert posterior.sample(4).shape == (4, 3, 8)


def test_stages_that_can_end_at_any_time_end_when_time_is_up(monkeypatch):
    """A clock by which each decode takes a second; fits and climbs end within a few steps of it."""
    now = [0.0]
    problem = linear_gaussian_problem(24, data_dim=40, scale=0.02, batch=2)
    log_joint = cc.VAETarget.log_joint

    def slow(*arguments, **keywords):
        now[0] += 1.0
        return log_joint(*arguments, **keywords)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cc.VAETarget, "log_joint", slow)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=10.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "climb"]
    assert now[0] < 20
    assert posterior.log_evidence.isfinite().all()


def test_a_fit_in_very_many_dimensions_ends_when_time_is_up(monkeypatch):
    """A clock by which each evaluation and each product takes a second."""
    now = [0.0]
    problem = linear_gaussian_problem(600, data_dim=40, scale=0.5, batch=2)
    for name in ("log_joint", "curvature_along"):
        method = getattr(cc.VAETarget, name)

        def slow(*arguments, method=method, **keywords):
            now[0] += 1.0
            return method(*arguments, **keywords)

        monkeypatch.setattr(cc.VAETarget, name, slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_seconds=100.0), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "fit"]
    assert now[0] < 105
    # The Gaussian that had the prior's width would be thousands of nats below.
    assert (posterior.c_elbo > problem.exact_log_evidence() - 200).all()
    assert not posterior.trusted.any()


# ---- interruption ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "stage"),
    [(stages.Stages, "anneal"), (climb_stages.ClimbStages, "climb"), (stages.Stages, "swarm")],
)
def test_an_interrupted_stage_leaves_the_finished_answers(staged, where, stage, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stage, interrupted)
    posterior = cc.infer(several_stages(), Auto(), seed=2)
    assert posterior.trace[-1].name == stage
    finished = posterior.stats["finished"] > 0
    assert not finished.all()
    assert not (posterior.trusted & ~finished).any()
    assert posterior.log_evidence.isfinite().all()
    assert posterior.mean().isfinite().all()
    assert torch.equal(posterior.log_evidence[finished], staged.log_evidence[finished])


@pytest.mark.parametrize("work", ["climb", "_seek"])
def test_an_answer_whose_search_was_interrupted_is_not_trusted(work, monkeypatch):
    """Nor one whose climbs had not started, as those for another query were running."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    problem = linear_gaussian_problem(8, data_dim=20, scale=0.1, batch=3)
    whole = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    searched, climbed = (
        next(stage.decodes for stage in whole.trace if stage.name == name) > 0
        for name in ("modes", "climb")
    )
    assert searched.any()
    assert climbed.any()
    monkeypatch.setattr(climb_stages.ClimbStages, work, interrupted)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    cut = searched | climbed if work == "_seek" else climbed
    assert (posterior.stats["finished"][cut] == 0).all()
    assert not posterior.trusted[cut].any()
