"""Purposes: how many draws each needs, what is measured for it, and what speaks against all."""

import math
import pickle
import time
from dataclasses import replace

import pytest
import torch
from problems import linear_gaussian_problem, seeded

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.diagnostics import pareto_k_limit
from crosscoding.methods import HMC, Auto, Variational
from crosscoding.methods.numerics.resampling import systematic
from crosscoding.result.findings import Findings
from crosscoding.result.latent_share import LatentShares
from crosscoding.result.lazy_verdicts import Verdicts
from crosscoding.result.purposes import PURPOSES, draws_for_averages, draws_to_find
from crosscoding.result.verdict import Figures


def figures(num: int = 1, **changed) -> Figures:
    """Good answers, but for some figures."""
    good = {
        "log_evidence_error": 0.01,
        "ess": 3000.0,
        "pareto_k": 0.2,
        "r_hat": math.nan,
        "missed": 0.0,
        "num_draws": 4000.0,
    }
    filled = {name: torch.full((num,), value) for name, value in (good | changed).items()}
    return Figures(finished=torch.ones(num, dtype=torch.bool), **filled)


def purposes(**changed) -> dict[str, str]:
    return Verdicts(figures(**changed))[0].purposes


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("purpose", "trusted", "approximate", "unreliable"),
    [
        ("mean", [math.inf, 400.0], [399.0, 25.0], [24.0, 0.0, math.nan]),
        ("interval", [math.inf, 240.0], [239.0, 36.0], [35.0, 0.0, math.nan]),
        ("density", [math.inf, 600.0], [599.0, 50.0], [49.0, 0.0, math.nan]),
    ],
)
def test_each_purpose_has_its_number_of_draws(purpose, trusted, approximate, unreliable):
    for label, values in zip(
        ("trusted", "approximate", "unreliable"), (trusted, approximate, unreliable), strict=True
    ):
        assert [purposes(ess=ess)[purpose] for ess in values] == [label] * len(values)


@pytest.mark.parametrize("error", [0.3, 2.0, math.nan])
def test_the_error_of_log_evidence_counts_for_densities_only(error):
    found = purposes(log_evidence_error=error)
    assert found["mean"] == found["interval"] == "trusted"
    assert found["density"] != "trusted"


def test_of_a_computed_answer_the_error_of_log_evidence_is_all_that_is_known():
    found = purposes(ess=math.inf, log_evidence_error=0.15)
    assert found == dict.fromkeys(PURPOSES, "approximate")
    assert purposes(ess=math.inf, log_evidence_error=0.05)["mean"] == "trusted"


@pytest.mark.parametrize(
    "changed",
    [
        {"missed": 0.03},
        {"missed": math.nan},
        {"missed": 0.5},
        {"pareto_k": pareto_k_limit(4000) + 0.01},
        {"r_hat": 1.02},
        {"lost": 0.1},
        {"collapsed": 1.0},
        {"unsearchable": 1.0},
        {"short": 0.2},
        {"excess": 0.2},
    ],
    ids=str,
)
def test_every_other_fault_speaks_against_all_purposes(changed):
    assert "trusted" not in purposes(**changed).values()


def test_an_unfinished_answer_is_trusted_for_nothing():
    stopped = replace(figures(), finished=torch.tensor([False]))
    assert "trusted" not in Verdicts(stopped)[0].purposes.values()


def test_coverage_from_240_draws_is_within_its_standard_error():
    """The sd of the coverage of 90 % intervals, from 20,000 sets of draws, is below 2 points."""
    draws = torch.rand(20_000, 240, generator=seeded(0))
    low, high = draws.quantile(torch.tensor([0.05, 0.95]), dim=-1)
    assert 0.0185 < (high - low).std() < 0.02


@pytest.mark.parametrize("spread", [0.9, 1.5])
def test_resampling_adds_no_more_than_is_allowed_for(spread):
    """Averages of noise over 1,000 of 4,000 weighted draws, resampled as `Auto` stores them."""
    log_weights = spread * torch.randn(4000, 1500, generator=seeded(0))
    noise = torch.randn(4000, 1500, generator=seeded(1))
    weights = log_weights.softmax(0)
    offset = torch.rand(1500, generator=seeded(2))
    stored = noise.gather(0, systematic(log_weights, offset, 1000)).mean(0)
    ess = (1 / weights.square().sum(0)).mean()[None]
    full = (weights * noise).sum(0).var()
    allowed = 1 / draws_for_averages(ess, ess * 0, torch.tensor([1000.0])) - 1 / ess
    assert stored.var() < (full + allowed) * (1 + 3.5 * math.sqrt(2 / 1500))


def test_draws_to_find_are_enough():
    for purpose, needed in (("mean", 400.0), ("interval", 240.0)):
        ess = torch.tensor([draws_to_find(purpose, 1000)])
        assert draws_for_averages(ess, ess * 0, torch.tensor([1000.0])) > needed


# ---- the share of variance that comes from z -----------------------------------------------------


def weighed(problem, ess: float) -> cc.Posterior:
    """Exact draws, said to be worth `ess`."""
    mean, covariance = problem.exact_posterior()
    noise = torch.randn(200, *mean.shape, generator=seeded(3))
    draws = mean + torch.einsum("bij,sbj->sbi", torch.linalg.cholesky(covariance), noise)
    nothing = torch.zeros(len(mean))
    found = Findings(
        draws=draws,
        log_evidence=nothing,
        log_evidence_error=nothing,
        c_elbo=nothing * math.nan,
        c_elbo_error=nothing * math.nan,
        ess=nothing + ess,
        missed=nothing,
    )
    return cc.Posterior(
        found, target=problem.target, batch_shape=mean.shape[:1], method="", generator=seeded(0)
    )


def exact_share(problem) -> torch.Tensor:
    """The largest share of z in the variance of a missing element, (B,)."""
    _, variance = problem.exact_prediction()
    noise = problem.vae.likelihood.scale**2
    share = torch.where(problem.evidence.mask, 0.0, 1 - noise / variance)
    return share.amax(-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_measured_share_is_an_upper_one(scale):
    problem = linear_gaussian_problem(3, 12, scale, batch=6)
    wanted = torch.ones(6, dtype=torch.bool)
    posterior = weighed(problem, 200.0)
    shares = LatentShares(problem.target, posterior._findings, wanted)
    measured = torch.tensor([shares(query) for query in range(6)])
    exact = exact_share(problem)
    assert (measured > 0.9 * exact).all()  # 2 standard errors above; the worst element adds to it
    assert (measured < 2 * exact + 0.05).all()
    assert (measured <= 1).all()


def test_where_noise_dominates_fewer_draws_are_enough_for_means():
    noisy, clear = (linear_gaussian_problem(3, 12, scale, batch=4) for scale in (3.0, 0.1))
    clear = replace(clear, evidence=cc.Evidence(clear.truth, torch.arange(12) < 1))
    assert (exact_share(noisy) < 0.5).all()
    assert (exact_share(clear) > 0.9).all()
    for problem, label in ((noisy, "trusted"), (clear, "approximate")):
        found = [verdict.purposes["mean"] for verdict in weighed(problem, 300.0).verdicts]
        assert found == [label] * 4
    # Intervals rest on draws of the noise too.
    assert weighed(noisy, 200.0).verdicts[0].purposes["interval"] == "approximate"
    assert weighed(noisy, 45.0).verdicts[0].purposes["mean"] == "approximate"


def test_the_share_is_measured_only_where_it_matters(monkeypatch):
    asked = []

    def measured(self, rows):
        asked.append(rows)
        return [1.0] * len(rows)

    monkeypatch.setattr(LatentShares, "_measured", measured)
    problem = linear_gaussian_problem(3, 12, 3.0, batch=4)
    for ess in (3000.0, 400.0, 20.0):
        assert [verdict.purposes for verdict in weighed(problem, ess).verdicts]
    assert not asked
    verdicts = weighed(problem, 300.0).verdicts
    assert [verdict.label for verdict in verdicts]
    assert not asked  # labels need no decoding
    assert [verdict.purposes for verdict in verdicts]
    assert [len(rows) for rows in asked] == [4]


def test_a_bare_density_needs_the_upper_bound():
    target = cc.DensityTarget(lambda z: -0.5 * z.square().sum(-1), 2)
    posterior = cc.infer(target, HMC(4, 50, 100), seed=0)
    assert posterior.verdicts[0].purposes["mean"] == "approximate"


# ---- of methods ----------------------------------------------------------------------------------


def test_chains_are_trusted_for_means_only_if_something_has_searched():
    chains = {"log_evidence_error": math.nan, "pareto_k": math.nan, "r_hat": 1.0}
    assert purposes(**chains)["mean"] == purposes(**chains)["interval"] == "trusted"
    assert purposes(**chains)["density"] == "approximate"
    assert "trusted" not in purposes(**chains, missed=math.nan).values()


@pytest.mark.usefixtures("without_closed_form")
@pytest.mark.parametrize("purpose", ["mean", "interval"])
def test_auto_stops_when_a_purpose_is_settled(purpose):
    problem = linear_gaussian_problem(8, 20, 0.5, batch=6)
    asked = cc.condition(problem.vae, problem.evidence, Auto(purpose=purpose), seed=0)
    density = cc.condition(problem.vae, problem.evidence, Auto(), seed=0)
    assert [verdict.purposes[purpose] for verdict in asked.verdicts] == ["trusted"] * 6
    spent = [sum(stage.decodes for stage in each.trace) for each in (asked, density)]
    assert (spent[0] <= spent[1]).all()
    mean, variance = problem.exact_prediction()
    off = ((asked.mean() - mean) / variance.sqrt())[~problem.evidence.mask]
    assert off.abs().max() < 4 * 0.05  # the largest of some 60 means, at 5 % each


def test_an_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match=r"density, interval, mean, got 'means'.*'mean'"):
        Auto(purpose="means")
    with pytest.raises(ValueError, match="num_draws >= 400 for the purpose 'mean', got 399"):
        Auto(purpose="mean", num_draws=399)
    with pytest.raises(ValueError, match="expected a purpose among"):
        Verdicts(figures())[0].on("label")


# ---- lazy verdicts -------------------------------------------------------------------------------


def test_a_verdict_for_a_purpose_has_its_own_reasons_and_advice():
    (verdict,) = Verdicts(figures(log_evidence_error=0.3, ess=300.0), "HMC")
    mean = verdict.on("mean")
    assert (verdict.label, mean.label, verdict.on("interval").label) == (
        "approximate",
        "approximate",
        "trusted",
    )
    assert mean.reasons[0].startswith("means have a standard error of 0.058 standard deviations")
    assert not any("log p(x)" in reason for reason in mean.reasons)
    assert mean.advice
    assert verdict.on("interval").advice == ""
    assert verdict.on("density") == verdict


def test_verdicts_are_a_sequence():
    several = Verdicts(replace(figures(3), ess=torch.tensor([3000.0, 300.0, 10.0])), "Auto")
    assert [verdict.label for verdict in several] == ["trusted", "approximate", "unreliable"]
    assert several[-1] == several[2] == several[1:][1]
    assert several[:2] == [several[0], several[1]]
    assert several == list(several)
    assert several != several[:2]
    assert len({several[0], several[0], several[1]}) == 2
    assert "label='trusted'" in repr(several)
    with pytest.raises(IndexError):
        several[3]


def test_verdicts_are_pickled_with_what_was_measured():
    verdicts = weighed(linear_gaussian_problem(3, 12, 3.0, batch=4), 300.0).verdicts
    again, one = pickle.loads(pickle.dumps(verdicts)), pickle.loads(pickle.dumps(verdicts[2]))
    assert again == verdicts
    assert one == verdicts[2]
    assert len(pickle.dumps(verdicts[2])) < len(
        pickle.dumps(weighed(linear_gaussian_problem(3, 12, 3.0, batch=400), 300.0).verdicts)
    )


def test_labels_of_a_large_batch_are_found_together():
    """With a word for each answer it took seconds; the bound leaves room for a slow machine."""
    verdicts = Verdicts(figures(200_000, ess=300.0), "Auto")
    start = time.perf_counter()
    labels = [verdict.label for verdict in verdicts]
    assert labels.count("approximate") == 200_000
    assert time.perf_counter() - start < 2.0


def test_a_posterior_saved_before_there_were_twins_is_read(tmp_path):
    problem = linear_gaussian_problem(2, 6, 0.5, batch=2)
    posterior = cc.condition(
        problem.vae, problem.evidence, Variational(Gaussian(), steps=5), seed=0
    )
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert "twins" not in again.stats
    assert again.verdicts == posterior.verdicts
