"""Budgets and interruptions: whatever was cut short, there is an answer that says so."""

from importlib import import_module

import pytest
import torch
from auto_answers import spent
from problems import blocks, linear_gaussian_problem, mirrored_vae
from torch import Tensor

import crosscoding as cc
from crosscoding.clock import UNLIMITED, Clock, OutOfTime
from crosscoding.crosscoders import Fitted, Gaussian
from crosscoding.methods import Auto
from crosscoding.methods.cascade.budget import Budget
from crosscoding.methods.cascade.cascade import STAGES
from crosscoding.methods.cascade.weighing import _weighted_draws
from crosscoding.methods.numerics.bridge import Bridge

FIGURES = ("log_evidence", "ess")

pytestmark = pytest.mark.usefixtures("without_closed_form")


def assert_usable(posterior: cc.Posterior) -> None:
    """Finite figures and draws, and whatever was cut is not trusted."""
    for name in FIGURES:
        assert getattr(posterior, name).isfinite().all(), name
    assert posterior.draws.isfinite().all()
    assert not (posterior.trusted & (posterior.stats["finished"] == 0)).any()


@pytest.fixture(scope="module")
def digits() -> cc.VAETarget:
    """Three queries of 20 dimensions: one that anneals, one that is refined, and one far away."""
    mask = torch.stack([cc.random_mask((28, 28), share, seed=1) for share in (0.02, 0.1, 0.5)])
    evidence = cc.Evidence(cc.zoo.digits()[0][:3], mask)
    return cc.VAETarget(cc.zoo.load("mnist-20d"), evidence)


def several() -> cc.VAETarget:
    """Two mirrored queries that take climbs and a swarm, and one that anneals."""
    vae = mirrored_vae(8, 16, 0.3, seed=2)
    evidence = cc.Evidence(vae.sample_prior(6, seed=102), cc.random_mask((16,), 0.7, seed=2))
    return cc.VAETarget(vae, evidence[[0, 3, 5]])


@pytest.mark.parametrize("query", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)], ids=str)
@pytest.mark.parametrize(
    "max_decodes", [1, 500, 9000, 10_000, 11_500, 12_000, 13_000, 14_500, 16_000, 20_000, 60_000]
)
@pytest.mark.slow
def test_every_budget_of_decodes_has_an_answer(digits, query, max_decodes):
    """Some of these budgets can afford a later stage but not an earlier one."""
    target = cc.VAETarget(digits.vae, digits.evidence[query])
    posterior = cc.infer(target, Auto(max_decodes=max_decodes), seed=0)
    assert_usable(posterior)
    assert (spent(posterior) <= max_decodes).all()


@pytest.mark.parametrize("max_decodes", [1, 6000, 9000, 12_000, 18_000, 40_000])
@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.slow
def test_every_budget_of_decodes_has_an_answer_for_a_bare_density(dim, max_decodes):
    posterior = cc.infer(blocks(dim), Auto(max_decodes=max_decodes), seed=0)
    assert_usable(posterior)
    assert (spent(posterior) <= max_decodes).all()


def without(monkeypatch: pytest.MonkeyPatch, cut: set[str], rows: slice = slice(None)) -> None:
    """Make some stages unaffordable for some of the queries that would run them."""
    planned = Budget.planned_decodes

    def expensive(budget: Budget, stage: str, distance: Tensor) -> Tensor:
        decodes = planned(budget, stage, distance)
        if stage in cut:
            decodes[rows] = torch.inf
        return decodes

    monkeypatch.setattr(Budget, "planned_decodes", expensive)


OPTIONAL = [stage.name for stage in STAGES if stage.name not in ("bank", "grid", "locate", "fit")]
EVERY_OTHER = slice(0, None, 2)


@pytest.mark.parametrize("stage", OPTIONAL)
@pytest.mark.parametrize("how", ["without it", "without it for some", "nothing else"])
@pytest.mark.slow
def test_no_stage_needs_another_to_have_run(stage, how, monkeypatch):
    monkeypatch.setattr("crosscoding.methods.cascade.stages.FEW_ROUNDS", (200, 300))
    cut = set(OPTIONAL) - {stage} if how == "nothing else" else {stage}
    without(monkeypatch, cut, EVERY_OTHER if how == "without it for some" else slice(None))
    posterior = cc.infer(several(), Auto(max_decodes=10**9), seed=2)
    assert_usable(posterior)


def test_where_a_grid_is_not_affordable_the_rest_stays_within_the_budget():
    """The distance from the prior is known even then; it used to be taken for 0."""
    problem = linear_gaussian_problem(2, data_dim=5, scale=0.003, batch=3)
    posterior = cc.condition(problem.vae, problem.evidence, Auto(max_decodes=2000), seed=0)
    assert [stage.name for stage in posterior.trace] == ["bank", "locate"]
    assert_usable(posterior)


def test_an_expensive_decoder_short_of_time_gets_a_fit(monkeypatch):
    """Draws in narrow directions would take all of the time, and leave no answer."""
    monkeypatch.setattr("crosscoding.methods.cascade.budget._EXPENSIVE", 0.0)
    monkeypatch.setattr("crosscoding.methods.cascade.budget._BRIDGE_SECONDS", 1e15)
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(torch.nn.Linear(40, 32), torch.nn.Tanh(), torch.nn.Linear(32, 6))
    vae = cc.VAE(decoder, 40, cc.likelihoods.Gaussian(0.01))
    evidence = cc.Evidence(vae.sample_prior(1, seed=0), torch.arange(6) < 1)
    answer = cc.condition(vae, evidence, Auto(max_seconds=20), seed=0)
    assert "narrow" not in [stage.name for stage in answer.trace]
    assert answer.c_elbo.isfinite()


def test_an_error_that_nobody_estimated_does_not_mean_impossible_evidence(digits):
    answer = cc.infer(digits, Auto(max_seconds=1e-6), seed=0)  # the first points of the bank
    reasons = " ".join(reason for verdict in answer.verdicts for reason in verdict.reasons)
    assert answer.log_evidence.isfinite().all()
    assert "log p(x|z) is -inf" not in reasons
    assert not answer.trusted.any()


@pytest.mark.parametrize("num_draws", [2, 50])
def test_few_draws_can_be_kept(digits, num_draws):
    """Fewer than there are particles."""
    posterior = cc.infer(digits, Auto(num_draws=num_draws, max_decodes=20_000), seed=0)
    assert posterior.draws.shape == (num_draws, 3, 20)
    assert_usable(posterior)


class Interrupting(torch.nn.Module):
    """A decoder that raises KeyboardInterrupt at the n-th call from now."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder, self.calls_left = decoder, None

    def forward(self, z: Tensor) -> Tensor:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise KeyboardInterrupt
        return self.decoder(z)


@pytest.mark.parametrize("calls", [1, 2, 5, 10, 20, 40, 80, 160, 320])
def test_ctrl_c_at_any_decode_leaves_an_answer(calls):
    target = several()
    vae = cc.VAE(Interrupting(target.vae.decoder), 8, target.vae.likelihood)
    cc.Bank.of(vae)
    vae.decoder.calls_left = calls
    posterior = cc.condition(vae, target.evidence, seed=2)
    assert not posterior.stats["finished"].all()
    assert_usable(posterior)


@pytest.mark.slow
def test_ctrl_c_in_a_later_block_keeps_what_the_blocks_before_it_found():
    target = several()
    vae = cc.VAE(Interrupting(target.vae.decoder), 8, cc.likelihoods.Gaussian(1.0))
    cc.Bank.of(vae)
    evidence = target.evidence[[0, 0]]
    size = {"max_bytes": Auto.points_at_once * 4 * (4 * 8 + 4) + target.query_bytes}
    whole = cc.condition(vae, evidence, seed=2, **size)
    count = []
    hook = vae.decoder.register_forward_hook(lambda *_: count.append(1))
    cc.condition(vae, evidence[:1], seed=2, **size)
    hook.remove()
    vae.decoder.calls_left = len(count) + 1  # the first of the second block
    posterior = cc.condition(vae, evidence, seed=2, **size)
    assert posterior.stats["finished"].tolist() == [1, 0]
    assert torch.equal(posterior.log_evidence[0], whole.log_evidence[0])
    assert_usable(posterior)


# ---- time --------------------------------------------------------------------------------------


class Slow(torch.nn.Module):
    """A decoder that takes a fixed time per point, by its own clock."""

    def __init__(self, decoder: torch.nn.Module, seconds: float) -> None:
        super().__init__()
        self.decoder, self.seconds, self.now = decoder, seconds, 0.0
        self.longest = 0.0

    def forward(self, z: Tensor) -> Tensor:
        took = self.seconds * len(z)
        self.now += took
        self.longest = max(self.longest, took)
        return self.decoder(z)


def slow_problem(latent: int, seconds: float, batch: int = 3) -> tuple[cc.VAE, cc.Evidence, Slow]:
    problem = linear_gaussian_problem(latent, data_dim=2 * latent, scale=0.1, batch=batch)
    slow = Slow(problem.vae.decoder, seconds)
    vae = cc.VAE(slow, latent, problem.vae.likelihood)
    return vae, problem.evidence, vae.decoder


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("max_seconds", [0.5, 30.0])
@pytest.mark.parametrize("latent", [2, 40])
@pytest.mark.slow
def test_runs_end_when_their_time_is_up(latent, max_seconds, seconds, monkeypatch):
    """On a clock that counts decodes, the overrun is at most a tenth and one decoded piece."""
    vae, evidence, slow = slow_problem(latent, seconds)
    monkeypatch.setattr("crosscoding.target.observed_likelihood._PIECE_BYTES", 2**14)  # some points
    monkeypatch.setattr("crosscoding.model.bank._CHUNK_BYTES", 2**16)
    slow.now = slow.longest = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    posterior = cc.condition(vae, evidence, Auto(max_seconds=max_seconds), seed=0)
    # Its cost is counted by a decode of one point.
    assert slow.now <= 1.1 * max_seconds + slow.longest + seconds
    assert_usable(posterior)


def test_a_bank_that_was_cut_short_is_completed_later_with_the_same_bits(monkeypatch):
    monkeypatch.setattr("crosscoding.model.bank._CHUNK_BYTES", 2**14)
    vae, evidence, slow = slow_problem(8, 1e-3)
    whole = cc.Bank.of(vae)
    again, _, slow = slow_problem(8, 1e-3)
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    cut = cc.condition(again, evidence, Auto(max_seconds=2.0), seed=0)
    assert (cut.stats["weighed"] < len(whole.points)).all()
    assert "bank" not in again.kept
    posterior = cc.condition(again, evidence, seed=0)
    assert torch.equal(cc.Bank.of(again).points, whole.points)
    assert torch.equal(posterior.draws, cc.condition(vae, evidence, seed=0).draws)


def test_some_of_many_queries_are_settled_when_time_is_up(monkeypatch):
    vae, evidence, slow = slow_problem(8, 1e-4, batch=24)
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    posterior = cc.condition(vae, evidence, Auto(max_seconds=12.0), seed=0)
    settled = posterior.stats["finished"] > 0
    assert 0 < settled.sum() < 24
    assert_usable(posterior)


def test_climbs_that_were_cut_short_are_not_trusted_even_if_time_is_left(monkeypatch):
    """They get a share of the time, so what they find may lack modes."""
    target = several()
    asked = iter([False, True])

    def cut(self, share=1.0):
        def stop() -> bool:
            self.has_cut = self.has_cut or next(asked, True)
            return self.has_cut

        return stop

    monkeypatch.setattr(Clock, "within", cut)
    posterior = cc.infer(target, Auto(max_seconds=600.0), seed=2)
    for stage in posterior.trace:
        if stage.name == "climb":
            assert (posterior.stats["finished"][stage.decodes > 0] == 0).all()
    assert_usable(posterior)


def slowed(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float) -> list[float]:
    """A clock that advances only in calls of the function with this name."""
    module, _, function = name.rpartition(".")
    whole, now = getattr(import_module(f"crosscoding.{module}"), function), [0.0]

    def slow(*args, **kwargs):
        now[0] += seconds
        return whole(*args, **kwargs)

    monkeypatch.setattr(f"crosscoding.{name}", slow)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "step",
    [
        "methods.numerics.covering_reference.weighted_covariance",  # at each step of a fit
        "methods.numerics.gauss_newton.precision_root",  # for each damping that a climb tries
        "methods.numerics.gauss_newton.positive",
    ],
)
@pytest.mark.slow
def test_long_steps_without_decodes_respect_the_time_limit(step, monkeypatch):
    now = slowed(monkeypatch, step, 1.0)
    posterior = cc.infer(blocks(6), Auto(max_seconds=10.0), seed=0)
    assert now[0] <= 11.0 + 1.0
    assert_usable(posterior)


@pytest.mark.slow
def test_a_density_is_differentiated_twice_column_by_column(monkeypatch):
    seconds, whole = [0.0], torch.autograd.grad

    def slow(*args, **kwargs):
        seconds[0] += 0.5
        return whole(*args, **kwargs)

    monkeypatch.setattr("torch.autograd.grad", slow)
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    posterior = cc.infer(blocks(8), Auto(max_seconds=10.0), seed=0)
    assert seconds[0] <= 11.0 + 0.5
    assert_usable(posterior)


def test_draws_of_an_expensive_proposal_end_in_time(monkeypatch):
    now = [0.0]

    class Slow(Fitted):
        def rsample_and_log_prob(self, num, *, generator):
            now[0] += 0.01 * num
            return super().rsample_and_log_prob(num, generator=generator)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    standard = Gaussian.from_precision(torch.zeros(1, 3), torch.eye(3).double()[None])
    slow = Slow(standard.crosscoder, standard.params, 3)
    target = cc.DensityTarget(lambda z: -z.square().sum(-1), 3).select(torch.tensor([0]))
    z, log_weights = _weighted_draws(target, slow, 4000, torch.Generator(), Clock(10.0))
    assert now[0] <= 10.0
    assert 600 <= len(z) == len(log_weights) <= 1000


def test_a_path_from_a_proposal_has_the_clock_of_its_target():
    target = several().flatten().timed(Clock(1e-9))
    fitted = Gaussian.from_precision(torch.zeros(3, 8), torch.eye(8).double().expand(3, 8, 8))
    with pytest.raises(OutOfTime):
        Bridge(target, fitted, 4, generator=torch.Generator())
    bridge = Bridge(several().flatten(), fitted, 4, generator=torch.Generator())
    assert bridge.clock is UNLIMITED
