"""The queue: what is answered together, what is refused, and what nobody waits for any more."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from problems import linear_gaussian_problem
from running_server import line

import crosscoding as cc
from crosscoding.errors import BudgetError
from crosscoding.methods import Auto
from crosscoding.serve.catalogue import Served
from crosscoding.serve.engine import Engine
from crosscoding.serve.jobs import AbandonedError, BusyError, Job, UnpreparedError
from crosscoding.serve.limits import Limits
from crosscoding.serve.questions import Question, Wanted

PROBLEM = linear_gaussian_problem()


class Slow(torch.nn.Module):
    """A decoder without a closed form that takes its time, and waits while a gate is closed."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.delay = 0.0

    def forward(self, z):
        GATE.wait(20)
        time.sleep(self.delay)
        return torch.sin(self.linear(z))


GATE = threading.Event()
GATE.set()
TINY = Auto(max_decodes=50, num_draws=50)


def slow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Served("slow", cc.VAE(Slow(), 8, cc.likelihoods.Gaussian(0.1)), "")


def question(served, seed=0, query=0, method=TINY, **more):
    evidence = PROBLEM.evidence[query : query + 1]
    return Question(served, evidence, method, seed, Wanted(("mean",)), **more)


class Batches(list):
    """Notes the batches that an engine has done."""

    def __call__(self, done):
        self.append(done)


@pytest.fixture
def engine():
    done = Batches()
    made = Engine(Limits(max_waiting=6, max_per_client=4, max_seconds=20), done)
    made.batches = done
    made.start([line()])
    yield made
    GATE.set()
    made.close()


def while_busy(engine, jobs):
    """Submit jobs while the engine works on another one."""
    GATE.clear()
    first = Job(question(slow_model(), method=Auto(max_decodes=5, num_draws=2)), "first")
    engine.submit(first)
    while not engine._running:
        time.sleep(0.001)
    for job in jobs:
        engine.submit(job)
    return first


_KEPT = []


def slow_model():
    GATE.set()
    if not _KEPT:
        _KEPT.append(slow())
        cc.condition(_KEPT[0].vae, PROBLEM.evidence, TINY, seed=0)  # so that its bank is there
    GATE.clear()
    return _KEPT[0]


def test_questions_that_wait_with_the_same_settings_are_answered_in_one_call(engine):
    served = line()
    same = [Job(question(served, query=query), "a") for query in range(3)]
    other = Job(question(served, seed=1), "b")
    first = while_busy(engine, [*same[:2], other, same[2]])
    GATE.set()
    found = [job.result.result(20) for job in same]
    assert [answer["batched_with"] for answer in found] == [2, 2, 2]
    assert other.result.result(20)["batched_with"] == 0
    assert first.result.result(20)["batched_with"] == 0
    exact = PROBLEM.exact_log_evidence()
    for query, answer in enumerate(found):
        assert answer["answers"][0]["log_evidence"] == pytest.approx(float(exact[query]), abs=1e-3)


@pytest.mark.parametrize("method", [TINY, replace(TINY, max_seconds=5.0)])
def test_some_questions_are_answered_alone(engine, method):
    served = line()
    jobs = [Job(question(served, method=method, alone=method is TINY), "a") for _ in range(2)]
    while_busy(engine, jobs)
    GATE.set()
    assert [job.result.result(20)["batched_with"] for job in jobs] == [0, 0]


def test_one_bad_question_does_not_spoil_the_batch(engine, monkeypatch):
    served = line()
    good, bad = (Job(question(served, query=query), "a") for query in range(2))
    whole = cc.condition

    def fails(vae, evidence, *args, **more):
        if (evidence.values[:, None] == PROBLEM.evidence.values[1]).all(-1).any():
            raise RuntimeError("the second query fails")
        return whole(vae, evidence, *args, **more)

    monkeypatch.setattr("crosscoding.serve.engine.condition", fails)
    while_busy(engine, [good, bad])
    GATE.set()
    assert good.result.result(20)["answers"]
    with pytest.raises(RuntimeError, match="the second query fails"):
        bad.result.result(20)
    again = Job(question(served), "a")
    engine.submit(again)
    assert again.result.result(20)["answers"]


def test_first_answers_go_before_others(engine):
    served = line()
    later = Job(question(served), "a")
    urgent = Job(question(served, seed=1), "b", urgent=True)
    while_busy(engine, [later, urgent])
    GATE.set()
    later.result.result(20)
    order = [done.jobs[0] for done in engine.batches]
    assert order.index(urgent) < order.index(later) or urgent.result.done()
    assert order[1] is urgent


def test_too_many_questions_are_refused_with_a_time_to_come_back(engine):
    served = line()
    while_busy(engine, [Job(question(served, seed=n), "a") for n in range(4)])
    with pytest.raises(BusyError, match="your address has 4 requests") as refused:
        engine.submit(Job(question(served), "a"))
    assert (refused.value.status, refused.value.retry_after >= 1) == (429, True)
    engine.submit(Job(question(served), "b"), Job(question(served), "b"))
    with pytest.raises(BusyError, match="the queue is full, with 6 requests") as refused:
        engine.submit(Job(question(served), "c"))
    assert refused.value.status == 503


def test_abandoned_questions_leave_the_queue_and_stop_the_work(engine):
    waiting = Job(question(line()), "a")
    first = while_busy(engine, [waiting])
    engine.abandon(waiting)
    assert engine.num_waiting == 0
    with pytest.raises(AbandonedError):
        waiting.result.result(20)
    engine.abandon(first)
    GATE.set()
    with pytest.raises(AbandonedError):
        first.result.result(20)
    assert engine.batches[-1].outcome == "abandoned"
    engine.submit(Job(question(line()), "a"))


def test_a_batch_goes_on_while_anybody_waits(engine):
    served = line()
    jobs = [Job(question(served, query=query), "a") for query in range(2)]
    while_busy(engine, jobs)
    jobs[0].is_abandoned = True
    GATE.set()
    assert jobs[1].result.result(20)["answers"]


def test_at_the_time_limit_the_best_answer_so_far_is_given():
    done = Engine(Limits(max_seconds=0.3))
    served = slow()
    done.start([served])
    while not done.is_ready:
        time.sleep(0.01)
    served.vae.own_decoder.delay = 0.02
    job = Job(question(served, method=Auto()), "a")
    done.submit(job)
    found = job.result.result(60)
    done.close()
    assert found["stopped_early"]
    (answer,) = found["answers"]
    assert answer["verdict"]["label"] != "trusted"
    assert any("stopped before" in reason for reason in answer["verdict"]["reasons"])


def test_closing_abandons_what_waits(engine):
    job = Job(question(line()), "a")
    while_busy(engine, [job])
    GATE.set()
    engine.close()
    with pytest.raises(AbandonedError):
        job.result.result(20)
    with pytest.raises(BusyError, match="the server is stopping"):
        engine.submit(Job(question(line()), "a"))


def test_progress_is_told_to_all_who_wait(engine):
    told = []
    job = Job(question(line()), "a", report=lambda share, what: told.append(share))
    engine.submit(job)
    job.result.result(20)
    assert told[-1] == 1
    assert told == sorted(told)


@pytest.mark.parametrize("failure", [RuntimeError("no memory"), SystemExit("of a decoder")])
def test_a_model_that_cannot_be_prepared_fails_alone(monkeypatch, failure):
    good, bad = line(), Served("bad", slow().vae, "")

    def fails(served):
        if served is bad:
            raise failure

    monkeypatch.setattr("crosscoding.serve.engine._prepare", fails)
    made = Engine(Limits())
    made.start([bad, good])
    job = Job(question(good), "a")
    made.submit(job)
    assert job.result.result(20)["answers"]
    assert made.is_ready
    with pytest.raises(
        UnpreparedError, match=r"bad could not be prepared.*" + type(failure).__name__
    ):
        made.submit(Job(question(bad), "a"))
    assert made.is_alive
    made.close()
    assert not made.is_alive


def test_a_model_that_was_too_slow_to_prepare_is_still_asked(monkeypatch):
    def late(served):
        raise BudgetError("no answer was found within 2 seconds")

    monkeypatch.setattr("crosscoding.serve.engine._prepare", late)
    made = Engine(Limits())
    made.start([line()])
    job = Job(question(line()), "a")
    made.submit(job)
    assert job.result.result(20)["answers"]
    made.close()


def test_errors_of_the_metrics_and_of_a_cancelled_job_do_not_end_the_thread():
    def fails(done):
        raise RuntimeError("no metrics")

    made = Engine(Limits(), fails)
    cancelled, later = (Job(question(line(), query=query), "a") for query in range(2))
    cancelled.result.cancel()
    made.submit(cancelled)
    made.start([])
    made.submit(later)
    assert later.result.result(20)["answers"]
    again = Job(question(line()), "a")
    made.submit(again)
    assert again.result.result(20)["answers"]
    assert made.is_alive
    made.close()


@pytest.mark.parametrize("gives_an_answer", [True, False])
def test_questions_that_take_too_long_together_are_answered_one_by_one(
    monkeypatch, gives_an_answer
):
    whole = cc.condition

    def slow_together(vae, evidence, *args, report, **more):
        if len(evidence.values) > 1:
            try:
                while True:
                    report(0.5, "a step")
            except KeyboardInterrupt:
                if not gives_an_answer:
                    raise
        return whole(vae, evidence, *args, report=report, **more)

    monkeypatch.setattr("crosscoding.serve.engine.condition", slow_together)
    done, served = Batches(), line()
    made = Engine(Limits(max_seconds=0.2), done)
    jobs = [Job(question(served, query=query), "a") for query in range(3)]
    made.submit(*jobs)
    made.start([])
    for job in jobs:
        found = job.result.result(20)
        assert not found["stopped_early"]
        assert found["batched_with"] == 0
    made.close()
    assert [batch.outcome for batch in done] == ["divided"] + ["answered"] * 3
    assert not made._clients
    assert made.num_waiting == 0


def test_no_batch_has_more_numbers_than_one_request_may_have():
    served = line()
    jobs = [Job(question(served, query=query), "a") for query in range(3)]
    made = Engine(Limits(max_numbers=2 * jobs[0].question.num_numbers))
    made.submit(*jobs)
    made.start([])
    assert [job.result.result(20)["batched_with"] for job in jobs] == [1, 1, 0]
    made.close()
