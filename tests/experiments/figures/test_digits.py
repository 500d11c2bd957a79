"""Figures 2, 3 and 4, with minimal settings."""

from dataclasses import replace

import pytest

from crosscoding.experiments.experiment import Context
from crosscoding.experiments.figures import digit_methods, digit_sets, one_digit
from crosscoding.experiments.problem import Problem, answer, column, digest
from crosscoding.experiments.recorded_runs import run
from crosscoding.methods import Rejection, Variational

TINY = digit_methods.Settings(
    num_sets=2, num_draws=60, steps=5, num_warmup=5, num_warmup_alone=5, max_proposals=500_000
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


def tiny(experiment):
    return replace(experiment, full=TINY)


@pytest.mark.slow
def test_figures_of_one_digit_share_their_answers(folder):
    record, _ = run(tiny(one_digit.FIG2), Context(folder))
    labels = ["GVI", "NF", "FCN", "HMC", "HMC, 1 chain", "RS", "Auto"]
    assert list(record["numbers"]["methods"]) == labels
    parts = sorted(path.name for path in (folder / "parts").iterdir())
    shared, _ = run(tiny(one_digit.FIG3), Context(folder))
    assert sorted(path.name for path in (folder / "parts").iterdir()) == parts
    assert shared["numbers"]["num_draws"] == 60
    for figures in shared["numbers"]["methods"].values():
        assert 0 <= figures["share_outside"] <= 1
    for name in ("fig2.png", "fig2.svg", "fig3.png", "fig3.svg"):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.slow
def test_evidence_sets_have_bounds_below_log_evidence_and_exact_answers_near_it(folder):
    record, _ = run(tiny(digit_sets.FIG4), Context(folder))
    exact = record["numbers"]["exact"]["log_evidence"]
    methods = record["numbers"]["methods"]
    for name in ("GVI", "NF"):
        bound, error = (column(methods[name], n) for n in ("c_elbo", "c_elbo_error"))
        # 5 standard errors, and 1e-2 for the grid.
        assert (bound - 5 * error < column({"x": exact}, "x") + 1e-2).all()
    auto = column(methods["Auto"], "log_evidence")
    assert auto == pytest.approx(column({"x": exact}, "x"), abs=0.05)  # what "trusted" promises
    assert {"fig4a.png", "fig4b.svg"} <= set(record["files"])


def test_a_method_that_gives_up_is_left_out_with_its_reason(tmp_path, monkeypatch):
    problem = one_digit.one_digit()
    result = answer(Context(tmp_path), problem, "RS", Rejection(num_draws=10, max_proposals=5))
    assert "raise max_proposals" in result.numbers["failed"]
    few = {"GVI": Variational(steps=2, num_fresh=20), "RS": Rejection(10, max_proposals=5)}
    monkeypatch.setattr(digit_methods, "compared_methods", lambda settings: few)
    record, _ = run(tiny(one_digit.FIG2), Context(tmp_path))
    assert list(record["numbers"]["methods"]) == ["GVI"]


def test_digests_of_different_models_differ(mnist_2d):
    problem = digit_sets.many_sets(TINY, seed=0)
    assert isinstance(problem, Problem)
    assert digest(mnist_2d) == problem.settings["model"]
    other = digit_methods.zoo.load("mnist-20d")
    assert digest(other) != digest(mnist_2d)
