"""Auto on a batch: each entry as if alone, the same bits again, and a trace of what was done."""

import pytest
import torch
from auto_answers import assert_entries_are_those_alone, labels, several_stages, spent
from problems import linear_gaussian_problem

import crosscoding as cc
from crosscoding.methods import Auto
from crosscoding.methods.cascade import budget, cascade, climb_stages, stages

pytestmark = pytest.mark.usefixtures("without_closed_form")


def test_each_entry_of_a_batch_is_what_it_is_alone(staged):
    assert {"anneal", "climb", "swarm"} <= {stage.name for stage in staged.trace}
    assert_entries_are_those_alone(staged, seed=2)


def test_a_query_that_particles_do_not_reach_does_not_affect_others(monkeypatch):
    """The last lies far outside, and is not annealed to; nor do the bank's draws differ there."""
    monkeypatch.setattr(cascade, "GRID_DIM", 0)
    monkeypatch.setattr(cascade, "_MOST_OPERATIONS", 0.0)  # no swarm, which takes long
    monkeypatch.setattr(climb_stages.ClimbStages, "search", lambda *_: torch.zeros(1))
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.01, dtype=torch.double)
    values = problem.truth.clone()
    values[3] = 30.0
    target = cc.VAETarget(problem.vae, cc.Evidence(values, torch.tensor(True)))
    posterior = cc.infer(target, Auto(), seed=0)
    assert posterior.trusted.tolist() == [True, True, True, False]
    assert posterior.stats["finished"].tolist() == [1, 1, 1, 0]
    assert_entries_are_those_alone(posterior, seed=0)


@pytest.mark.slow
def test_the_size_of_a_swarm_does_not_depend_on_the_rest_of_the_batch(monkeypatch):
    """The number of particles follows the cost, and the queries' distances differ."""
    monkeypatch.setattr(stages, "FEW_ROUNDS", (100,))  # too few draws: all need the swarm
    monkeypatch.setattr(stages, "MORE_ROUNDS", (100,))
    target = several_stages()
    cost = (512 + 32 * 8) * 5 * 10 * target.operations
    monkeypatch.setattr(budget, "_SWARM_OPERATIONS", 2 * cost)
    posterior = cc.infer(target, Auto(), seed=2)
    swarm = next(stage for stage in posterior.trace if stage.name == "swarm")
    assert (swarm.decodes > 0).sum() >= 2
    assert_entries_are_those_alone(posterior, seed=2)


def test_the_same_seed_gives_the_same_bits(staged):
    again = cc.infer(several_stages(), Auto(), seed=2)
    assert torch.equal(again.draws, staged.draws)
    assert torch.equal(again.log_evidence, staged.log_evidence)
    assert again.verdicts == staged.verdicts


def test_the_trace_adds_up(staged):
    posterior = staged
    assert posterior.trace[0].name == "bank"
    assert (posterior.trace[0].decodes == 0).all()
    names = [stage.name for stage in posterior.trace]
    assert names == [stage.name for stage in cascade.STAGES if stage.name in names]
    seconds = sum(float(stage.seconds.sum()) for stage in posterior.trace)
    assert 0 < seconds <= posterior.seconds
    for stage in posterior.trace:
        assert stage.decodes.shape == stage.seconds.shape == (3,)
        assert ((stage.decodes > 0) <= (stage.seconds > 0)).all()


def test_every_decode_is_counted():
    """The trace counts the decodes that ran, except for checks of chosen sizes."""
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.3, batch=2)
    cc.Bank.of(problem.vae)
    counted = []
    problem.vae.decoder.register_forward_hook(lambda _, inputs, output: counted.append(len(output)))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    ratio = spent(posterior).sum().item() / sum(counted)
    assert 0.8 < ratio < 1.25  # climbs that fail a step, and where particles start


def test_a_saved_answer_keeps_its_verdicts_and_its_trace(tmp_path):
    problem = linear_gaussian_problem(8, data_dim=20, scale=0.1, batch=(2, 2))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert again.verdicts == posterior.verdicts
    assert torch.equal(again.trusted, posterior.trusted)
    assert [stage.name for stage in again.trace] == [stage.name for stage in posterior.trace]
    for one, other in zip(again.trace, posterior.trace, strict=True):
        assert torch.equal(one.decodes, other.decodes)
        assert torch.equal(one.seconds, other.seconds)
        assert one.decodes.shape == (2, 2)


def test_verdicts_are_flat_and_trusted_has_the_batchs_shape():
    problem = linear_gaussian_problem(2, data_dim=6, batch=(2, 3))
    posterior = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert posterior.trusted.shape == (2, 3)
    assert posterior.trusted.dtype == torch.bool
    assert len(posterior.verdicts) == 6
    assert [
        label == "trusted" for label in labels(posterior)
    ] == posterior.trusted.flatten().tolist()
    alone = cc.condition(problem.vae, problem.evidence[0, 0], Auto(), seed=0)
    assert alone.trusted.shape == ()
    assert len(alone.verdicts) == 1
