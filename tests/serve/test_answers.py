"""Modes of many queries: sought one query after the other, as long as anybody waits."""

import math
from dataclasses import replace

import pytest
import torch
from problems import linear_gaussian_problem
from running_server import line

import crosscoding as cc
from crosscoding.methods import Auto
from crosscoding.serve import Limits, Served
from crosscoding.serve.answers import answers_of
from crosscoding.serve.jobs import AbandonedError, Job, Watch
from crosscoding.serve.questions import FOR_MODES, Question, Wanted, question_of

PROBLEM = linear_gaussian_problem()
METHOD = Auto(num_draws=50)


def asked(served, num, wanted=("modes",)):
    evidence = PROBLEM.evidence[:num]
    question = Question(served, evidence, METHOD, 0, Wanted(wanted))
    return question, cc.condition(served.vae, evidence, METHOD, seed=0)


def test_modes_of_a_batch_are_those_of_each_query_alone():
    question, posterior = asked(line(), 4)
    (together,) = answers_of(posterior, [question])
    for query, answer in enumerate(together):
        alone = Question(
            question.served, question.evidence[query : query + 1], METHOD, 0, question.wanted
        )
        own = cc.condition(alone.served.vae, alone.evidence, METHOD, seed=0)
        ((wanted,),) = answers_of(own, [alone])
        assert [mode["share"] for mode in answer["modes"]] == [m["share"] for m in wanted["modes"]]
        for mine, theirs in zip(answer["modes"], wanted["modes"], strict=True):
            assert mine["mean"] == pytest.approx(theirs["mean"], abs=1e-4)


class Counting(torch.nn.Module):
    """Means that are no linear function of z; counts the z that it decodes."""

    def __init__(self):
        super().__init__()
        self.linear, self.num = torch.nn.Linear(8, 8), 0

    def forward(self, z):
        self.num += z[..., 0].numel()
        return torch.sin(self.linear(z))


def test_each_query_is_decoded_once_and_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        served = Served("own", cc.VAE(Counting(), 8, cc.likelihoods.Gaussian(0.1)), "")
    question, posterior = asked(served, 4)
    counting = served.vae.own_decoder
    counts = []
    for wanted in ((), (), ("modes",)):  # verdicts decode too, the first time more
        counting.num = 0
        answers_of(posterior, [replace(question, wanted=Wanted(wanted))])
        counts.append(counting.num)
    assert counts[2] - counts[1] == 4 * FOR_MODES


def test_modes_end_when_nobody_waits_and_when_time_is_up():
    question, posterior = asked(line(), 4)
    job = Job(question)
    late = Watch([job], -1.0)
    (found,) = answers_of(posterior, [question], late)
    assert [bool(answer["modes"]) for answer in found] == [True, False, False, False]
    assert late.is_late
    in_time = Watch([job], math.inf)
    (found,) = answers_of(posterior, [question], in_time)
    assert all(answer["modes"] for answer in found)
    assert not in_time.is_late
    job.is_abandoned = True
    with pytest.raises(AbandonedError):
        answers_of(posterior, [question], in_time)


def test_draws_for_modes_count_in_the_limit():
    served, values = line(), {"values": [0.0] * 8}
    numbers = 2 * 8 + FOR_MODES * (8 + served.vae.latent_dim)
    fits = Limits(max_numbers=numbers + 4 * 8 + 50 * 8)
    question_of(served, values, METHOD, 0, Wanted(("modes",)), fits)
    with pytest.raises(ValueError, match="or no modes"):
        question_of(served, values, METHOD, 0, Wanted(("modes",)), Limits(max_numbers=numbers))
