"""What is seen of posteriors: summaries, traces, and forms for terminals and notebooks."""

import builtins
import html
import math
from io import StringIO

import pandas as pd
import pytest
import torch
from problems import linear_gaussian_problem, mixture_target
from rich.console import Console
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.methods import HMC, Auto, Grid
from crosscoding.methods.cascade.cascade import STAGES
from crosscoding.methods.numerics.discrete_search import _STAGES as DISCRETE_STAGES
from crosscoding.result.lazy_verdicts import Verdict
from crosscoding.result.summary import SummaryTable
from crosscoding.result.trace import WHAT_STAGES_DO

COLUMNS = [
    *("label", "mean", "interval", "density", "ess", "log_evidence", "log_evidence_error"),
    *("pareto_k", "known", "decodes", "seconds", "method"),
]
SHORT = HMC(num_chains=2, num_warmup=10, num_draws=10, num_leapfrog=4)


def posterior_of(batch: tuple[int, ...], method=None) -> cc.Posterior:
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    return cc.condition(problem.vae, problem.evidence, method, seed=0)


def printed(shown) -> str:
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(shown)
    return console.file.getvalue()


# ---- summary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Auto(), SHORT])
def test_a_summary_has_the_posteriors_own_figures(method):
    posterior = posterior_of((4,), method)
    summary = posterior.summary()
    assert list(summary.columns) == COLUMNS
    for name in ("ess", "log_evidence", "log_evidence_error", "pareto_k"):
        torch.testing.assert_close(
            torch.tensor(summary[name].tolist()), getattr(posterior, name), equal_nan=True
        )
    assert summary["label"].tolist() == [verdict.label for verdict in posterior.verdicts]
    for purpose in ("mean", "interval", "density"):
        own = [verdict.purposes[purpose] for verdict in posterior.verdicts]
        assert summary[purpose].tolist() == own
    assert summary["known"].tolist() == posterior.target.evidence.mask.sum(-1).tolist()
    assert set(summary["method"]) == {posterior.method}
    if posterior.trace:
        spent = sum(stage.decodes for stage in posterior.trace)
        assert summary["decodes"].tolist() == spent.tolist()
    else:
        assert summary["decodes"].isna().all()
        assert summary["seconds"].sum() == pytest.approx(posterior.seconds)


def test_a_summary_has_a_row_for_each_query_of_any_batch():
    assert posterior_of(()).summary().index.tolist() == [0]
    assert posterior_of((3,)).summary().index.tolist() == [0, 1, 2]
    two = posterior_of((2, 3)).summary()
    assert two.index.tolist() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert two["log_evidence"][1, 2] == posterior_of((2, 3)).log_evidence[1, 2].item()


def test_an_empty_batch_has_a_summary_without_rows():
    posterior = posterior_of((0,))
    summary = posterior.summary()
    assert list(summary.columns) == COLUMNS
    assert len(summary) == 0
    assert summary["ess"].dtype == "float64"
    assert "no queries" in repr(posterior)
    assert "no queries" in posterior._repr_html_()
    assert "no queries" in printed(posterior)
    assert printed(posterior.verdicts)
    assert printed(posterior.trace)


def table_posterior() -> cc.Posterior:
    names = {"<b>n</b>": [0.1, 2.5, 0.7, 1.9], "kind": ["a", "<i>", "a", "<i>"]}
    df = pd.DataFrame(names | {"when": pd.date_range("2020-01-01", periods=4)})
    table = cc.tables.Table(df)
    torch.manual_seed(0)
    vae = cc.VAE(nn.Linear(2, table.num_params), 2, table.likelihood(), table=table)
    rows = pd.DataFrame({"<b>n</b>": [0.7, None], "kind": [None, "<i>"]}, index=["<u>", "b"])
    return cc.condition(vae, rows, seed=0)


def test_a_summary_of_a_dataframe_has_its_index():
    assert table_posterior().summary().index.tolist() == ["<u>", "b"]


def test_what_comes_from_the_user_is_escaped():
    posterior = table_posterior()
    for each in (posterior, posterior.target.model, posterior.target.evidence):
        shown = each._repr_html_()
        assert "&lt;b&gt;n&lt;/b&gt;" in shown
        for tag in ("<b>n", "<i>", "<u>", "<script"):
            assert tag not in shown
    assert "&lt;u&gt;" in posterior._repr_html_()


def test_without_pandas_a_summary_prints_the_same_table(monkeypatch):
    posterior = posterior_of((12,))
    expected = posterior.summary()
    real = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    summary = posterior.summary()
    assert isinstance(summary, SummaryTable)
    assert len(summary) == 12
    for name in COLUMNS:
        assert summary[name] == pytest.approx(expected[name].tolist(), nan_ok=True)
    lines = repr(summary).splitlines()
    assert lines[0].split() == COLUMNS
    assert lines[1].split()[1] == posterior.verdicts[0].label
    assert lines[-1] == "… 2 more"
    assert "trusted" in summary._repr_html_()
    assert "log_evidence" in printed(summary)
    with pytest.raises(KeyError, match="expected a column among"):
        summary["nothing"]
    assert posterior_of((2, 2)).summary().index == [(0, 0), (0, 1), (1, 0), (1, 1)]


# ---- forms ---------------------------------------------------------------------------------------


def test_one_line_says_what_matters():
    one = posterior_of(())
    assert "trusted" in repr(one)
    assert f"log p(x) {one.log_evidence.item():.2f}"[:12].replace("-", "−") in repr(one)
    assert "3 trusted" in repr(posterior_of((3,)))
    assert "not estimated" in repr(posterior_of((), SHORT))
    assert "\n" not in repr(posterior_of((3,)))


def test_one_answer_is_shown_with_its_reasons_and_advice():
    posterior = posterior_of((), SHORT)
    verdict = posterior.verdicts[0]
    for shown in (posterior._repr_html_(), printed(posterior), printed(verdict)):
        text = html.unescape(shown)
        for reason in verdict.reasons:
            assert reason in text
        assert verdict.advice in text
        assert "approximate" in shown or "unreliable" in shown
    assert "Next step" not in printed(posterior_of(()))


def test_a_large_batch_is_shown_fast_and_in_short(monkeypatch):
    posterior, small = posterior_of((5000,)), posterior_of((6,))
    asked = []
    real = Verdict.reasons.fget
    monkeypatch.setattr(Verdict, "reasons", property(lambda self: asked.append(self) or real(self)))
    shown = posterior._repr_html_()
    assert len(asked) <= 1
    assert len(shown) < len(small._repr_html_()) + 500
    assert "4,995 more" in shown
    assert "5,000" in printed(posterior)
    assert len(printed(posterior).splitlines()) < 40
    asked.clear()
    assert len(repr(posterior.verdicts)) < 5000
    assert len(asked) == 5
    assert len(posterior.verdicts._repr_html_()) < 6000
    assert "4,995 more" in repr(posterior.verdicts)
    assert len(repr(posterior)) < 200


def test_counts_are_those_of_the_labels():
    posterior = posterior_of((40,), SHORT)
    for purpose in ("mean", "interval", "density"):
        labels = [verdict.purposes[purpose] for verdict in posterior.verdicts]
        counts = posterior.verdicts.counts(purpose)
        assert counts == {
            label: labels.count(label) for label in ("trusted", "approximate", "unreliable")
        }
        sure = posterior.verdicts.counts(purpose, measure=False)
        assert sure["trusted"] <= counts["trusted"]


def test_pictures_show_completions_in_notebooks_only(digit_posterior):
    shown = digit_posterior._repr_html_()
    assert shown.count("data:image/png;base64,") == 1
    assert "<script" not in shown
    assert "png" not in printed(digit_posterior)
    assert len(shown) < 60_000


def test_looking_does_not_move_the_posteriors_random_stream(digit_posterior):
    state = digit_posterior._generator.get_state()
    digit_posterior._repr_html_()
    digit_posterior.summary()
    assert torch.equal(digit_posterior._generator.get_state(), state)


def test_rows_are_shown_completed():
    shown = table_posterior()._repr_html_()
    assert '<td class="strong"><b>0.7</b></td>' in shown
    assert "2020-01-" in shown
    assert "%)" in shown


def test_a_bare_density_and_an_answer_without_its_model_are_shown(tmp_path):
    bare = cc.infer(mixture_target(), seed=0)
    assert "known" not in bare.summary().columns
    assert "data:image" not in bare._repr_html_()
    assert printed(bare)
    posterior = posterior_of((3,))
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    pd.testing.assert_frame_equal(loaded.summary(), posterior.summary())
    assert "3 trusted" in printed(loaded)


def test_a_decoder_without_predictions_is_still_shown():
    class Undefined(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, z):
            picture = self.weight * z[:, :1, None].expand(-1, 6, 6).clone()
            picture[:, 5, 5] = torch.where(z[:, 0] > 0, torch.nan, picture[:, 5, 5])
            return picture

    with pytest.warns(UserWarning, match="outputs nan"):
        vae = cc.VAE(Undefined(), 1, Gaussian(0.1))
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 0] = True
    posterior = cc.condition(vae, cc.Evidence(torch.full((6, 6), 0.5), mask), seed=0)
    assert "No predictions: " in posterior._repr_html_()
    assert vae._repr_html_()


def test_discrete_latents_are_shown():
    vae = cc.VAE(nn.Linear(3, 4), 3, Bernoulli(), prior=cc.priors.Bernoulli(torch.zeros(3)))
    evidence = cc.Evidence(torch.ones(4), torch.arange(4) < 2)
    posterior = cc.condition(vae, evidence, seed=0)
    assert "trusted" in posterior._repr_html_()
    assert "prior Bernoulli" in printed(vae)


# ---- traces --------------------------------------------------------------------------------------


def test_every_stage_has_words():
    names = {stage.name for stage in STAGES} | set(DISCRETE_STAGES) | {"closed form"}
    assert set(WHAT_STAGES_DO) == names


def test_a_trace_says_what_each_stage_took(digit_posterior):
    vae = cc.zoo.load("mnist-2d")
    evidence = cc.Evidence(cc.zoo.digits()[0][:3], cc.rectangle_mask((28, 28), rows=(0, 13)))
    trace = cc.condition(vae, evidence, seed=0).trace
    assert isinstance(trace, list)
    assert [stage.name for stage in trace] == ["bank", "grid"]
    total = f"{int(trace[1].decodes.sum()):,}"
    for shown in (repr(trace), printed(trace), trace._repr_html_()):
        for word in ("bank", "grid", "queries", total, "3"):
            assert word in shown
    assert trace[1].ran.tolist() == [True] * 3
    assert digit_posterior.trace == []
    assert repr(digit_posterior.trace) == "no stages"


def test_a_query_that_skipped_a_stage_is_not_counted():
    stage = cc.result.trace.Stage("grid", torch.tensor([3.0, 0.0]), torch.tensor([0.1, 0.0]))
    assert stage.ran.tolist() == [True, False]
    assert math.isclose(float(stage.seconds.sum()), 0.1, rel_tol=1e-6)


def test_grid_answers_are_computed():
    assert "computed, not sampled" in printed(posterior_of((2,), Grid()))


def test_the_only_category_of_a_column_is_certain():
    df = pd.DataFrame({"x": [0.1, 0.5, 0.9], "only": ["a", "a", "a"]})
    table = cc.tables.Table(df)
    torch.manual_seed(0)
    vae = cc.VAE(nn.Linear(2, table.num_params), 2, table.likelihood(), table=table)
    posterior = cc.condition(vae, pd.DataFrame({"x": [0.3]}), seed=0)
    assert "a (100%)" in posterior._repr_html_()
    bars = posterior.plot()[0, 1].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([1.0])


def test_elements_without_a_mean_have_intervals_only():
    vae = cc.VAE(nn.Linear(2, 6), 2, cc.likelihoods.StudentT(1.0, 0.5))
    posterior = cc.condition(vae, cc.Evidence(torch.zeros(6), torch.arange(6) < 3), seed=0)
    legend = posterior.plot()[0, 0].get_legend()
    words = [text.get_text() for text in legend.get_texts()]
    assert "90% interval" in words
    assert not any("class" in word for word in words)
