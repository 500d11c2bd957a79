"""Verdicts: the grade of each figure at its limits, its reason and its advice."""

import math
from dataclasses import replace

import pytest
import torch
from problems import linear_gaussian_problem
from torch import nn

import crosscoding as cc
from crosscoding.crosscoders import Gaussian, Mixture, Planar
from crosscoding.diagnostics import pareto_k_limit
from crosscoding.methods import (
    HMC,
    Auto,
    Grid,
    Importance,
    Laplace,
    NaturalGradient,
    TemperedSMC,
    Variational,
)
from crosscoding.result.advice import IN_PYTHON
from crosscoding.result.lazy_verdicts import Verdicts
from crosscoding.result.verdict import LABELS, Figures

GOOD = {
    "log_evidence_error": 0.01,
    "ess": 3000.0,
    "pareto_k": 0.2,
    "r_hat": math.nan,
    "missed": 0.0,
    "finished": True,
    "num_draws": 4000.0,
}
LIMIT = pareto_k_limit(4000)


def figures(**changed) -> Figures:
    """One good answer with some figures changed."""
    together = GOOD | changed
    return Figures(
        **{
            name: torch.tensor([value], dtype=torch.bool if name == "finished" else torch.double)
            for name, value in together.items()
        }
    )


def label(**changed) -> str:
    (verdict,) = Verdicts(figures(**changed))
    assert LABELS[figures(**changed).grades] == verdict.label
    return verdict.label


def test_a_good_answer_is_trusted_and_says_why():
    (verdict,) = Verdicts(figures())
    assert verdict.label == "trusted"
    assert verdict.reasons == (
        "log p(x) has a standard error of 0.01 nats",
        "3000 effective draws",
        "the weights have a Pareto k of 0.20",
        "a search from the prior leaves 0.0% of p(z|x) unaccounted for",
    )


@pytest.mark.parametrize(
    ("name", "good", "rough", "bad"),
    [
        ("log_evidence_error", [0.0, 0.04], [0.0401, 0.5], [0.501, math.inf]),
        ("ess", [math.inf, 600.0], [599.9, 50.0], [49.9, 0.0, math.nan]),
        ("pareto_k", [-1.0, LIMIT], [], [LIMIT + 1e-3, 1.5, math.inf]),
        ("r_hat", [1.0, 1.01], [1.0101, 1.1], [1.101, math.inf]),
        ("missed", [0.0, 0.02], [0.0201, 0.1], [0.101, 1.0]),
        ("finished", [True], [False], []),
    ],
)
def test_each_check_has_its_limits(name, good, rough, bad):
    assert [label(**{name: value}) for value in good] == ["trusted"] * len(good)
    assert [label(**{name: value}) for value in rough] == ["approximate"] * len(rough)
    assert [label(**{name: value}) for value in bad] == ["unreliable"] * len(bad)


@pytest.mark.parametrize("name", ["log_evidence_error", "ess", "missed"])
def test_a_check_that_was_not_made_does_not_pass(name):
    assert label(**{name: math.nan}) != "trusted"


def test_pareto_k_and_r_hat_are_checked_only_for_weights_and_chains():
    assert label(pareto_k=math.nan, r_hat=math.nan) == "trusted"


@pytest.mark.parametrize("num_draws", [100.0, 1000.0, 16_000.0])
def test_the_limit_of_pareto_k_is_that_of_the_number_of_draws(num_draws):
    limit = pareto_k_limit(int(num_draws))
    ess = 0.9 * num_draws
    wanted = "trusted" if ess >= 600 else "approximate"
    assert label(pareto_k=limit - 1e-6, num_draws=num_draws, ess=ess) == wanted
    assert label(pareto_k=limit + 1e-6, num_draws=num_draws, ess=ess) == "unreliable"


def test_equal_weights_have_no_tail_to_fit():
    (verdict,) = Verdicts(figures(pareto_k=math.inf, ess=3900.0))
    assert verdict.label == "trusted"
    assert not any("inf" in reason for reason in verdict.reasons)
    assert label(pareto_k=math.inf, ess=3700.0) == "unreliable"


def test_a_verdict_on_no_draws_does_not_raise():
    """As when time was up before anything ran."""
    nothing = dict.fromkeys(("log_evidence_error", "ess", "pareto_k", "missed"), math.nan)
    (verdict,) = Verdicts(figures(**nothing, num_draws=0.0, finished=False))
    assert verdict.label == "unreliable"
    assert "it was stopped before it was finished" in verdict.reasons


def test_reasons_have_figures_and_the_worst_comes_first():
    (verdict,) = Verdicts(
        figures(
            log_evidence_error=0.2, ess=12.0, pareto_k=0.3, r_hat=1.04, missed=0.05, finished=False
        )
    )
    assert verdict.label == "unreliable"
    assert verdict.reasons == (
        "12 effective draws, fewer than 600",
        "it was stopped before it was finished",
        "log p(x) has a standard error of 0.2 nats, above 0.04",
        "the chains have an R-hat of 1.040, above 1.01",
        "a search from the prior leaves 5.0% of p(z|x) unaccounted for",
        "the weights have a Pareto k of 0.30",
    )


def test_missing_figures_are_mentioned_only_where_they_matter():
    (verdict,) = Verdicts(
        figures(log_evidence_error=math.nan, pareto_k=math.nan, r_hat=1.0, missed=math.nan)
    )
    assert verdict.label == "approximate"
    assert verdict.reasons == (
        "log p(x) is not estimated",
        "nothing has searched for modes that it may lack",
        "3000 effective draws",
        "the chains have an R-hat of 1.000",
    )


def test_each_query_has_a_verdict_of_its_own():
    several = Figures(
        log_evidence_error=torch.tensor([0.01, 0.1, 0.01]),
        ess=torch.tensor([3000.0, 3000.0, 10.0]),
        pareto_k=torch.tensor([0.2, 0.2, 0.2]),
        r_hat=torch.full((3,), math.nan),
        missed=torch.zeros(3),
        finished=torch.ones(3, dtype=torch.bool),
        num_draws=torch.tensor([4000.0, 4000.0, 1000.0]),
    )
    assert several.grades.tolist() == [0, 1, 2]
    assert [verdict.label for verdict in Verdicts(several)] == list(LABELS)


def test_an_empty_batch_has_no_verdicts():
    none = {name: torch.zeros(0) for name in GOOD} | {"finished": torch.zeros(0, dtype=torch.bool)}
    assert Verdicts(Figures(**none)) == []


# ---- of the methods ------------------------------------------------------------------------------


@pytest.mark.slow
def test_methods_that_do_not_search_are_not_trusted():
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0)
    for method in (Variational(steps=20), HMC(4, 20, 200, step_size=0.5)):
        posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
        assert not posterior.trusted.any()
        for verdict in posterior.verdicts:
            assert "nothing has searched for modes that it may lack" in verdict.reasons


def test_a_grid_is_trusted():
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0)
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    assert posterior.trusted.all()


# ---- the C-ELBO, collapsed weights, and what to do ----------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "rough", "bad"),
    [
        ("short", [math.nan, -1.0, 0.1], [0.11, 3.0], [3.1, 4e8, math.inf]),
        ("excess", [math.nan, -5.0, 0.1], [], [0.11, 2.0]),
    ],
)
def test_a_c_elbo_far_from_log_evidence_lowers_the_verdict(name, good, rough, bad):
    def graded(value):
        (verdict,) = Verdicts(
            replace(figures(), **{name: torch.tensor([value], dtype=torch.double)})
        )
        return verdict.label

    assert [graded(value) for value in good] == ["trusted"] * len(good)
    assert [graded(value) for value in rough] == ["approximate"] * len(rough)
    assert [graded(value) for value in bad] == ["unreliable"] * len(bad)


def test_collapsed_weights_are_reported():
    (verdict,) = Verdicts(replace(figures(), collapsed=torch.tensor([True])), "Auto")
    assert verdict.label == "unreliable"
    assert verdict.reasons[0].startswith("a few draws have almost all the importance weight")
    assert "HMC" in verdict.advice


def test_one_effective_draw_is_counted_in_the_singular():
    assert Verdicts(figures(ess=1.2))[0].reasons[0] == "1 effective draw, fewer than 600"


@pytest.mark.parametrize("method", ["Auto", "Variational"])
@pytest.mark.parametrize(
    "changed",
    [
        {"log_evidence_error": 0.2},
        {"log_evidence_error": math.nan},
        {"ess": 12.0},
        {"pareto_k": 0.9},
        {"r_hat": 1.2},
        {"missed": 0.3},
        {"missed": math.nan},
        {"finished": False},
    ],
    ids=str,
)
def test_whatever_is_not_trusted_comes_with_one_sentence_of_advice(changed, method):
    (verdict,) = Verdicts(figures(**changed), method)
    assert verdict.label != "trusted"
    assert len(verdict.advice.split()) > 3
    assert ". " not in verdict.advice
    assert not verdict.advice.endswith(".")


def test_advice_can_be_given_in_other_words():
    (verdict,) = Verdicts(figures(pareto_k=0.9), "Auto")
    assert verdict.advice.endswith("methods.HMC() or methods.TemperedSMC()")
    words = dict.fromkeys(IN_PYTHON, "") | {"hmc": "chains", "smc": "particles"}
    assert verdict.advice_in(words).endswith("chains or particles")


@pytest.mark.parametrize("method", ["Auto", "HMC", "TemperedSMC", "Grid", "Discrete"])
def test_advice_on_models_names_every_call_by_its_key(method):
    """Otherwise the command line would show calls of Python."""
    words = dict.fromkeys(IN_PYTHON, "something")
    changes = [*EFFORT, {"r_hat": 1.2}, {"finished": False}]
    faults = {"collapsed": torch.tensor([True]), "short": torch.tensor([9.0])}
    verdicts = [Verdicts(figures(**changed), method)[0] for changed in changes]
    verdicts += [Verdicts(replace(figures(), **{k: v}), method)[0] for k, v in faults.items()]
    for verdict in verdicts:
        advice = verdict.advice_in(words)
        assert advice
        assert "methods." not in advice
        assert "crosscoders." not in advice


EFFORT = [{"log_evidence_error": 0.2}, {"ess": 12.0}, {"pareto_k": 0.9}, {"missed": 0.3}]


@pytest.mark.parametrize("density_dim", [None, 2, 5])
@pytest.mark.parametrize("changed", EFFORT, ids=str)
def test_advice_does_not_lead_in_a_circle(changed, density_dim):
    """Advice leads from any method to Auto, and from there to methods that name no other."""
    names = {name: f"methods.{name}(" for name in ("Auto", "TemperedSMC", "Grid", "HMC")}

    def named(method):
        (verdict,) = Verdicts(figures(**changed), method, density_dim)
        return {name for name, word in names.items() if word in verdict.advice}

    assert "Auto" not in named("Auto")
    last = named("Auto") | {"TemperedSMC", "Grid"}
    assert not any("Auto" in named(method) for method in last - {"HMC"})


@pytest.mark.parametrize("changed", EFFORT, ids=str)
def test_advice_on_discrete_latents_names_no_method_that_refuses_them(changed):
    (verdict,) = Verdicts(figures(**changed), "Discrete")
    assert verdict.advice == "compare it with the answer by another seed, or observe more elements"


@pytest.mark.parametrize("method", ["Auto", "TemperedSMC"])
@pytest.mark.parametrize("changed", EFFORT, ids=str)
def test_advice_on_a_density_says_what_may_help(changed, method):
    (flat,) = Verdicts(figures(**changed), method, 2)
    assert "Grid(radius=100)" in flat.advice
    (high,) = Verdicts(figures(**changed), method, 5)
    assert "num_particles" in high.advice
    assert "prior_scale" in high.advice
    assert "coordinates" in high.advice


def test_advice_on_a_density_follows_from_what_was_asked():
    target = cc.DensityTarget(lambda z: -z.square().sum(-1), 3)
    posterior = cc.infer(target, TemperedSMC(num_particles=64), seed=0)
    assert "prior_scale" in posterior.verdicts[0].advice


def test_a_trusted_answer_needs_no_advice():
    assert Verdicts(figures(), "Auto")[0].advice == ""


class Impossible(nn.Module):
    """Of two classes, one that all but cannot be where z < 0."""

    def forward(self, z):
        second = torch.where(z < 0, -1e9, z)
        return torch.cat([torch.zeros_like(z), second], -1).unsqueeze(1)


@pytest.mark.parametrize("crosscoder", [Gaussian(), Planar(4), Mixture(2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_a_fit_with_draws_where_nothing_is_possible_is_unreliable(crosscoder, dtype):
    vae = cc.VAE(Impossible(), 1, cc.likelihoods.Categorical(2))
    if dtype == torch.float64:
        vae = cc.VAE(nn.Sequential(nn.Linear(1, 1), Impossible()).double(), 1, vae.likelihood)
        nn.init.ones_(vae.decoder[0].weight)
        nn.init.zeros_(vae.decoder[0].bias)
    evidence = cc.Evidence(torch.ones(1, dtype=dtype), torch.tensor(True))
    posterior = cc.condition(vae, evidence, Variational(crosscoder, steps=300), seed=0)
    share = (posterior.sample(1000, seed=0) < 0).float().mean()
    (verdict,) = posterior.verdicts
    if share > 0.01:
        assert verdict.label == "unreliable"
        assert "C-ELBO" in verdict.reasons[0]


def test_a_narrow_fit_is_no_better_than_approximate():
    problem = linear_gaussian_problem(3, data_dim=8, scale=0.3)
    posterior = cc.condition(problem.vae, problem.evidence, Variational(steps=1), seed=0)
    assert all("C-ELBO" in " ".join(verdict.reasons) for verdict in posterior.verdicts)


@pytest.mark.parametrize(
    "method", [Auto(max_seconds=20), Laplace(), NaturalGradient(steps=20), Importance()]
)
@pytest.mark.slow
def test_where_weights_collapse_draws_do_not_repeat(method):
    """A ridge in 64 dimensions, for which no Gaussian is a good proposal."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 120))
    vae = cc.VAE(decoder, 40, cc.likelihoods.Gaussian(0.01))
    evidence = cc.Evidence(2 * vae.sample_prior(1, seed=0)[0], torch.arange(120) < 30)
    posterior = cc.condition(vae, evidence, method, seed=0)
    draws = posterior.sample(200, seed=0)
    assert len(draws.unique(dim=0)) > 50
    if posterior.stats["collapsed"]:
        assert posterior.verdicts[0].label == "unreliable"
