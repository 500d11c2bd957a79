"""The whole report: for a correct model, for one with several faults, and refusals."""

import json
import math

import numpy as np
import pytest
import torch
from faults import LATENT, drawn, network, right, wrapped

import crosscoding as cc
from crosscoding import checks
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed, Poisson


def test_a_correct_model_passes_on_its_own_data():
    vae = right()
    report = vae.check(drawn(vae))
    assert report.ok
    assert {finding.status for finding in report.findings} == {"ok"}
    assert [finding.name for finding in report.findings] == [
        *("output", "repeatability", "far out", "gradients", "latent"),
        *("cost", "bank", "last layer", "methods"),
        *("data", "units", "explanation", "scale", "prior"),
    ]
    assert report.summary == "no problems found"


def test_without_data_only_the_decoder_is_checked():
    report = right().check()
    assert "data" not in report
    assert "gradients" in report


def test_a_report_prints_a_line_for_each_finding_and_is_json():
    report = right().check()
    lines = str(report).splitlines()
    assert len(lines) == len(report.findings) + 2
    assert lines[0] == repr(right())
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert data["ok"]
    assert [row["name"] for row in data["findings"]] == [f.name for f in report.findings]


def test_the_same_seed_gives_the_same_figures():
    vae = right()
    names = ("latent", "units", "explanation", "scale", "prior")
    first, again, other = (vae.check(drawn(vae), seed=seed) for seed in (3, 3, 4))
    assert all(first[name].figures == again[name].figures for name in names)
    assert first["scale"].figures != other["scale"].figures


def test_the_model_and_the_data_are_not_changed():
    vae = right()
    data = drawn(vae)
    kept, before = data.clone(), torch.get_rng_state()
    z = torch.ones(1, LATENT)
    wanted = vae.decode(z)
    vae.check(data)
    assert torch.equal(data, kept)
    assert torch.equal(vae.decode(z), wanted)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(parameter.requires_grad for parameter in vae.decoder.parameters())


def test_checks_work_where_the_caller_has_turned_gradients_off():
    vae = right()
    data = drawn(vae)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert vae.check(data).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(0.5),
        Gaussian(torch.full((12,), 0.5)),
        Bernoulli(),
        Poisson(),
        Categorical(3, one_hot=True),
        Mixed([(Gaussian(0.3), 4), Bernoulli(), (Poisson(), 3), Categorical(4)]),
        cc.likelihoods.ContinuousBernoulli(),
        cc.likelihoods.StudentT(4.0, 0.3),
        cc.likelihoods.Laplace(0.3),
        cc.likelihoods.NegativeBinomial(3.0),
        cc.likelihoods.BetaBinomial(5, 4.0),
        cc.likelihoods.Ordinal((-1.0, 0.0, 1.0)),
        cc.likelihoods.DiscretizedLogistic(0.1),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
@pytest.mark.slow
def test_no_likelihood_raises_a_false_alarm_on_data_of_its_own(likelihood, dtype):
    if dtype == torch.float64 and isinstance(getattr(likelihood, "scale", None), torch.Tensor):
        likelihood = Gaussian(likelihood.scale.double())
    vae = cc.VAE(network().to(dtype), LATENT, likelihood)
    report = vae.check(drawn(vae, 400))
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)


def test_a_decoded_scale_raises_no_false_alarm():
    decoder = torch.nn.Sequential(network(24), torch.nn.Softplus(), torch.nn.Unflatten(1, (12, 2)))
    vae = cc.VAE(decoder, LATENT, Gaussian(None))
    report = vae.check(drawn(vae, 400))
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)


def test_if_the_output_is_wrong_nothing_else_is_computed():
    vae = wrapped(lambda net, z: torch.where(z[:, :1] > 2, math.nan, net(z)))
    assert [finding.name for finding in vae.check().findings] == ["output", "repeatability"]


def test_a_check_that_fails_is_a_finding():
    def awkward(net, z):
        if z.requires_grad:
            raise RuntimeError("no gradients, please")
        return net(z)

    finding = wrapped(awkward).check()["gradients"]
    assert finding.status == "error"
    assert finding.message == "could not be checked: no gradients, please"


def test_arrays_are_accepted_like_tensors():
    vae = right()
    data = drawn(vae)
    found, wanted = vae.check(data.numpy()), vae.check(data)
    assert found["explanation"].figures == wanted["explanation"].figures


def test_of_many_data_a_subset_is_checked(monkeypatch):
    vae = right()
    monkeypatch.setattr(checks, "_MOST_DATA", 50)
    assert vae.check(drawn(vae))["data"].figures["count"] == 50


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "data to be a torch.Tensor or a NumPy array, got list"),
        (torch.zeros(12), {}, ValueError, r"expected data of shape \(N, 12\) with N >= 1"),
        (torch.zeros(3, 11), {}, ValueError, r"expected data of shape \(\*batch, 12\)"),
        (torch.zeros(3, 12).double(), {}, ValueError, "of the model's dtype torch.float32"),
        (np.zeros((3, 12)), {}, ValueError, r'float32, got torch.float64.*\.astype\("float32"\)'),
    ],
)
def test_invalid_arguments_are_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        right().check(data, **options)
