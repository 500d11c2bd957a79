"""Decoders that others trained, used as their owners would."""

import importlib.util
import json
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from cheap_methods import every_method
from safetensors.torch import load_file
from torch.nn import functional as F

import crosscoding as cc
from crosscoding.crosscoders import Gaussian
from crosscoding.methods import (
    HMC,
    Auto,
    Grid,
    Importance,
    Laplace,
    NaturalGradient,
    Rejection,
    TemperedSMC,
    Variational,
)
from crosscoding.result.verdict import LABELS as VERDICTS
from crosscoding.zoo.training.data import load_digits, load_pictures, scaled

LIKELIHOODS = {
    "celeba-100d": cc.likelihoods.Gaussian(0.1),
    "celeba-10d-conv": cc.likelihoods.Bernoulli(logits=False),
    "mnist-10d-conv": cc.likelihoods.Bernoulli(logits=False),
    "mnist-2d-fc": cc.likelihoods.Bernoulli(logits=False),
}
every_model = pytest.mark.parametrize("name", LIKELIHOODS)


@pytest.fixture(scope="module")
def architectures(models_folder):
    """The module of plain PyTorch classes that lies beside the models."""
    path = models_folder / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures_of_others", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load(models_folder, architectures):
    """A function from a folder's name to (VAE, description, reference), each loaded once."""

    @cache
    def load_one(name):
        folder = models_folder / name
        description = json.loads((folder / "model.json").read_text())
        kind, arguments = re.fullmatch(r"(\w+)(?:\((.*)\))?", description["module"]).groups()
        sizes = [int(size) for size in (arguments or "").split(",") if size]
        decoder = getattr(architectures, kind)(*sizes)
        decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
        vae = cc.VAE(decoder, description["latent_dim"], LIKELIHOODS[name])
        with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
            return vae, description, {k: torch.from_numpy(arrays[k]) for k in arrays.files}

    return load_one


def test_every_model_in_the_folder_has_a_test(models_folder):
    assert {path.parent.name for path in models_folder.glob("*/model.json")} == set(LIKELIHOODS)


@every_model
def test_a_decoder_gives_its_reference_outputs(load, name):
    vae, description, reference = load(name)
    assert vae.data_shape == tuple(description["data_shape"])
    # 1e-4: float32 sums in another order, as the reference was computed without PyTorch.
    torch.testing.assert_close(vae.decode(reference["z"]), reference["x"], rtol=0, atol=1e-4)


@every_model
def test_one_z_alone_decodes_as_among_others(load, name):
    """Trap 4: batch norm in training mode would mix them."""
    vae, _, reference = load(name)
    alone = torch.cat([vae.decode(z[None]) for z in reference["z"]])
    torch.testing.assert_close(alone, vae.decode(reference["z"]), rtol=0, atol=1e-4)


@every_model
@pytest.mark.slow
def test_a_check_raises_no_false_alarm(load, data_folder, name):
    vae, _, _ = load(name)
    if name.startswith("mnist"):
        data = load_digits(data_folder, "test")[:2000]
        sides = [(size - 28) // 2 for size in vae.data_shape[1:]]  # one is padded to 32 x 32
        data = F.pad(data, 2 * sides).reshape(-1, *vae.data_shape)
    else:
        pictures = load_pictures(data_folder / "celeba_64.zip", 64, last=300)
        data = scaled(pictures) if "100d" in name else pictures / 255
    report = vae.check(data)
    assert {finding.status for finding in report.findings} <= {"ok", "note"}, str(report)


@pytest.fixture(scope="module")
def fitted(load):
    """A function from a folder's name to (posterior, truth) after a few steps of Algorithm 1."""
    kept = {}

    def fit(name):
        if name not in kept:
            vae, _, reference = load(name)
            truth = reference["x"][:2]
            mask = cc.random_mask(vae.data_shape, 0.1, seed=0)
            evidence = cc.Evidence(torch.where(mask, truth, math.nan), mask)
            method = Variational(Gaussian(), steps=3, num_draws=2, num_fresh=8)
            kept[name] = cc.condition(vae, evidence, method, seed=0), truth
        return kept[name]

    return fit


@every_model
@pytest.mark.slow
def test_a_gaussian_is_fitted_and_the_evidence_comes_back_bit_for_bit(fitted, name):
    posterior, truth = fitted(name)
    mask = posterior.target.evidence.mask
    assert posterior.sample(3).shape == (3, 2, posterior.target.latent_dim)
    for answer in (*posterior.predict(2), *posterior.predict_mean(2), posterior.mean()):
        assert answer.shape == truth.shape
        assert torch.equal(answer[mask].view(torch.int32), truth[mask].view(torch.int32))
        assert answer.isfinite().all()
    assert (posterior.std()[mask] == 0).all()
    assert posterior.c_elbo.isfinite().all()
    assert posterior.query_log_prob(truth).isfinite().all()


@every_model
def test_predictions_are_draws_of_the_likelihood(fitted, name):
    """Trap 5: and not the decoder's means."""
    posterior, _ = fitted(name)
    hidden = ~posterior.target.evidence.mask
    draws, means = posterior.predict(4, seed=0), posterior.predict_mean(4, seed=0)
    difference = (draws - means)[:, hidden]
    if isinstance(posterior.target.vae.likelihood, cc.likelihoods.Gaussian):
        # 4 x 11,000 elements or more: the standard deviation of 0.1 is known to 0.4 %.
        assert difference.std().item() == pytest.approx(0.1, rel=0.02)
    else:
        assert set(draws[:, hidden].unique().tolist()) == {0.0, 1.0}
    # The residuals are centred, each of a standard deviation of at most 0.5. The two queries share
    # their noise, so half of them count.
    assert difference.mean().abs() < 5 * 0.5 / math.sqrt(difference.numel() / 2)


@pytest.mark.parametrize("share", [0.05, 0.25])
@pytest.mark.slow
def test_log_evidence_of_the_2d_model_is_that_of_a_fine_uniform_grid(load, share):
    vae, _, reference = load("mnist-2d-fc")
    values, mask = reference["x"][1].round(), cc.random_mask((784,), share, seed=3)
    posterior = cc.condition(vae, cc.Evidence(values, mask), Grid(), seed=0)

    low, high, per_side = torch.full((2,), -6.0), torch.full((2,), 6.0), 161
    for _ in range(3):  # zoom in on the rectangle that holds all but e^-25 of the mass
        width = (high - low) / per_side
        axes = [low[i] + (torch.arange(per_side) + 0.5) * width[i] for i in range(2)]
        points = torch.cartesian_prod(*axes)
        with torch.no_grad():  # log-probabilities from the last layer's logits, in double
            logits = vae.decoder.net(points)[:, mask].double()
        log_likelihood = F.logsigmoid(torch.where(values[mask] > 0.5, logits, -logits)).sum(-1)
        log_joint = log_likelihood - 0.5 * points.double().square().sum(-1) - math.log(2 * math.pi)
        log_evidence = (log_joint + width.double().log().sum()).logsumexp(0)
        inside = points[log_joint > log_joint.max() - 25]
        low, high = inside.amin(0) - width, inside.amax(0) + width
    # Grid's tolerance of 1e-3, 1e-3 for the uniform grid, and as much for probabilities that
    # float32 rounds where the logits used here are not rounded.
    assert posterior.log_evidence.item() == pytest.approx(log_evidence.item(), abs=3e-3)


BRIEF = {
    Variational: {"steps": 4, "num_draws": 4, "num_fresh": 20},
    HMC: {"num_warmup": 4, "num_draws": 4},
    Rejection: {"num_draws": 20, "max_proposals": 3000},
    Auto: {"max_decodes": 2000, "num_draws": 50},
    Laplace: {"num_starts": 1, "steps": 2, "num_fresh": 50},
    NaturalGradient: {"steps": 4, "climb_steps": 2, "num_fresh": 50},
    Importance: {"num_adapt": 50, "num_draws": 50},
    TemperedSMC: {"num_particles": 32},
}


MOST_LATENT = {Grid: 3, Rejection: 3, TemperedSMC: 10}  # that take a few seconds at most


@every_model
@every_method
@pytest.mark.slow
def test_every_method_that_fits_answers(load, name, method):
    vae, _, reference = load(name)
    if vae.latent_dim > MOST_LATENT.get(type(method), vae.latent_dim):
        pytest.skip(f"{type(method).__name__} is for fewer than {vae.latent_dim} dimensions")
    truth = reference["x"][:2]
    mask = cc.random_mask(vae.data_shape, 0.02, seed=3)
    evidence = cc.Evidence(torch.where(mask, truth, math.nan), mask)
    method = replace(method, **BRIEF.get(type(method), {}))
    posterior = cc.condition(vae, evidence, method, seed=0)
    assert posterior.sample(3).isfinite().all()
    observed = mask.expand(truth.shape)
    for filled in posterior.predict(2):
        assert torch.equal(filled[observed], truth[observed])
    assert posterior.query_log_prob(truth).isfinite().all()
    assert len(posterior.verdicts) == 2


@pytest.mark.parametrize("name", ["mnist-2d-fc", "mnist-10d-conv"])
def test_auto_answers_without_settings_and_says_what_it_is_worth(load, name):
    vae, description, reference = load(name)
    truth = reference["x"][1].round()
    mask = cc.random_mask(vae.data_shape, 0.1, seed=3)
    evidence = cc.Evidence(torch.where(mask, truth, math.nan), mask)
    posterior = cc.condition(vae, evidence, Auto(), seed=0)
    (verdict,) = posterior.verdicts
    print(f"{name}: {verdict.label}, {', '.join(verdict.reasons)}")
    assert verdict.label in VERDICTS
    assert posterior.sample(8).shape == (8, description["latent_dim"])
    assert posterior.predict(2).shape == (2, *vae.data_shape)
    assert posterior.log_evidence.isfinite()
    assert posterior.query_log_prob(truth).isfinite()
    if description["latent_dim"] == 2:
        assert verdict.label == "trusted"
        exact = cc.condition(vae, evidence, Grid(tolerance=1e-4), seed=0)
        # What the verdict calls trusted is right to 0.05 nats.
        torch.testing.assert_close(posterior.log_evidence, exact.log_evidence, rtol=0, atol=0.05)
