"""Twins: calibrated methods pass, wrong ones are caught, and bounds hold on both sides."""

import math
import pickle
from dataclasses import dataclass, replace
from io import StringIO

import pytest
import torch
from problems import linear_gaussian_problem, mirrored_vae, seeded
from rich.console import Console
from torch import nn

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed
from crosscoding.methods import Auto, Method
from crosscoding.methods.base import silent
from crosscoding.result.findings import Findings
from crosscoding.result.lazy_verdicts import Verdicts

PROBLEM = linear_gaussian_problem(2, 8, 0.5, batch=1)
HALF = torch.arange(8) < 4


@dataclass(frozen=True)
class Exact(Method):
    """Exact draws of the linear-Gaussian problem, made wrong on purpose.

    Args:
        width: By which the standard deviations are multiplied.
        shift: By which log p(x) is too high.
        searched: Whether it claims to have searched for modes.
    """

    width: float = 1.0
    shift: float = 0.0
    searched: bool = True

    def find(self, target, *, generator, report=silent):
        mean, covariance = PROBLEM.exact_posterior(target.evidence)
        noise = torch.randn(1000, 1, 2, generator=generator)
        spread = torch.linalg.cholesky(covariance)
        draws = mean + self.width * torch.einsum(
            "bij,sbj->sbi", spread, noise.expand(-1, len(mean), -1)
        )
        exact = PROBLEM.exact_log_evidence(target.evidence)
        nothing = torch.zeros_like(exact)
        unknown = torch.full_like(exact, math.nan)
        return Findings(
            draws=draws,
            log_evidence=exact + self.shift,
            log_evidence_error=nothing + 0.01,
            c_elbo=unknown,
            c_elbo_error=unknown,
            ess=nothing + 1000.0,
            missed=nothing if self.searched else unknown,
        )


class OneMode(Method):
    """Exact answers of `Auto` for a mirrored model, without the modes on one side."""

    def find(self, target, *, generator, report=silent):
        found = Auto().find(target, generator=generator)
        return replace(found, draws=found.draws * found.draws[..., :1].sign())


def calibrated(method=None, num=100, mask=HALF, seed=0, **changed) -> "cc.calibration.TwinReport":
    return cc.calibrate(PROBLEM.vae, mask, method, num, seed, progress=False, **changed)


@pytest.fixture(scope="module")
def exact():
    return calibrated(Exact(), 200)


# ---- calibrated answers --------------------------------------------------------------------------


def test_exact_answers_pass(exact):
    assert exact.p_value() > 0.01
    for level in (0.5, 0.8, 0.9):
        value, error = exact.coverage(level)
        assert abs(value - level) < 3.5 * error  # of three levels, so a little more than 3
        assert error < 0.05
    assert exact.labels == ("trusted",) * 200
    assert exact.purposes["interval"] == {"trusted": 200}
    assert exact.p_value(trusted=True) == exact.p_value()


def test_auto_passes_and_log_evidence_is_between_the_bounds():
    report = calibrated()
    assert report.p_value() > 0.01
    assert report.below.sum() <= 1  # of 100, at 3 standard errors from the spread of 8 chains
    assert report.above.sum() <= 1
    assert 0 < report.gap < 0.5


def test_the_same_seed_gives_the_same_bits(exact):
    again = calibrated(Exact(), 200)
    assert torch.equal(again.ranks.values, exact.ranks.values)
    assert torch.equal(again.sandwich.upper, exact.sandwich.upper)


def test_progress_rises_to_the_bounds():
    told = []
    cc.calibrate(PROBLEM.vae, HALF, Exact(), 20, report=lambda *what: told.append(what))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] <= 1


def test_everything_observed_leaves_no_element_to_rank():
    report = calibrated(Exact(), 40, torch.ones(8, dtype=torch.bool))
    assert report.ranks.names == ("z[0]", "z[1]", "log p(z, x)")
    assert all(math.isnan(number) for number in report.coverage())
    assert "intervals" not in report.summary()
    report.plot()


def test_several_masks_are_used_in_turn():
    masks = torch.stack([HALF, ~HALF])
    report = calibrated(Exact(), 41, masks)
    known = ~report.ranks.values[report.ranks.is_element].isnan()
    assert known.sum(1).tolist() == [20] * 4 + [21] * 4
    assert sorted(report.vouching.masks.tolist()) == sorted(masks.tolist())


# ---- evidence of values --------------------------------------------------------------------------

NOISY = cc.Evidence(torch.zeros(8), torch.arange(8) < 6, noise=torch.arange(8) * 0.2)


class Noiseless(Method):
    """Exact answers for values that are taken to have no noise."""

    def find(self, target, *, generator, report=silent):
        evidence = cc.Evidence(target.evidence.values, target.evidence.mask)
        return Auto().find(cc.VAETarget(PROBLEM.vae, evidence), generator=generator)


def test_evidence_of_exact_values_is_a_mask(exact):
    report = calibrated(Exact(), 200, cc.Evidence(torch.ones(8), HALF))
    assert torch.equal(report.ranks.values, exact.ranks.values)
    assert torch.equal(report.vouching.masks, exact.vouching.masks)


@pytest.mark.slow
def test_twins_observe_noise():
    report = calibrated(mask=NOISY, num=200)
    assert report.ranks.names[3:] == tuple(PROBLEM.vae.element_name(e) for e in range(1, 8))
    assert report.p_value() > 0.01
    value, error = report.coverage(0.9)
    assert abs(value - 0.9) < 3 * error
    assert report.below.sum() + report.above.sum() <= 3
    assert not len(report.vouching.masks)  # exact values are another kind of query


@pytest.mark.slow
def test_noise_that_is_left_out_is_caught():
    assert calibrated(Noiseless(), 200, NOISY).p_value() < 1e-4


@pytest.mark.slow
def test_twins_have_the_covariates_and_the_noise_of_each_query_in_turn(monkeypatch):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 8)

        def forward(self, z, shift):
            return self.linear(z) + 100 * shift[:, None]

    vae = cc.VAE(Shifted(), 2, Gaussian(0.5), given=torch.zeros(1))
    given, noise = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.1, 0.2])[:, None]
    kind = cc.Evidence(torch.zeros(3, 8), HALF, noise=noise, given=given)
    asked = []

    def recorded(model, evidence, *args, **options):
        asked.append(evidence)
        return cc.condition(model, evidence, *args, **options)

    monkeypatch.setattr("crosscoding.calibration.twins.condition", recorded)
    cc.calibrate(vae, kind, cc.methods.Laplace(), 20, progress=False)
    (seen,) = asked
    assert torch.equal(seen.given, given[torch.arange(20) % 3])
    own = seen.values[:, :4].mean(1) / 100
    torch.testing.assert_close(own, seen.given, rtol=0, atol=0.1)
    assert torch.equal(seen.uncertain.noise[:, 0], noise[torch.arange(20) % 3, 0])
    assert torch.equal(seen.exact[:, 0], torch.arange(20) % 3 == 0)


# ---- wrong answers are caught --------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.7, 1.4])
def test_a_wrong_width_is_caught(width):
    report = calibrated(Exact(width), 200)
    assert report.p_value() < 0.01
    assert "not uniform" in report.summary()
    assert report.p_value(trusted=True) < 0.01  # the method trusts itself


def test_a_narrow_width_covers_too_little():
    value, error = calibrated(Exact(0.3), 200).coverage(0.9)
    assert value < 0.9 - 2 * error


def test_a_missing_mode_is_caught():
    vae = mirrored_vae(2, 6, 0.3, seed=0)
    mask = torch.arange(6) < 5
    report = cc.calibrate(vae, mask, OneMode(), 60, progress=False)
    assert report.p_values()["z[0]"] < 1e-6
    assert cc.calibrate(vae, mask, Auto(), 60, progress=False).p_values()["z[0]"] > 1e-3


@pytest.mark.slow
def test_a_wrong_log_evidence_is_outside_the_bounds():
    assert calibrated(Exact(shift=2.0), 40).above.float().mean() > 0.9
    assert calibrated(Exact(shift=-2.0), 40).below.float().mean() > 0.9


# ---- other models --------------------------------------------------------------------------------


def table() -> cc.VAE:
    """A number of decoded scale, a class of three and a binary column."""
    torch.manual_seed(0)
    likelihood = Mixed([(Gaussian(None), 1), (Categorical(3, one_hot=False), 1), (Bernoulli(), 1)])
    heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 1)])
    return cc.VAE(Heads(heads), 2, likelihood)


class Heads(nn.Module):
    """Outputs of several linear layers, side by side."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, z):
        first, *rest = (head(z) for head in self.heads)
        scale = first[:, 1:].exp()
        return torch.cat([first[:, :1], scale, *rest], -1)


def test_tables_with_classes_and_decoded_scales():
    report = cc.calibrate(table(), torch.tensor([True, False, False]), None, 60, progress=False)
    assert report.p_value() > 0.01
    assert len(report.ranks.names) == 2 + 1 + 2
    value, error = report.coverage(0.8)
    assert abs(value - 0.8) < 3.5 * error


# ---- vouching ------------------------------------------------------------------------------------


def answered(report, vae=PROBLEM.vae, mask=HALF, **changed):
    """An answer without a search by `Auto`, with a report."""
    evidence = cc.Evidence(PROBLEM.truth, mask)
    vouching = replace(report.vouching, method="Auto", **changed)
    found = Exact(searched=False).find(cc.VAETarget(PROBLEM.vae, evidence), generator=seeded(0))
    vouched = vouching.for_answers(found, cc.VAETarget(vae, evidence).flatten(), "Auto")
    return Verdicts(vouched.figures, "Auto")[0]


@pytest.fixture(scope="module")
def unsearched():
    return calibrated(Exact(searched=False), 120)


def test_twins_vouch_for_means_and_intervals_but_not_for_densities(unsearched):
    assert unsearched.vouching.num == 120
    verdict = answered(unsearched)
    assert verdict.purposes == {"mean": "trusted", "interval": "trusted", "density": "approximate"}
    (reason,) = (r for r in verdict.on("interval").reasons if "twins:" in r)
    assert "120 simulated twins" in reason
    assert not any("twins:" in reason for reason in verdict.reasons)


def test_twins_do_not_vouch_for_others(unsearched):
    other = linear_gaussian_problem(2, 8, 0.5, batch=1, seed=1).vae
    wider = cc.VAE(PROBLEM.vae.decoder, 2, Gaussian(0.6))
    assert answered(unsearched, vae=other).purposes["mean"] == "approximate"
    assert answered(unsearched, vae=wider).purposes["mean"] == "approximate"
    assert answered(unsearched, mask=torch.arange(8) < 6).purposes["mean"] == "approximate"
    assert answered(unsearched, mask=~HALF).purposes["mean"] == "approximate"  # as many elements


def test_twins_do_not_vouch_for_other_settings(unsearched):
    vouching = replace(unsearched.vouching, method=repr(Auto()))
    evidence = cc.Evidence(PROBLEM.truth, HALF)
    for method in (Auto(num_draws=500), Auto(max_seconds=1.0)):
        hurried = replace(method, calibration=replace(unsearched, vouching=vouching))
        posterior = cc.condition(PROBLEM.vae, evidence, hurried, seed=0)
        assert "twins" not in posterior.stats or posterior.stats["twins"].isnan().all()


def test_a_report_that_is_too_small_or_miscalibrated_never_vouches(unsearched):
    assert answered(unsearched, num=99).purposes["mean"] == "approximate"
    assert answered(unsearched, p_value=0.009).purposes["mean"] == "approximate"
    off = {"coverage": 0.85, "coverage_error": 0.014}
    assert answered(unsearched, **off).purposes["interval"] == "approximate"
    assert not calibrated(Exact(0.6, searched=False), 120).vouching.passed


def test_searched_twins_say_nothing_of_unsearched_answers(exact):
    assert exact.vouching.num == 0
    assert answered(exact).purposes["mean"] == "approximate"


def test_auto_takes_a_report(unsearched, tmp_path):
    """The report is of a method without a search, as `Auto` is where a decoder is very large."""
    report = replace(unsearched, vouching=replace(unsearched.vouching, method=repr(Auto())))
    evidence = cc.Evidence(PROBLEM.truth, HALF)
    posterior = cc.condition(PROBLEM.vae, evidence, Auto(calibration=report), seed=0)
    assert posterior.stats["twins"].item() == 120
    posterior.save(tmp_path / "answer")
    again = cc.Posterior.load(tmp_path / "answer")
    assert again.verdicts == posterior.verdicts
    assert pickle.loads(pickle.dumps(again.verdicts)) == posterior.verdicts
    with pytest.raises(TypeError, match="expected calibration to be what"):
        Auto(calibration=0.9)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((HALF, None, 19), ValueError, "num >= 20"),
        ((HALF, None, 20.5), TypeError, "num to be an int"),
        ((HALF[:5],), ValueError, r"shape \(8,\), or several, \(M, 8\), got \(5,\)"),
        ((HALF.float(),), TypeError, "boolean mask"),
        ((cc.Evidence.interval(HALF.float()),), TypeError, "got intervals or sets too"),
        ((cc.Evidence.linear(torch.ones(1, 8), torch.ones(1)),), TypeError, "got sums too"),
        ((cc.Evidence(torch.zeros(5), HALF[:5]),), ValueError, r"evidence of shape \(\*batch, 8\)"),
        ((cc.Evidence(torch.zeros(0, 8), HALF),), ValueError, "at least one query"),
        (
            (cc.Evidence(torch.zeros(8), HALF, given=torch.tensor(0)),),
            ValueError,
            "evidence without covariates",
        ),
        ((HALF, "auto"), TypeError, "expected method"),
    ],
)
def test_nonsense_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        cc.calibrate(PROBLEM.vae, *arguments)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match=r"crosscoding\.VAE"):
        cc.calibrate(nn.Linear(2, 8), HALF)


# ---- words and pictures --------------------------------------------------------------------------


def test_the_summary_has_the_figures(exact):
    text = exact.summary()
    assert "200 twins, answered by Exact: 200 trusted" in text
    assert f"p = {exact.p_value():.2g}" in text
    assert "90% intervals cover" in text
    assert f"{exact.gap:.2g} nats apart" in text
    assert repr(exact) == f"TwinReport(200 twins, Exact, p={exact.p_value():.2g})"


def test_a_report_is_shown_in_notebooks_and_terminals(exact):
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(exact)
    coverage = f"{exact.coverage(0.9)[0]:.1%}"
    for shown in (exact._repr_html_(), console.file.getvalue()):
        for word in ("200 twins, answered by Exact", f"p = {exact.p_value():.2g}", coverage):
            assert word in shown
        assert shown.count("200") >= 4
        assert "nats apart on average" in shown


def test_the_picture_has_four_panels(exact):
    figure = exact.plot()
    assert len(figure.axes) == 4
    curves = figure.axes[1].lines
    assert len(curves) == len(exact.ranks.names)
